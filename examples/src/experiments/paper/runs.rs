//! Single runs of a table: their folders, their results, and how one is run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::io::atomic::write_atomic;
use crate::io::lease::{Holder, Lease, Take};
use crate::recipe::{Cell, Recipe, Scale};
use crate::trainer::{Data, Diverged, Job, Next, Outcome, Session, Status, difference, is_ours, kept_weights};
use crate::util::device::DeviceConfig;
use crate::util::stop::Stop;

/// The settings of all runs of a table.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the data sets.
    pub data: Option<PathBuf>,
    /// Where to train.
    pub device: DeviceConfig,
    /// The folder of all results.
    pub out: PathBuf,
    /// How runs are scaled down.
    pub scale: Scale,
    /// Further settings of all recipes, `key = value` in TOML.
    pub set: Vec<String>,
    /// The number of seeds, from 0.
    pub seeds: u64,
    /// Steps between checkpoints.
    pub every: usize,
    /// The time without a heartbeat after which a lease expires.
    pub stale: Duration,
}

impl Settings {
    /// The label of scaled or changed runs; empty for others.
    #[must_use]
    pub fn scaled(&self) -> String {
        self.scale.with(&self.set)
    }

    /// The name of the folder of such runs: the label or `full`, and the device, if it is not the CPU in f32.
    #[must_use]
    pub fn tag(&self) -> String {
        let scaled = Some(self.scaled()).filter(|scaled| !scaled.is_empty()).unwrap_or_else(|| "full".to_owned());
        let device = if self.device.is_default() { String::new() } else { format!(",{}", self.device) };
        scaled + &device
    }

    fn folder(&self, cell: &Cell, seed: u64) -> PathBuf {
        self.out.join(self.tag()).join(&cell.name).join(format!("seed-{seed}"))
    }

    /// The recipe of a cell, scaled, with the further settings.
    ///
    /// # Errors
    /// If it is invalid.
    pub fn recipe(&self, cell: &Cell) -> Result<Recipe> {
        cell.changes.recipe_with(&self.set, &self.scale)
    }

    /// A run of a cell.
    ///
    /// # Errors
    /// If its recipe is invalid.
    pub fn run(&self, cell: &Cell, seed: u64) -> Result<Run> {
        let recipe = self.recipe(cell).with_context(|| cell.name.clone())?;
        Ok(Run { cell: cell.name.clone(), recipe, seed, folder: self.folder(cell, seed) })
    }
}

/// One training of one cell.
#[derive(Clone, Debug)]
pub struct Run {
    /// The cell's name.
    pub cell: String,
    /// The recipe.
    pub recipe: Recipe,
    /// The seed of everything random.
    pub seed: u64,
    /// Where its files are.
    pub folder: PathBuf,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ended {
    /// With a model.
    Trained(Outcome),
    /// With a loss or a gradient that is not finite. It is not tried again: it would do the same.
    Diverged {
        /// Where and how.
        diverged: String,
    },
}

/// The outcome of attempting a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// It had finished before.
    Done(Ended),
    /// It has finished now.
    Finished(Ended),
    /// Another process runs it.
    Taken(Holder),
    /// It was stopped, and everything is saved.
    Stopped,
}

/// Why a result file cannot be used for this run.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is of a run with the same name and another recipe.
    #[error("{} was produced by another recipe: remove it, or choose another folder; {difference}", path.display())]
    AnotherRecipe {
        /// The file.
        path: PathBuf,
        /// Where the recipes differ first.
        difference: String,
    },
    /// It is the result of another run.
    #[error("{} is the result of {found}, expected that of {expected}: it was copied here; remove it", path.display())]
    AnotherRun {
        /// The file.
        path: PathBuf,
        /// The cell and seed that it names.
        found: String,
        /// Those of the run.
        expected: String,
    },
    /// It is not a valid result.
    #[error("{} is damaged: remove it; {error}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// It cannot be read.
    #[error("cannot read {}; {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl Unusable {
    /// The mark in a table in place of a number.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::AnotherRecipe { .. } => "another recipe",
            Self::AnotherRun { .. } => "another run",
            Self::Damaged { .. } => "damaged",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

