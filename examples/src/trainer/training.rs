//! The state of a training: how it starts, resumes and is saved.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use sam_runtime::distributed::Comm;
use sam_runtime::{Sam, StepStats};
use serde_json::json;

use super::checkpoint::{Checkpoint, Progress, bytes_tensor};
use super::ema::Average;
use super::job::{Job, Session};
use super::label_state::LabelState;
use super::optimizer::Optimizer;
use super::outcome::Diverged;
use super::phase_length::{PhaseLength, phase_images};
use super::ranks;
use super::recipe_diff::difference;
use super::run_dir::{is_ours, remove_end, remove_results};
use super::setup::{build_sam, fresh_model, last_fresh, optimizer};
use super::weights::put;
use crate::data::ImageSet;
use crate::io::jsonl::{Extent, Log, Resumable};
use crate::io::tensorboard::Events;
use crate::models::Model;
use crate::models::params::{named, trained_vars};
use crate::noisy_labels::{MethodState, Phase, Start, TrainSubset};
use crate::recipe::Recipe;
use crate::util::stop::Stop;

/// A training in progress.
pub(super) struct Training<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) stop: Stop,
    pub(super) world: Comm,
    pub(super) phases: Vec<Phase>,
    pub(super) sam: Sam,
    pub(super) progress: Progress,
    pub(super) labels: LabelState,
    pub(super) model: Model,
    pub(super) optimizer: Optimizer,
    pub(super) average: Option<Average>,
    /// The initial weights of a later phase, if one needs them.
    pub(super) kept: BTreeMap<String, Tensor>,
    /// Of the last step that was read; NaN before the first.
    pub(super) loss: f64,
    pub(super) sharpness: Option<f64>,
    pub(super) unread: Option<Unread>,
    /// Of rank 0.
    pub(super) files: Option<Files>,
    pub(super) began: Instant,
}

/// The files that a training adds to.
pub(super) struct Files {
    pub(super) log: Log,
    pub(super) events: Events,
}

/// The loss and statistics of a step that have not been read from the device.
pub(super) struct Unread {
    pub(super) step: usize,
    pub(super) loss: Tensor,
    pub(super) last: Option<StepStats>,
}

/// L(w + ε̂) - L(w) of a step, if it has evaluated both.
fn rise(last: &StepStats) -> Result<Option<f64>> {
    Ok(last.perturbed_loss()?.zip(last.loss()?).map(|(perturbed, loss)| perturbed - loss))
}

