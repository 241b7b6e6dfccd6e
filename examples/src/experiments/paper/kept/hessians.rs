//! Spectrum of the Hessian, sharpness and generalization gap at all weights that were kept (Figure 3).

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use sam_runtime::Sam;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::chart;
use crate::data::ImageSet;
use crate::experiments::hessian::{Eigenvalues, landscape};
use crate::experiments::landscape::{PointLog, digest_of};
use crate::experiments::paper::runs::{Ended, Run, Settings};
use crate::io::atomic::write_atomic;
use crate::io::lease::{Holder, Lease, Take};
use crate::io::table::align;
use crate::metrics::{Mean, Scores};
use crate::models::Model;
use crate::recipe::{Cell, Kept, KeptMeasure, Table};
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
    train_error: f64,
    test_error: f64,
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
    paper_epoch: f64,
    /// λ₁ and λ₁ / λ₅
    paper: Option<[f64; 2]>,
    /// One for each seed.
    pub(super) found: Vec<AtWeights>,
}

fn places(table: &Table, kept: &Kept, settings: &Settings) -> Result<Vec<Place>> {
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

/// Writes what was measured as Markdown, JSON and PNG, and returns the text; empty if nothing was.
///
/// # Errors
/// If a file cannot be read or written.
pub(in crate::experiments::paper) fn write(table: &Table, settings: &Settings, foot: &[String]) -> Result<String> {
    let Some(kept) = table.kept.as_ref().filter(|kept| kept.measure == KeptMeasure::Hessian) else {
        return Ok(String::new());
    };
    let mut places = places(table, kept, settings)?;
    places.retain(|place| !place.found.is_empty());
    if places.is_empty() {
        return Ok(String::new());
    }
    let text = markdown(table, kept, &places);
    let path = |extension: &str| settings.out.join(settings.tag()).join(format!("{}-hessian.{extension}", table.name));
    write_atomic(&path("md"), text.as_bytes())?;
    let mut values = serde_json::to_value(&places)?;
    // The picture shows the densities; the values are enough for the rest.
    for found in values.as_array_mut().into_iter().flatten().filter_map(|place| place["found"].as_array_mut()).flatten()
    {
        if let Some(spectrum) = found["spectrum"].as_object_mut() {
            spectrum.remove("density");
        }
    }
    let all = json!({ "table": table.name, "scale": settings.tag(), "images": kept.images, "places": values });
    write_atomic(&path("json"), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    chart::draw(&path("png"), &places, foot)?;
    Ok(text)
}

fn markdown(table: &Table, kept: &Kept, places: &[Place]) -> String {
    let head = [
        "epoch",
        "paper's epoch",
        "network",
        "paper, λ₁",
        "ours, λ₁",
        "paper, λ₁ / λ₅",
        "ours, λ₁ / λ₅",
        "sharpness",
        "training error in %",
        "test error in %",
        "n",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut by_epoch: Vec<&Place> = places.iter().collect();
    by_epoch.sort_by_key(|place| place.index);
    for place in by_epoch {
        let mean = |of: fn(&AtWeights) -> Option<f64>, digits: usize| {
            let values: Vec<f64> = place.found.iter().filter_map(of).collect();
            if values.is_empty() {
                return String::new();
            }
            let Mean { mean, interval } = Mean::of(&values);
            let interval = interval.map_or_else(String::new, |interval| format!(" ± {interval:.digits$}"));
            format!("{mean:.digits$}{interval}")
        };
        let paper = |i: usize| place.paper.map_or_else(String::new, |paper| format!("{:.1}", paper[i]));
        rows.push(vec![
            place.epoch.to_string(),
            place.paper_epoch.to_string(),
            place.cell.clone(),
            paper(0),
            mean(|found| found.spectrum.values.first().copied(), 1),
            paper(1),
            mean(|found| found.spectrum.ratio(), 1),
            mean(|found| Some(found.sharpness), 3),
            mean(|found| Some(100.0 * found.train_error), 1),
            mean(|found| Some(100.0 * found.test_error), 1),
            place.found.len().to_string(),
        ]);
    }
    let heading = table.title.split_once(": ").map_or(&*table.title, |(heading, _)| heading);
    let mut text = format!("# {heading}: the Hessian, and sharpness against generalization\n\n{}", align(&rows));
    let (mut of_sharpness, mut of_largest) = (Vec::new(), Vec::new());
    for index in 0..=places.iter().map(|place| place.index).max().unwrap_or(0) {
        let here: Vec<_> = places.iter().filter(|place| place.index == index).flat_map(|place| &place.found).collect();
        let gaps: Vec<f64> = here.iter().map(|found| found.gap()).collect();
        let rank = |of: fn(&AtWeights) -> f64| {
            format!("{:.2}", kendall(&here.iter().map(|found| of(found)).collect::<Vec<_>>(), &gaps))
        };
        of_sharpness.push(rank(|found| found.sharpness));
        of_largest.push(rank(|found| found.spectrum.values.first().copied().unwrap_or_default()));
    }
    let error = places.iter().flat_map(|place| &place.found).map(|found| found.spectrum.error).fold(0.0, f64::max);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "\nOn the first {} training images, and as many test images. Sharpness: L(w + ε̂) - L(w) with ρ = {}. ± is the 95 % \
         interval of the mean over n seeds. Kendall's rank correlation with the generalization gap, test error minus training \
         error, among the networks of one epoch: {} of the sharpness, {} of λ₁, in the order of the epochs. Products with the \
         Hessian have a relative error of {error:.0e} at most.",
        kept.images,
        kept.rho,
        of_sharpness.join(", "),
        of_largest.join(", "),
    );
    text
}

/// Kendall's rank correlation: the share of pairs in one order minus that of pairs in opposite orders.
fn kendall(x: &[f64], y: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..x.len() {
        for j in 0..i {
            let product = (x[i] - x[j]) * (y[i] - y[j]);
            sum += if product == 0.0 { 0.0 } else { product.signum() };
        }
    }
    let pairs = (x.len() * x.len().saturating_sub(1) / 2).max(1);
    sum / pairs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlations() {
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[0.1, 0.2, 7.0]), 1.0);
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(kendall(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 4.0, 3.0]), 4.0 / 6.0);
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
        assert_eq!(kendall(&[], &[]), 0.0);
    }
}