/// The result file of a run.
#[derive(Debug, Serialize, Deserialize)]
struct Done<R> {
    cell: String,
    seed: u64,
    recipe: R,
    outcome: Ended,
}

impl Run {
    /// Whether it reads something in the data folder, or the text that is named in its place.
    #[must_use]
    pub fn reads(&self, folder: &Path) -> bool {
        self.recipe.reads_data_folder() || (self.recipe.model.is_for_text() && folder.is_file())
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// If the file cannot be read, or is that of another recipe.
    pub fn ended(&self) -> Result<Option<Ended>, Unusable> {
        let path = self.folder.join("result.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unusable::Unreadable { path, error }),
            Ok(text) => text,
        };
        let both = serde_json::to_string(&self.recipe).and_then(|recipe| Ok((recipe, serde_json::from_slice(&text)?)));
        let (recipe, done): (String, Done<serde_json::Value>) = match both {
            Ok(both) => both,
            Err(error) => return Err(Unusable::Damaged { path, error }),
        };
        let run = |cell: &str, seed: u64| format!("{cell} seed {seed}");
        let (found, expected) = (run(&done.cell, done.seed), run(&self.cell, self.seed));
        if found != expected {
            return Err(Unusable::AnotherRun { path, found, expected });
        }
        match difference(&done.recipe.to_string(), &recipe) {
            Some(difference) => Err(Unusable::AnotherRecipe { path, difference }),
            None => Ok(Some(done.outcome)),
        }
    }

    /// Runs it, unless it has finished or another process runs it.
    ///
    /// # Errors
    /// If the data is missing, or the training fails other than by diverging.
    pub fn do_it(
        &self,
        settings: &Settings,
        stop: &Stop,
        mut tell: impl FnMut(&Status) -> Result<Next>,
    ) -> Result<Found> {
        if let Some(ended) = self.ended()? {
            return Ok(Found::Done(ended));
        }
        let lease = match Lease::take(&self.folder, settings.stale)? {
            Take::Ours(lease) => lease,
            Take::Others(holder) => return Ok(Found::Taken(holder)),
        };
        // It may have finished while the lease was taken.
        if let Some(ended) = self.ended()? {
            return Ok(Found::Done(ended));
        }
        lease.sweep(is_ours)?;
        // Other cells may need the folder.
        let folder = settings.data.as_deref().filter(|folder| self.reads(folder));
        let data =
            stop.while_nothing_is_to_save(|| Data::load(&self.recipe, folder, self.seed, &settings.device.device))?;
        let job = Job {
            recipe: &self.recipe,
            seed: self.seed,
            data: &data,
            device: &settings.device,
            weights: folder,
            folder: &self.folder,
            every: settings.every,
            report: 0,
            keep_weights: false,
            scaled: settings.scaled(),
        };
        let session = Session { stop: stop.clone(), ..Session::default() };
        let outcome = job.run_in(&session, |status| {
            lease.check()?;
            tell(status)
        });
        let ended = match outcome {
            Ok(Some(outcome)) => Ended::Trained(outcome),
            Ok(None) => return Ok(Found::Stopped),
            Err(error) => Ended::Diverged { diverged: error.downcast::<Diverged>()?.to_string() },
        };
        lease.check_file()?;
        self.write(&ended)?;
        remove(&job.checkpoint())?;
        Ok(Found::Finished(ended))
    }

    /// The epochs whose weights it keeps, and their files.
    #[must_use]
    pub fn kept_weights(&self) -> Vec<(f64, PathBuf)> {
        let file = |at: &f64| (*at, self.folder.join(kept_weights(*at)));
        self.recipe.keep_epochs.iter().map(file).collect()
    }

    fn write(&self, ended: &Ended) -> Result<()> {
        let done = Done { cell: self.cell.clone(), seed: self.seed, recipe: &self.recipe, outcome: ended.clone() };
        let text = serde_json::to_string_pretty(&done)? + "\n";
        write_atomic(&self.folder.join("result.json"), text.as_bytes())
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