impl<'a> Training<'a> {
    /// Starts or resumes a training.
    pub(super) fn begin(job: &'a Job<'a>, session: &Session) -> Result<Self> {
        let (recipe, world) = (job.recipe, &session.world);
        let words = job.words()?;
        ranks::check_same(&words, world)?;
        let (mut checkpoint, path) = job.saved(session, &words)?.unzip();
        let mut progress = checkpoint.as_ref().map_or_else(Progress::default, |checkpoint| checkpoint.progress.clone());
        let before = std::mem::replace(&mut progress.recipe, words);
        let train = &job.data.train;
        let phases = recipe.method.phases();
        let model = fresh_model(job, last_fresh(&phases, progress.phase))?;
        let mut optimizer = optimizer(recipe, &model)?;
        let sam = build_sam(job, &model, progress.phase)?;
        let mut labels = LabelState {
            labels: train.labels().to_vec(),
            kept: train.indices().to_vec(),
            selected: Vec::new(),
            state: MethodState::default(),
        };
        let mut average = Average::of(recipe.ema, &model)?;
        let mut kept = BTreeMap::new();
        if let Some(checkpoint) = &mut checkpoint {
            let mut restore = || -> Result<()> {
                ranks::take_own_state(checkpoint, world)?;
                labels = LabelState::from_tensors(checkpoint.take("plan/"), train.labels().len(), job.data.classes)?;
                let phase = &phases[progress.phase];
                labels.state.check(recipe.method, train.labels().len(), phase.record && progress.step > 0)?;
                kept = checkpoint.take("kept/");
                if !kept.is_empty() || (phase.start == Start::Kept && progress.step == 0) {
                    // A later phase starts from them.
                    put(&kept, model.vars(), |_| true).context("the weights that an earlier phase has kept")?;
                }
                put(&checkpoint.take("weight/"), model.vars(), |_| true)?;
                let vars = model.vars();
                optimizer.load_bytes(vars, &state(checkpoint, optimizer.name())?)?;
                // A phase with new weights keeps nothing of the one before, at whose end this checkpoint was written.
                if progress.step > 0 || phases[progress.phase].start != Start::New {
                    sam.load_bytes(vars, &state(checkpoint, "sam")?)?;
                }
                // Before the first step of a phase there is none yet: `start_phase` makes it.
                if let Some(average) = average.as_mut().filter(|_| progress.step > 0) {
                    average.restore(checkpoint.take("average/"))?;
                }
                Ok(())
            };
            let path = path.as_deref().unwrap_or(job.folder);
            restore().with_context(|| format!("cannot resume from {}", path.display()))?;
        }
        let phase = &phases[progress.phase];
        let images = phase_images(job, &labels, phase.images, &session.stop)?;
        let is_last = progress.phase + 1 == phases.len();
        let length = PhaseLength::of(recipe, phase, &images);
        let difference = difference(&before, &progress.recipe).filter(|_| checkpoint.is_some());
        if difference.is_some() && progress.stopped_early {
            let place = path.as_deref().unwrap_or(job.folder);
            goes_on(recipe, length, &mut progress).with_context(|| format!("cannot prolong {}", place.display()))?;
        }
        length.check(recipe, &progress, is_last)?;
        ranks::check(recipe, length.batch, world)?;
        check_kept(recipe, &phases, train)?;
        if session.overwrite {
            check_start(job)?;
        }
        world.broadcast_vars(trained_vars(model.vars()))?;
        // Nothing is written or removed before everything has been checked.
        let ends = progress.step >= length.steps || progress.stopped_early;
        let is_own = path.as_ref().is_none_or(|path| *path == job.checkpoint());
        let (files, is_new) = if world.rank() == 0 {
            let (files, is_new) = Files::open(job, session, &progress, is_own, ends)?;
            (Some(files), is_new)
        } else {
            (None, false)
        };
        let mut training = Self {
            job,
            stop: session.stop.clone(),
            world: world.clone(),
            phases,
            sam,
            labels,
            optimizer,
            average,
            kept,
            model,
            loss: f64::NAN,
            sharpness: None,
            unread: None,
            files,
            progress,
            began: Instant::now(),
        };
        if is_new {
            let mut line = json!({ "recipe": recipe, "seed": job.seed, "data": job.data.name, "scaled": job.scaled });
            if world.size() > 1 {
                line["ranks"] = json!(world.size());
            }
            training.note(&line)?;
            if let Some(files) = &mut training.files {
                files.events.say("recipe", &line.to_string())?;
            }
        }
        if let Some(difference) = difference {
            training.note(&json!({ "step": training.progress.step, "prolonged": difference }))?;
        }
        Ok(training)
    }

    /// Adds a line to the log.
    pub(super) fn note(&mut self, line: &serde_json::Value) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.log.add(line))
    }

    /// Adds values of this step to the event file.
    pub(super) fn add_event(&mut self, values: &[(&str, f64)]) -> Result<()> {
        let steps = self.progress.steps;
        self.files.as_mut().map_or(Ok(()), |files| files.events.add(steps, values))
    }

    /// Saves everything. All ranks call it, and rank 0 writes.
    pub(super) fn save(&mut self) -> Result<()> {
        self.read()?;
        if let Some(files) = &mut self.files {
            Extent { bytes: self.progress.log, digest: self.progress.log_digest } = files.log.sync()?;
            Extent { bytes: self.progress.events, digest: self.progress.events_digest } = files.events.sync()?;
        }
        let progress =
            Progress { seconds: self.progress.seconds + self.began.elapsed().as_secs_f64(), ..self.progress.clone() };
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), progress };
        checkpoint.put("plan/", self.labels.tensors()?);
        checkpoint
            .put("weight/", named(self.model.vars()).into_iter().map(|(name, var)| (name, var.as_tensor().clone())));
        checkpoint.put("kept/", self.kept.clone());
        let vars = self.model.vars();
        for (name, bytes) in
            [(self.optimizer.name(), self.optimizer.to_bytes(vars)?), ("sam", self.sam.to_bytes(vars)?)]
        {
            checkpoint.put("", [(name.to_owned(), bytes_tensor(bytes)?)]);
        }
        if let Some(average) = &self.average {
            checkpoint.put("average/", average.tensors()?);
        }
        ranks::put_own_state(&mut checkpoint, vars, self.average.as_ref(), &self.sam, &self.world)?;
        self.world.check_replicas(trained_vars(vars))?;
        if self.files.is_some() { checkpoint.save(&self.job.checkpoint()) } else { Ok(()) }
    }

    /// Reads the loss and statistics of the last step, which synchronizes with the device. On a GPU the next step is enqueued
    /// before.
    pub(super) fn read(&mut self) -> Result<()> {
        let Some(Unread { step, loss, last }) = self.unread.take() else { return Ok(()) };
        self.loss = self.world.mean(loss.to_scalar::<f32>()?.into())?;
        if !self.loss.is_finite() {
            return Err(Diverged { step, what: format!("the loss is {}", self.loss) }.into());
        }
        self.sharpness = ranks::mean_of_some(last.map_or(Ok(None), |last| rise(&last))?, &self.world)?;
        self.progress.loss = (f64::from(self.progress.loss) + self.loss).into();
        if let Some(rise) = self.sharpness {
            self.progress.sharpness = Some((self.progress.sharpness.map_or(0.0, f64::from) + rise).into());
        }
        Ok(())
    }

    /// The current phase.
    pub(super) fn phase(&self) -> Phase {
        self.phases[self.progress.phase]
    }

    pub(super) fn is_last_phase(&self) -> bool {
        self.progress.phase + 1 == self.phases.len()
    }

    /// Runs something that iterates over many images and changes nothing before its end. If the process is told to stop
    /// meanwhile, saves everything as it was before and returns `None`.
    pub(super) fn interruptible<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<Option<R>> {
        match f(self) {
            Err(error) if self.stop.is_why(&error) => self.save().map(|()| None),
            result => result.map(Some),
        }
    }

    /// The images and labels of a phase.
    pub(super) fn images(&self, subset: TrainSubset) -> Result<ImageSet> {
        phase_images(self.job, &self.labels, subset, &self.stop)
    }
}

