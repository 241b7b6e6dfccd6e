//! Spectrum of the Hessian, sharpness and generalization gap at all weights that were kept (Figure 3).

use anyhow::{Context as _, Result};
use sam_runtime::Sam;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::ImageSet;
use crate::experiments::hessian::{Eigenvalues, landscape};
use crate::experiments::landscape::{PointLog, digest_of};
use crate::experiments::paper::runs::{Ended, Run, Settings};
use crate::io::lease::{Holder, Lease, Take};
use crate::metrics::Scores;
use crate::models::Model;
use crate::recipe::{Cell, Kept, Table};
use crate::trainer::WeightsInfo;
use crate::util::stop::Stop;

/// What was measured at some weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AtWeights {
    pub(super) spectrum: Eigenvalues,
    /// L(w + ε̂) - L(w)
    pub(super) sharpness: f64,
    train_loss: f64,
    test_loss: f64,
    pub(super) train_error: f64,
    pub(super) test_error: f64,
}

impl AtWeights {
    /// Test error minus training error, in %.
    pub(super) fn gap(&self) -> f64 {
        100.0 * (self.test_error - self.train_error)
    }
}

/// How many files of weights there are to measure.
#[must_use]
pub fn count(run: &Run) -> usize {
    run.kept_weights().len()
}

/// How measuring ended.
#[derive(Debug)]
pub enum Measuring {
    /// Everything is known.
    Done,
    /// Another process measures it.
    Taken(Holder),
    /// The process was told to stop.
    Stopped,
}

/// Measures what is not known yet of a run that has finished, and calls `tell` after each file of weights.
///
/// # Errors
/// If the data is missing, or a file cannot be read or written.
pub fn measure(run: &Run, kept: &Kept, settings: &Settings, stop: &Stop, mut tell: impl FnMut()) -> Result<Measuring> {
    let lease = match Lease::take(&run.folder, settings.stale)? {
        Take::Ours(lease) => lease,
        Take::Others(holder) => return Ok(Measuring::Taken(holder)),
    };
    let weights = run.kept_weights();
    let mut log = PointLog::open(&log_of(run), &about(run, kept)?, stop)?;
    let mut data = None;
    for (epoch, path) in weights {
        lease.check()?;
        let value = log.value(&name_of(epoch), || {
            let (info, model) = WeightsInfo::load(&path, &settings.device)?;
            if data.is_none() {
                let folder = settings.data.as_deref().filter(|folder| run.reads(folder));
                data = Some(info.data_set(&path, folder, &settings.device.device)?);
            }
            let data = data.as_ref().context("there is no data")?;
            let images = [data.train.first(kept.images), data.test.first(kept.images)];
            Ok(serde_json::to_value(at_weights(&model, &images, kept, stop)?)?)
        });
        match value {
            Ok(Some(_)) => tell(),
            Ok(None) => return Ok(Measuring::Stopped),
            Err(_) if stop.is_told() => return Ok(Measuring::Stopped),
            Err(error) => return Err(error),
        }
    }
    Ok(Measuring::Done)
}

fn at_weights(model: &Model, [train, test]: &[ImageSet; 2], kept: &Kept, stop: &Stop) -> Result<AtWeights> {
    let scores = |images: &ImageSet| Scores::of(model, images.in_order(images.test_batch()));
    let (of_train, of_test) = (scores(train)?, scores(test)?);
    let mut loss = landscape(model, train)?;
    let worst = loss.sharpness(&Sam::new(kept.rho), 1)?;
    let mut hessian = loss
        .hessian()?
        .after_each(|| if stop.is_told() { Err(candle_core::Error::Msg("interrupted".to_owned())) } else { Ok(()) });
    let (spectrum, _) = Eigenvalues::of(&mut hessian, kept.order, 0)?;
    Ok(AtWeights {
        spectrum,
        sharpness: worst.highest - worst.at_w,
        train_loss: of_train.loss,
        test_loss: of_test.loss,
        train_error: of_train.error,
        test_error: of_test.error,
    })
}

fn log_of(run: &Run) -> std::path::PathBuf {
    run.folder.join("hessian.jsonl")
}

fn name_of(epoch: f64) -> String {
    format!("epoch {epoch}")
}

/// What the values of a run depend on.
fn about(run: &Run, kept: &Kept) -> Result<Value> {
    let digests: Result<Vec<_>> = run.kept_weights().iter().map(|(_, path)| digest_of(path)).collect();
    Ok(json!({ "images": kept.images, "order": kept.order, "rho": kept.rho, "weights": digests? }))
}

/// Some weights of a cell, of all seeds.
#[derive(Serialize)]
pub(super) struct Place {
    pub(super) cell: String,
    /// The index in `keep-epochs`.
    pub(super) index: usize,
    pub(super) epoch: f64,
    pub(super) paper_epoch: f64,
    /// λ₁ and λ₁ / λ₅
    pub(super) paper: Option<[f64; 2]>,
    /// One for each seed.
    pub(super) found: Vec<AtWeights>,
}

/// All weights of a table with what was measured there.
pub(super) fn places(table: &Table, kept: &Kept, settings: &Settings) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for cell in &table.cells {
        // Recipes of other cells may be invalid with these settings.
        if let Ok(recipe) = settings.recipe(cell) {
            of_cell(table, cell, &recipe.keep_epochs, kept, settings, &mut places)?;
        }
    }
    Ok(places)
}

fn of_cell(
    table: &Table,
    cell: &Cell,
    epochs: &[f64],
    kept: &Kept,
    settings: &Settings,
    places: &mut Vec<Place>,
) -> Result<()> {
    let short = cell.name.strip_prefix(&format!("{}/", table.name)).unwrap_or(&cell.name).to_owned();
    let published = cell.changes.recipe(&crate::recipe::Scale::default())?.keep_epochs;
    let start = places.len();
    places.extend(epochs.iter().enumerate().map(|(index, epoch)| Place {
        cell: short.clone(),
        index,
        epoch: *epoch,
        paper_epoch: published.get(index).copied().unwrap_or(*epoch),
        paper: kept.paper.get(&short).and_then(|pairs| pairs.get(index)).copied(),
        found: Vec::new(),
    }));
    for seed in 0..settings.seeds {
        let run = settings.run(cell, seed)?;
        if !matches!(run.ended(), Ok(Some(Ended::Trained(_)))) || !log_of(&run).is_file() {
            continue;
        }
        let path = log_of(&run);
        let known = PointLog::read(&path, &about(&run, kept)?)?;
        for place in &mut places[start..] {
            if let Some(value) = known.get(&name_of(place.epoch)) {
                let value = serde_json::from_value(value.clone());
                place.found.push(value.with_context(|| format!("{} has values of another form", path.display()))?);
            }
        }
    }
    Ok(())
}
