//! Single runs: where they lie, whether they are done, and how one is done.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::compute::Place;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Lock;
use crate::recipe::{Cell, Changes, Recipe, Scale};
use crate::report::write_whole;
use crate::trainer::{Data, Job, Next, Outcome, Status, difference};

/// What all runs of a table have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where data sets lie.
    pub data: Option<PathBuf>,
    /// Where to train.
    pub place: Place,
    /// Where everything goes.
    pub out: PathBuf,
    /// How much smaller runs are than the paper's.
    pub scale: Scale,
    /// What recipes are told beyond that, `key = value` in TOML.
    pub set: Vec<String>,
    /// How many seeds there are, from 0.
    pub seeds: u64,
    /// Steps between checkpoints.
    pub every: usize,
    /// After this time without a sign of life a run is another's no more.
    pub stale: Duration,
}

impl Settings {
    /// Scale and further settings in one word, or `full`: the folder of such runs.
    #[must_use]
    pub fn tag(&self) -> String {
        let mut parts = vec![self.scale.to_string()];
        if !self.set.is_empty() {
            parts.retain(|part| part != "full");
        }
        let word = |set: &String| set.chars().filter(|c| !c.is_whitespace() && !"\"'/\\".contains(*c)).collect();
        parts.extend(self.set.iter().map(word));
        parts.join(",")
    }

    /// Whether runs are those of the paper, and not smaller or other ones.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.tag() == "full"
    }

    fn folder(&self, cell: &Cell, seed: u64) -> PathBuf {
        self.out.join(self.tag()).join(&cell.name).join(format!("seed-{seed}"))
    }

    /// The recipe of a cell, scaled and told the rest.
    ///
    /// # Errors
    /// If it is none.
    pub fn recipe(&self, cell: &Cell) -> Result<Recipe> {
        Changes::parse("--set", &self.set.join("\n"))?.or(&cell.changes).recipe(&self.scale)
    }

    /// A run of a cell.
    ///
    /// # Errors
    /// If its recipe is none.
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
    /// What to do.
    pub recipe: Recipe,
    /// Everything random comes from here.
    pub seed: u64,
    /// Where its files are.
    pub folder: PathBuf,
}

/// What came of the wish to do a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// It had been done before.
    Done(Outcome),
    /// It was done now.
    Finished(Outcome),
    /// Somebody else is doing it.
    Taken,
    /// It was told to stop, and everything is saved.
    Stopped,
}

/// The file that says that a run is done.
#[derive(Debug, Serialize, Deserialize)]
struct Done<R> {
    cell: String,
    seed: u64,
    recipe: R,
    outcome: Outcome,
}

impl Run {
    /// What it came to, if it is done.
    ///
    /// # Errors
    /// If the file cannot be read, or is that of another recipe.
    pub fn outcome(&self) -> Result<Option<Outcome>> {
        let path = self.folder.join("result.json");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let done: Done<serde_json::Value> =
            serde_json::from_str(&text).with_context(|| format!("{} is damaged: remove it", path.display()))?;
        // Through text, as the other one.
        let recipe: serde_json::Value = serde_json::from_str(&serde_json::to_string(&self.recipe)?)?;
        ensure!(
            done.recipe == recipe,
            "{} is of another recipe: remove it, or choose another folder; {}",
            path.display(),
            difference(&done.recipe.to_string(), &recipe.to_string())
        );
        Ok(Some(done.outcome))
    }

    /// Does it, unless it is done or somebody else's.
    ///
    /// # Errors
    /// If the data is not there, or the training fails.
    pub fn do_it(&self, settings: &Settings, mut tell: impl FnMut(&Status) -> Result<Next>) -> Result<Found> {
        if let Some(outcome) = self.outcome()? {
            return Ok(Found::Done(outcome));
        }
        let Some(lock) = Lock::take(&self.folder, settings.stale)? else { return Ok(Found::Taken) };
        // It may have been done while the lock was taken.
        if let Some(outcome) = self.outcome()? {
            return Ok(Found::Done(outcome));
        }
        let data = Data::load(&self.recipe, settings.data.as_deref(), self.seed, &settings.place.device)?;
        let job = Job {
            recipe: &self.recipe,
            seed: self.seed,
            data: &data,
            place: &settings.place,
            weights: settings.data.as_deref(),
            folder: &self.folder,
            every: settings.every,
            keep_weights: false,
        };
        let outcome = job.run(|status| {
            lock.check()?;
            tell(status)
        })?;
        let Some(outcome) = outcome else { return Ok(Found::Stopped) };
        lock.check_file()?;
        self.write(&outcome)?;
        remove(&job.checkpoint())?;
        Ok(Found::Finished(outcome))
    }

    fn write(&self, outcome: &Outcome) -> Result<()> {
        let (cell, recipe, outcome) = (self.cell.clone(), &self.recipe, outcome.clone());
        let done = Done { cell, seed: self.seed, recipe, outcome };
        let text = serde_json::to_string_pretty(&done)? + "\n";
        write_whole(&self.folder.join("result.json"), text.as_bytes())
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