impl Files {
    /// Opens the files where a training resumes, or starts them anew. The results of another one are removed where it says so,
    /// and those that a longer one would make stale. Also whether the log is new.
    fn open(job: &Job<'_>, session: &Session, progress: &Progress, is_own: bool, ends: bool) -> Result<(Self, bool)> {
        // The log of a checkpoint in another folder stays there.
        let (log, events) = (job.folder.join("log.jsonl"), job.folder.join("events.out.tfevents"));
        let old_log = if is_own { resumable(&log, progress.log, &progress.log_digest)? } else { None };
        let old_events = if is_own { resumable(&events, progress.events, &progress.events_digest)? } else { None };
        let is_new = old_log.is_none();
        if session.overwrite {
            remove_results(job.folder)?;
        } else if job.keep_weights && !ends {
            // They would look like the results of the longer training.
            remove_end(job.folder)?;
        }
        let log = old_log.map_or_else(|| Log::restart(&log), Resumable::cut)?;
        let events = old_events.map_or_else(|| Events::restart(&events), |old| old.cut().map(Events::resume))?;
        Ok((Self { log, events }, is_new))
    }
}

/// Asks the patience of another recipe whether a training that stopped early goes on.
fn goes_on(recipe: &Recipe, length: PhaseLength, progress: &mut Progress) -> Result<()> {
    progress.stopped_early = length.stops_early(recipe.patience, progress);
    ensure!(
        !progress.stopped_early,
        "the training stopped early in epoch {}: set `patience` to 0, or to more than {}",
        length.epoch(progress.step),
        recipe.patience
    );
    Ok(())
}

/// Checks at the beginning that the last phase reaches the epochs whose weights are to be kept. Its images are not known yet, but its
/// epochs do not depend on them.
fn check_kept(recipe: &Recipe, phases: &[Phase], train: &ImageSet) -> Result<()> {
    let last = phases.last().filter(|_| recipe.steps == 0);
    last.map_or(Ok(()), |last| PhaseLength::of(recipe, last, train).check_kept(recipe))
}

/// A log or event file with the bytes that it had when the checkpoint was saved; `None` if there is none.
fn resumable(path: &Path, bytes: u64, digest: &str) -> Result<Option<Resumable>> {
    if bytes == 0 {
        return Ok(None);
    }
    Log::resumable(path, &Extent { bytes, digest: digest.to_owned() })
}

/// Checks that the initial weights are not among the files that are removed before the first write.
fn check_start(job: &Job<'_>) -> Result<()> {
    let Some(start) = job.start_file()?.and_then(|path| path.canonicalize().ok()) else { return Ok(()) };
    let is_in_the_folder = job.folder.canonicalize().is_ok_and(|folder| start.parent() == Some(folder.as_path()));
    let is_removed = start.file_name().and_then(|name| name.to_str()).is_some_and(is_ours);
    ensure!(
        !(is_in_the_folder && is_removed),
        "`start` is {}, which --overwrite would remove: copy it elsewhere, or choose another --out",
        start.display()
    );
    Ok(())
}

/// The bytes of a state in a checkpoint.
fn state(checkpoint: &mut Checkpoint, name: &str) -> Result<Vec<u8>> {
    let tensor = checkpoint.tensors.remove(name).with_context(|| format!("the checkpoint has no `{name}`"))?;
    Ok(tensor.to_vec1()?)
}
