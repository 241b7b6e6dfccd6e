//! A trainer that one can leave alone: it logs, saves everything every so often and when it is told to stop, and goes on
//! with the same bits.
//!
//! The step is the same for SGD and for SAM: the loop asks a method for a loss, and that has the attribute. Of SAM it only saves the
//! state, and logs by how much the loss rises.

mod bn_stats;
mod checkpoint;
mod data;
mod ema;
mod epochs_csv;
mod orders;
mod run_dir;
mod schedule;
mod weights;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer as _;
use sam_runtime::nn::{self, l2_penalty};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Last, Sam};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::bn_stats::Statistics;
pub(crate) use self::checkpoint::difference;
pub use self::checkpoint::{Checkpoint, Place};
use self::checkpoint::{Plan, differences};
pub use self::data::Data;
use self::ema::Average;
use self::orders::Orders;
pub use self::run_dir::{Begin, Held, has_results};
pub(crate) use self::run_dir::{files, is_left_of, is_ours};
pub use self::schedule::{Shape, rate};
use self::weights::put;
pub use self::weights::{About, load_weights};
use crate::data::loader::{Batch, Source};
use crate::experiments::compare::report::Log;
use crate::experiments::compare::tutorial::error_rate;
use crate::io::tensorboard::Events;
use crate::losses::{Examples, Objective, trained, trained_vars};
use crate::models::Model;
use crate::noisy_labels::{
    Images, Memory, Stage, Start, Then, discriminate, losses, predictions, step_rng, without_worst,
};
use crate::recipe::Recipe;
use crate::util::device;
use crate::util::numbers::count;
use crate::util::stop::Stop;

/// Images that are looked at together when a model is tested.
const TEST_BATCH: usize = 500;

/// How often a training is tested, at most.
const TESTS: usize = 20;

/// The least images that are trained on for each that is tested on.
const TRAINED_PER_TESTED: usize = 4;

/// How often an epoch writes to the log.
const LINES: usize = 10;

/// The random layers of a step take their numbers from here on, steps so far apart.
const DRAWS_PER_STEP: u64 = 1 << 20;

/// One training to do.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// What to train.
    pub recipe: &'a Recipe,
    /// Everything random comes from here.
    pub seed: u64,
    /// What to train and test on, of this seed.
    pub data: &'a Data,
    /// Where to train; the data is there.
    pub place: &'a device::Place,
    /// Where weights to begin with lie.
    pub weights: Option<&'a Path>,
    /// Where log, events and checkpoint go.
    pub folder: &'a Path,
    /// Steps between checkpoints; 0 for none but when it is told to stop.
    pub every: usize,
    /// Whether the last weights are written beside, for another recipe to begin with.
    pub keep_weights: bool,
    /// How the recipe is smaller than one that has a name, or another one; empty if it is not.
    pub scaled: String,
}

/// How far a training is.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// The training of the method's, from 0, and how many there are.
    pub stage: (usize, usize),
    /// Steps done in it, and how many there are.
    pub step: (usize, usize),
    /// The loss of the last step; on a device that works on its own, of the one before.
    pub loss: f64,
    /// Images a second, since it was taken up.
    pub throughput: f64,
    /// The last test error.
    pub test_error: Option<f64>,
}

/// Whether a training goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It does.
    GoOn,
    /// It saves everything and stops.
    Stop,
}

/// What a training is told beside its job.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// How it is told to stop, also while it tests.
    pub stop: Stop,
    /// A checkpoint of another folder to begin with, where there is none in its own.
    pub from: Option<PathBuf>,
    /// Whether a checkpoint of the same recipe but for its length may be gone on with.
    pub may_prolong: bool,
}

/// What a training has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The share of the test images that the last model gets wrong.
    pub test_error: f64,
    /// The share of those whose label is not among the five that the last model holds for likeliest; none where there are
    /// not more classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_5_error: Option<f64>,
    /// L(w + ε̂) - L(w) with the weight decay, on the last shard of a step, the mean over the last epoch; none where a step has not both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharpness: Option<f64>,
    /// The mean loss of the last epoch, without the weight decay: at w, or where a step has no pass there, at w + ε.
    pub loss: f64,
    /// Steps of all stages.
    pub steps: usize,
    /// Seconds of training and testing.
    pub seconds: f64,
    /// Numbers that are trained.
    pub parameters: usize,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// What was trained on.
    pub data: String,
    /// Where, and in which numbers; empty for f32 on the CPU.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// How the recipe was smaller than the one of its name, or another one; empty if it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scaled: String,
}

impl Outcome {
    /// For the end of a line: how it was scaled, or nothing.
    #[must_use]
    pub fn told(&self) -> String {
        if self.scaled.is_empty() { String::new() } else { format!(", scaled: {}", self.scaled) }
    }
}

/// A training that came to numbers that are not finite. It would come to them again: it is deterministic.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("step {step} diverged: {what}; try a lower learning rate, or `clip`")]
pub struct Diverged {
    /// The step of the stage.
    pub step: usize,
    /// What was not finite.
    pub what: String,
}

/// Whether a step was refused because a loss or a gradient is not finite. candle hands an error of others on as its text.
fn is_not_finite(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["no gradient was taken", "is not finite in variable", "the squared norm of the gradient is"]
        .iter()
        .any(|words| text.contains(words))
}

impl Job<'_> {
    /// Its checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.folder.join("checkpoint.safetensors")
    }

    /// The recipe, the seed and what is trained on, in words.
    fn words(&self) -> Result<String> {
        let mut words = serde_json::to_value(self.recipe)?;
        words["seed"] = json!(self.seed);
        words["training images"] = json!(self.data.train.len());
        words["data set"] = json!(self.data.digest);
        if !self.place.is_default() {
            words["place"] = json!(self.place.to_string());
        }
        Ok(words.to_string())
    }

    /// Trains, from the checkpoint if there is one. `tell` is called after each step; nothing comes back if it wants to
    /// stop.
    ///
    /// # Errors
    /// If a file cannot be read or written, if a checkpoint is of another training, or a loss is not finite
    /// ([`Diverged`]).
    pub fn run(&self, tell: impl FnMut(&Status) -> Result<Next>) -> Result<Option<Outcome>> {
        self.run_in(&Session::default(), tell)
    }

    /// As [`run`](Self::run), in a session that can be told to stop at any time.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_in(&self, session: &Session, mut tell: impl FnMut(&Status) -> Result<Next>) -> Result<Option<Outcome>> {
        let mut training = Training::begin(self, session)?;
        loop {
            if !training.train(&mut tell)? {
                return Ok(None);
            }
            if training.is_last_stage() {
                return training.conclude();
            }
            if training.interruptible(Training::end_stage)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// The checkpoint to begin with, if there is one. It is the right one: everything in it fits the job.
    fn saved(&self, session: &Session, words: &str) -> Result<Option<(Checkpoint, PathBuf)>> {
        let own = self.checkpoint();
        let path = match &session.from {
            _ if own.exists() => own,
            Some(other) => other.clone(),
            None => return Ok(None),
        };
        let checkpoint = Checkpoint::load(&path)?;
        let found = &checkpoint.place.recipe;
        let is_length = |key: &String| ["epochs", "steps", "stretch", "patience"].contains(&key.as_str());
        let different = differences(found, words);
        if let Some(difference) = difference(found, words)
            && !(session.may_prolong && different.iter().all(is_length))
        {
            let advice = if different == ["data set"] {
                "the images or labels have changed since: put them back, or begin again in another folder"
            } else {
                "begin again with --overwrite, or choose another folder"
            };
            bail!("{} is a checkpoint of another training: {advice}; {difference}", path.display())
        }
        let stages = self.recipe.method.stages().len();
        ensure!(
            checkpoint.place.stage < stages,
            "{} is at training {}: expected one of the {stages} of the method",
            path.display(),
            checkpoint.place.stage
        );
        ensure!(
            different.is_empty() || stages == 1,
            "{} cannot be prolonged: a method with {stages} trainings begins again with --overwrite",
            path.display()
        );
        Ok(Some((checkpoint, path)))
    }
}

/// A training under way.
struct Training<'a> {
    job: &'a Job<'a>,
    stop: Stop,
    stages: Vec<Stage>,
    sam: Sam,
    place: Place,
    plan: Plan,
    model: Model,
    sgd: Sgd,
    average: Option<Average>,
    /// The weights that a later training of the method's begins with, if there is one.
    kept: BTreeMap<String, Tensor>,
    /// Of the last step whose numbers were read; not a number before the first.
    loss: f64,
    sharpness: Option<f64>,
    unread: Option<Unread>,
    log: Log,
    events: Events,
    began: Instant,
}

impl<'a> Training<'a> {
    fn begin(job: &'a Job<'a>, session: &Session) -> Result<Self> {
        let recipe = job.recipe;
        let words = job.words()?;
        let (mut checkpoint, path) = job.saved(session, &words)?.unzip();
        let mut place = checkpoint.as_ref().map_or_else(Place::default, |checkpoint| checkpoint.place.clone());
        let before = std::mem::replace(&mut place.recipe, words);
        let train = &job.data.train;
        let stages = recipe.method.stages();
        let model = fresh_model(job, last_fresh(&stages, place.stage))?;
        let mut sgd = optimizer(recipe, &model)?;
        let sam = method(job, &model, place.stage)?;
        let mut plan = Plan {
            labels: train.labels().to_vec(),
            kept: train.places().to_vec(),
            selected: Vec::new(),
            memory: Memory::default(),
        };
        let mut average = Average::of(recipe.ema, &model)?;
        let mut kept = BTreeMap::new();
        if let Some(checkpoint) = &mut checkpoint {
            let mut restore = || -> Result<()> {
                plan = Plan::from_tensors(checkpoint.take("plan/"), train.labels().len(), job.data.classes)?;
                put(&checkpoint.take("weight/"), model.vars(), |_| true)?;
                kept = checkpoint.take("kept/");
                if stages[place.stage].start == Start::Kept && place.step == 0 {
                    ensure!(!kept.is_empty(), "the checkpoint has no kept weights");
                }
                let vars = model.vars();
                sgd.load_bytes(vars, &state(checkpoint, "sgd")?)?;
                // A stage that begins anew has nothing from the one before, whose end this is.
                if place.step > 0 || stages[place.stage].start != Start::New {
                    sam.load_bytes(vars, &state(checkpoint, "sam")?)?;
                }
                // Before a stage's first step there is none yet: `train` makes it.
                if let Some(average) = average.as_mut().filter(|_| place.step > 0) {
                    average.restore(checkpoint.take("average/"))?;
                }
                Ok(())
            };
            let path = path.as_deref().unwrap_or(job.folder);
            restore().with_context(|| format!("cannot go on from {}", path.display()))?;
        }
        // Nothing is written before all of the checkpoint is known to be right. A log of another folder stays there.
        let is_own = path.as_ref().is_none_or(|path| *path == job.checkpoint());
        let (log, events) = (job.folder.join("log.jsonl"), job.folder.join("events.out.tfevents"));
        let old = |after: u64| is_own && after > 0;
        let old_log = if old(place.log) { Log::resume(&log, place.log)? } else { None };
        let old_events = if old(place.events) { Events::resume(&events, place.events)? } else { None };
        let is_new = old_log.is_none();
        let mut training = Self {
            job,
            stop: session.stop.clone(),
            stages,
            sam,
            plan,
            sgd,
            average,
            kept,
            model,
            loss: f64::NAN,
            sharpness: None,
            unread: None,
            log: old_log.map_or_else(|| Log::restart(&log), Ok)?,
            events: old_events.map_or_else(|| Events::restart(&events), Ok)?,
            place,
            began: Instant::now(),
        };
        if is_new {
            let line = json!({ "recipe": recipe, "seed": job.seed, "data": job.data.name, "scaled": job.scaled });
            training.log.add(&line)?;
            training.events.say("recipe", &line.to_string())?;
        }
        if let Some(difference) = difference(&before, &training.place.recipe).filter(|_| checkpoint.is_some()) {
            training.log.add(&json!({ "step": training.place.step, "prolonged": difference }))?;
        }
        Ok(training)
    }

    /// Saves everything.
    fn save(&mut self) -> Result<()> {
        self.read()?;
        self.place.log = self.log.sync()?;
        self.place.events = self.events.sync()?;
        let place = Place { seconds: self.place.seconds + self.began.elapsed().as_secs_f64(), ..self.place.clone() };
        let mut checkpoint = Checkpoint { tensors: BTreeMap::new(), place };
        checkpoint.put("plan/", self.plan.tensors()?);
        checkpoint.put("weight/", self.all_vars().into_iter().map(|(name, var)| (name, var.as_tensor().clone())));
        checkpoint.put("kept/", self.kept.clone());
        let vars = self.model.vars();
        for (name, bytes) in [("sgd", self.sgd.to_bytes(vars)?), ("sam", self.sam.to_bytes(vars)?)] {
            let length = bytes.len();
            checkpoint.put("", [(name.to_owned(), Tensor::from_vec(bytes, length, &Device::Cpu)?)]);
        }
        if let Some(average) = &self.average {
            checkpoint.put("average/", average.tensors());
        }
        checkpoint.save(&self.job.checkpoint())
    }

    fn all_vars(&self) -> Vec<(String, Var)> {
        let vars = self.model.vars().data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// The training of the method's that is under way.
    fn stage(&self) -> Stage {
        self.stages[self.place.stage]
    }

    fn is_last_stage(&self) -> bool {
        self.place.stage + 1 == self.stages.len()
    }

    /// Runs something that looks at many images and changes nothing before it is done with them; if the process is told
    /// to stop meanwhile, everything is saved as it was before, and nothing comes back.
    fn interruptible<R>(&mut self, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<Option<R>> {
        match f(self) {
            Err(error) if self.stop.is_why(&error) => self.save().map(|()| None),
            result => result.map(Some),
        }
    }

    /// Trains one of the method's trainings to its end; false if it is to stop before.
    fn train(&mut self, tell: &mut impl FnMut(&Status) -> Result<Next>) -> Result<bool> {
        let (recipe, stage) = (self.job.recipe, self.stage());
        let source = self.source(stage.images)?;
        let batch = recipe.batch.min(source.len());
        let per_epoch = source.steps(batch);
        let whole = if recipe.steps > 0 { recipe.steps as f64 } else { recipe.epochs * per_epoch as f64 };
        let steps = count(whole * recipe.stretch * stage.epochs).max(1);
        let epochs = steps.div_ceil(per_epoch);
        ensure!(
            self.place.step <= steps,
            "the checkpoint has done {} steps: expected at most the {steps} of the training",
            self.place.step
        );
        if let Some(at) =
            recipe.keep_epochs.iter().find(|at| self.is_last_stage() && **at * per_epoch as f64 > 0.5 + steps as f64)
        {
            bail!("`keep-epochs` names epoch {at}: expected at most {epochs}, since the training ends then")
        }
        let seed = self.job.seed ^ ((self.place.stage as u64) << 32);
        if self.place.step == 0 {
            if stage.start == Start::New && self.place.stage > 0 {
                self.model = fresh_model(self.job, self.place.stage)?;
                self.sam = method(self.job, &self.model, self.place.stage)?;
            }
            self.sgd = optimizer(recipe, &self.model)?;
            self.average = Average::of(recipe.ema, &self.model)?;
            if stage.start == Start::Kept {
                put(&self.kept, self.model.vars(), |_| true)?;
            }
            self.plan.memory.begin(recipe.method);
        }
        // Whatever was not kept yet when the training stopped.
        if self.interruptible(|training| training.keep_epoch(per_epoch))?.is_none() {
            return Ok(false);
        }
        let (taken_up, since) = (self.place.step, Instant::now());
        while self.place.untested || (self.place.step < steps && !self.place.stopped_early) {
            // An epoch that was interrupted while it was tested.
            if self.place.untested {
                if self.interruptible(|training| training.end_epoch(per_epoch, epochs, steps))?.is_none() {
                    return Ok(false);
                }
                continue;
            }
            let (epoch, done) = (self.place.step / per_epoch, self.place.step % per_epoch);
            if done == 0 {
                (self.place.loss, self.place.sharpness) = Default::default();
                let look = |training: &mut Self| {
                    let Self { plan, model, .. } = training;
                    plan.memory.look(recipe.method, model, &source, stage.record, epoch, epochs)
                };
                if self.interruptible(look)?.is_none() {
                    return Ok(false);
                }
            }
            let batches = source.shuffled(batch, recipe.augment(), seed, epoch).after(done).in_background();
            for batch in batches {
                let batch = batch?;
                self.step(&stage, &batch, steps, per_epoch)?;
                self.place.untested = self.place.step == steps || self.place.step.is_multiple_of(per_epoch);
                if self.interruptible(|training| training.keep_epoch(per_epoch))?.is_none() {
                    return Ok(false);
                }
                if self.place.untested {
                    self.read()?;
                    if self.interruptible(|training| training.end_epoch(per_epoch, epochs, steps))?.is_none() {
                        return Ok(false);
                    }
                }
                let trained = (self.place.step - taken_up) * batch.places.len();
                let next = tell(&Status {
                    stage: (self.place.stage, self.stages.len()),
                    step: (self.place.step, steps),
                    loss: self.loss,
                    throughput: trained as f64 / since.elapsed().as_secs_f64(),
                    test_error: self.place.test_error.map(f64::from),
                })?;
                let due = self.job.every > 0 && self.place.steps.is_multiple_of(self.job.every);
                let is_told = next == Next::Stop || self.stop.is_told();
                if due || is_told {
                    self.save()?;
                }
                if is_told {
                    return Ok(false);
                }
                if self.place.step == steps || self.place.stopped_early {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// The images and labels of a training.
    fn source(&self, images: Images) -> Result<Source> {
        let mut source = self.job.data.train.interrupted_by(&self.stop);
        source.labels_mut().copy_from_slice(&self.plan.labels);
        let source = match images {
            Images::Kept => source.part(self.plan.kept.clone()),
            Images::Selected => source.part(self.plan.selected.clone()),
            Images::SelectedAndHalf(half) => {
                let selected: HashSet<_> = self.plan.selected.iter().collect();
                let places = source.places().iter().copied();
                let is_candidate = |place: u32| half.has(self.job.seed, place) && !self.plan.memory.leaves_out(place);
                source.part(places.filter(|place| is_candidate(*place) || selected.contains(place)).collect())
            }
        };
        ensure!(!source.is_empty(), "no image is left to train on");
        Ok(source)
    }

    /// One step: a loss, its gradient, the weights.
    fn step(&mut self, stage: &Stage, batch: &Batch, steps: usize, per_epoch: usize) -> Result<()> {
        let recipe = self.job.recipe;
        let step = self.place.step;
        let progress = step as f64 / steps as f64;
        let rate = rate(recipe, stage, step, steps, per_epoch);
        self.sgd.set_learning_rate(rate);
        self.model.draws().seek(step as u64 * DRAWS_PER_STEP);
        let mut rng = step_rng(self.job.seed, self.place.stage, step);
        let examples = self.plan.memory.examples(recipe, &self.model, batch, progress, &mut rng)?;
        let corrects = self.plan.memory.corrects(recipe.method, progress);
        let writes_line = step.is_multiple_of((per_epoch / LINES).max(1));
        let orders = if recipe.compare_orders && writes_line {
            let orders = Orders::of(recipe, &self.objective(), &examples, &batch.y, corrects)?;
            self.model.draws().seek(step as u64 * DRAWS_PER_STEP);
            Some(orders)
        } else {
            None
        };
        let loss = match self.descend(&examples, corrects) {
            Ok(loss) => loss,
            Err(error) if is_not_finite(&error) => return Err(Diverged { step, what: error.to_string() }.into()),
            Err(error) => return Err(error),
        };
        self.read()?;
        self.unread = Some(Unread { step, loss, last: self.sam.last() });
        if self.job.place.device.is_cpu() || writes_line || self.loss.is_nan() {
            self.read()?;
        }
        if let Some(average) = &mut self.average {
            average.add(&self.model)?;
        }
        self.place.step += 1;
        self.place.steps += 1;
        if writes_line {
            let mut line = json!({ "stage": self.place.stage, "step": step, "loss": self.loss, "rate": rate });
            let mut event = vec![("training/loss", self.loss), ("training/rate", rate)];
            if let Some(sharpness) = self.sharpness {
                line["sharpness"] = json!(sharpness);
                event.push(("training/sharpness", sharpness));
            }
            if let Some(Orders { cosine, perturbed_error }) = orders {
                line["cosine"] = json!(cosine);
                line["perturbed error"] = json!(perturbed_error);
                event.extend([("training/cosine", cosine), ("training/perturbed error", perturbed_error)]);
            }
            self.log.add(&line)?;
            self.events.add(self.place.steps, &event)?;
        }
        Ok(())
    }

    /// Looks at the numbers of the last step that nobody has looked at: that waits for its end. While a GPU works, the
    /// next one is put on its way before.
    fn read(&mut self) -> Result<()> {
        let Some(Unread { step, loss, last }) = self.unread.take() else { return Ok(()) };
        self.loss = loss.to_scalar::<f32>()?.into();
        if !self.loss.is_finite() {
            return Err(Diverged { step, what: format!("the loss is {}", self.loss) }.into());
        }
        self.sharpness = last.map_or(Ok(None), |last| rise(&last))?;
        self.place.loss = (f64::from(self.place.loss) + self.loss).into();
        if let Some(rise) = self.sharpness {
            self.place.sharpness = Some((self.place.sharpness.map_or(0.0, f64::from) + rise).into());
        }
        Ok(())
    }

    fn objective(&self) -> Objective<'_> {
        let recipe = self.job.recipe;
        Objective {
            model: &self.model,
            decay: if recipe.decay_in_loss { recipe.weight_decay } else { 0.0 },
            frozen: recipe.frozen_norm,
            m: if recipe.m == 0 { usize::MAX } else { recipe.m },
        }
    }

    /// Backward and step; gives the loss without the weight decay.
    fn descend(&mut self, examples: &Examples, corrects: bool) -> Result<Tensor> {
        let recipe = self.job.recipe;
        let objective = self.objective();
        let rows = examples.x.dim(0)?;
        let parts = recipe.parts(rows)?;
        let statistics = Statistics::before(&self.model, recipe.shards(rows)?)?;
        if recipe.clip == 0.0 && parts.len() == 1 {
            let (loss, alone) = recipe.method.loss(&objective, examples, corrects, &self.sam)?;
            self.sgd.backward_step(&loss)?;
            statistics.map_or(Ok(()), Statistics::settle)?;
            return Ok(alone.detach());
        }
        let vars = trained(&self.model);
        let (mut sum, mut total): (Option<Tensor>, Option<GradStore>) = (None, None);
        for part in parts {
            let share = part.len() as f64 / rows as f64;
            let part = sam_runtime::Split::narrow_rows(examples, part.start, part.len())?;
            let (loss, alone) = recipe.method.loss(&objective, &part, corrects, &self.sam)?;
            let alone = if share == 1.0 { alone.detach() } else { (alone.detach() * share)? };
            sum = Some(sum.map_or(Ok(alone.clone()), |sum| sum + alone)?);
            let mut gradient = nn::backward(&if share == 1.0 { loss } else { (loss * share)? })?;
            if let Some(total) = &total {
                for (_, var) in &vars {
                    if let (Some(a), Some(b)) = (total.get(var), gradient.get(var)) {
                        let both = (a + b)?;
                        gradient.insert(var, both);
                    }
                }
            }
            total = Some(gradient);
        }
        let mut gradient = total.context("there are no images in the batch")?;
        if recipe.clip > 0.0 {
            clip(&mut gradient, &vars, recipe.clip)?;
        }
        self.sgd.step(&gradient)?;
        statistics.map_or(Ok(()), Statistics::settle)?;
        sum.context("there are no images in the batch")
    }

    /// Tests, if it is time, and logs.
    fn end_epoch(&mut self, per_epoch: usize, epochs: usize, steps: usize) -> Result<()> {
        let (data, patience) = (self.job.data, self.job.recipe.patience);
        let epoch = (self.place.step - 1) / per_epoch + 1;
        let affordable = epochs.saturating_mul(data.train.len()) / (TRAINED_PER_TESTED * data.test.len());
        let every = if patience > 0 { 1 } else { epochs.div_ceil(affordable.clamp(1, TESTS)) };
        if self.place.step < steps && !epoch.is_multiple_of(every) {
            self.place.untested = false;
            return Ok(());
        }
        let error = self.test_error()?;
        self.place.untested = false;
        self.place.test_error = Some(error.into());
        self.log
            .add(&json!({ "stage": self.place.stage, "step": self.place.step, "epoch": epoch, "test error": error }))?;
        self.events.add(self.place.steps, &[("test/error", error)])?;
        if self.is_last_stage() {
            if self.place.best.is_none_or(|(best, _)| error < best.into()) {
                self.place.best = Some((error.into(), epoch));
                if self.job.keep_weights {
                    self.with_average(|training| training.write_weights("best.safetensors", epoch, error))?;
                }
            }
            let since = epoch - self.place.best.map_or(0, |(_, best)| best);
            self.place.stopped_early = patience > 0 && since >= patience;
        }
        if self.job.keep_weights {
            epochs_csv::write(&self.job.folder.join("log.jsonl"), &self.job.folder.join("epochs.csv"))?;
        }
        Ok(())
    }

    /// Writes the weights, if the recipe wants those of this step.
    fn keep_epoch(&mut self, per_epoch: usize) -> Result<()> {
        let recipe = self.job.recipe;
        let here = kept_at(&recipe.keep_epochs, per_epoch, self.place.step);
        if !self.is_last_stage() || here.is_empty() {
            return Ok(());
        }
        let error = self.test_error()?;
        let epoch = (self.place.step - 1) / per_epoch + 1;
        let name = |at| format!("weights-epoch-{at}.safetensors");
        self.with_average(|training| here.iter().try_for_each(|at| training.write_weights(&name(at), epoch, error)))
    }

    /// Runs `f` while the model's variables are their averages, if there are any.
    fn with_average<R>(&self, f: impl FnOnce(&Self) -> Result<R>) -> Result<R> {
        match &self.average {
            Some(average) => average.during(&self.model, || f(self)),
            None => f(self),
        }
    }

    fn test(&self) -> Source {
        self.job.data.test.interrupted_by(&self.stop)
    }

    fn test_error(&self) -> Result<f64> {
        self.with_average(|training| {
            Ok(error_rate(&training.model, training.test().in_order(TEST_BATCH).in_background().pairs())?)
        })
    }

    /// What follows a training of the method's that is not the last.
    fn end_stage(&mut self) -> Result<()> {
        self.follow()?;
        self.place.stage += 1;
        self.place.step = 0;
        self.sgd = optimizer(self.job.recipe, &self.model)?;
        self.average = None;
        if self.job.every > 0 { self.save() } else { Ok(()) }
    }

    /// The end of the last training. The checkpoint stays that of its last step, so that it can be prolonged.
    fn conclude(&mut self) -> Result<Option<Outcome>> {
        if self.job.every > 0 {
            self.save()?;
        }
        let trained: Vec<_> =
            self.all_vars().into_iter().map(|(_, var)| Ok((var.as_tensor().copy()?, var))).collect::<Result<_>>()?;
        let outcome = self.follow().and_then(|()| self.outcome());
        match outcome {
            Err(error) if self.stop.is_why(&error) => {
                for (value, var) in trained {
                    var.set(&value)?;
                }
                self.save().map(|()| None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// What is done with a trained model. Nothing but the model's variables is changed before all images have been looked
    /// at.
    fn follow(&mut self) -> Result<()> {
        let stage = self.stage();
        let source = self.source(stage.images)?;
        let per_epoch = source.steps(self.job.recipe.batch.min(source.len()));
        let counted = (self.place.step - 1) % per_epoch + 1;
        self.place.last_loss = (f64::from(self.place.loss) / counted as f64).into();
        self.place.last_sharpness = self.place.sharpness.map(|sum| (f64::from(sum) / counted as f64).into());
        if let Some(average) = &self.average {
            average.put_into(&self.model)?;
        }
        match stage.then {
            Then::Nothing => (),
            Then::Keep => {
                let copies = self.all_vars().into_iter().map(|(name, var)| Ok((name, var.as_tensor().copy()?)));
                self.kept = copies.collect::<Result<_>>()?;
            }
            Then::Relabel => {
                for (place, label) in source.places().iter().zip(predictions(&self.model, &source)?) {
                    self.plan.labels[*place as usize] = label;
                }
            }
            Then::DropWorst => {
                self.plan.memory.settle();
                let losses: Vec<f32> =
                    source.places().iter().map(|place| self.plan.memory.each[*place as usize]).collect();
                self.plan.kept = without_worst(source.places(), &losses, self.job.recipe.noise);
            }
            Then::SelectFrom(half) => {
                let Plan { labels, selected, memory, .. } = &mut self.plan;
                let mut selection: BTreeSet<u32> = selected.iter().copied().collect();
                let is_open = |place: &u32| !selection.contains(place) && !memory.leaves_out(*place);
                let all = self.job.data.train.places().iter().copied();
                let other =
                    source.part(all.filter(|place| half.has(self.job.seed, *place) && is_open(place)).collect());
                let losses = losses(&self.model, &other)?;
                let predicted = predictions(&self.model, &other)?.into_iter().zip(other.places());
                let right: Vec<u32> = predicted
                    .filter(|(label, place)| labels[**place as usize] == *label)
                    .map(|(_, place)| *place)
                    .collect();
                let classes = self.job.data.classes;
                memory.leave_out(other.places(), &losses, right.len(), classes, labels.len(), half.ends_round());
                selection.extend(right);
                *selected = selection.into_iter().collect();
            }
            Then::Discriminate => {
                discriminate(&self.model, &source, self.job.data.classes)?;
                // The model is another one now, and nothing is averaged.
                let average = self.average.take();
                let error = self.test_error();
                self.average = average;
                self.place.test_error = Some(error?.into());
            }
        }
        Ok(())
    }

    fn outcome(&mut self) -> Result<Outcome> {
        // The model's variables are their averages now.
        let average = self.average.take();
        let errors = || -> Result<_> {
            let test_error = match self.place.test_error {
                Some(error) => error.into(),
                None => self.test_error()?,
            };
            Ok((test_error, top_5_error(&self.model, &self.test())?))
        };
        let errors = errors();
        self.average = average;
        let (test_error, top_5_error) = errors?;
        self.log.sync()?;
        self.events.sync()?;
        if self.job.keep_weights {
            let source = self.source(self.stage().images)?;
            let per_epoch = source.steps(self.job.recipe.batch.min(source.len()));
            self.write_weights("weights.safetensors", (self.place.step - 1) / per_epoch + 1, test_error)?;
        }
        Ok(Outcome {
            test_error,
            top_5_error,
            sharpness: self.place.last_sharpness.map(f64::from),
            loss: self.place.last_loss.into(),
            steps: self.place.steps,
            seconds: self.place.seconds + self.began.elapsed().as_secs_f64(),
            parameters: self.model.parameters(),
            train_images: self.job.data.train.len(),
            test_images: self.job.data.test.len(),
            data: self.job.data.name.clone(),
            place: self.job.place.to_string(),
            scaled: self.job.scaled.clone(),
        })
    }

    /// Writes the model's variables as they are, with what is needed to use them.
    fn write_weights(&self, name: &str, epoch: usize, test_error: f64) -> Result<()> {
        let weights = self.all_vars().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
        let about = About::of(self.job, epoch, test_error)?;
        about.write(&weights, &self.job.folder.join(name))
    }
}

/// The share of a source's images whose label is not among the five that a model holds for likeliest; none where there are not
/// more classes.
///
/// # Errors
/// Those of the model.
pub fn top_5_error(model: &Model, source: &Source) -> Result<Option<f64>> {
    if model.classes() <= 5 {
        return Ok(None);
    }
    let mut wrong = 0;
    for batch in source.in_order(TEST_BATCH).in_background().pairs() {
        let (x, y) = batch?;
        wrong += not_in_top_5(&model.forward(&x, false)?, &y)?;
    }
    Ok(Some(f64::from(wrong) / source.len() as f64))
}

/// Those of the epochs that end at this step.
fn kept_at(epochs: &[f64], per_epoch: usize, step: usize) -> Vec<f64> {
    epochs.iter().copied().filter(|at| count(at * per_epoch as f64).max(1) == step).collect()
}

/// How many rows of logits (n, classes) have five others that are not lower than that of the label (n). Nothing is lower
/// than what is not a number.
fn not_in_top_5(logits: &Tensor, y: &Tensor) -> Result<u32> {
    let lower = logits.broadcast_lt(&logits.gather(&y.unsqueeze(1)?, 1)?)?.to_dtype(DType::U32)?.sum(1)?;
    let most = logits.dim(1)?.saturating_sub(5) as u32;
    Ok(lower.lt(most)?.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()?)
}

/// The numbers of a step that are still where it was taken.
struct Unread {
    step: usize,
    loss: Tensor,
    last: Option<Last>,
}

/// L(w + ε̂) - L(w) of a step, if it had both.
fn rise(last: &Last) -> Result<Option<f64>> {
    Ok(last.perturbed_loss()?.zip(last.loss()?).map(|(perturbed, loss)| perturbed - loss))
}

/// The bytes of a state in a checkpoint.
fn state(checkpoint: &mut Checkpoint, name: &str) -> Result<Vec<u8>> {
    let tensor = checkpoint.tensors.remove(name).with_context(|| format!("the checkpoint has no `{name}`"))?;
    Ok(tensor.to_vec1()?)
}

/// The stage whose new model a stage goes on with: its seed is also that of the random layers.
fn last_fresh(stages: &[Stage], stage: usize) -> usize {
    stages.iter().take(stage + 1).rposition(|stage| stage.start == Start::New).unwrap_or(0)
}

/// A network with new weights, or those that the recipe begins with.
fn fresh_model(job: &Job<'_>, stage: usize) -> Result<Model> {
    let Job { recipe, data, .. } = job;
    // Other numbers than those of the label noise, which begins with the seed itself.
    let seed = job.seed ^ ((stage as u64) << 32) ^ (1 << 63);
    let model = Model::with_init(job.place, recipe.model, data.train.shape(), data.classes, recipe.init, seed)?;
    if !recipe.start.is_empty() {
        let folder =
            job.weights.with_context(|| format!("`start` is {}: say with --data where it lies", recipe.start))?;
        load_weights(&folder.join(&recipe.start), &model, |name| !(recipe.new_head && name.starts_with("head.")))?;
    }
    Ok(model)
}

fn optimizer(recipe: &Recipe, model: &Model) -> Result<Sgd> {
    let params = ParamsSgd {
        lr: recipe.lr,
        momentum: recipe.momentum,
        nesterov: recipe.nesterov,
        weight_decay: if recipe.decay_in_loss { 0.0 } else { recipe.weight_decay },
    };
    Ok(Sgd::new(trained_vars(model), params)?)
}

/// SAM as the recipe says, for a model of a stage.
fn method(job: &Job<'_>, model: &Model, stage: usize) -> Result<Sam> {
    let fresh = last_fresh(&job.recipe.method.stages(), stage) as u64;
    Ok(job.recipe.sam(&trained_vars(model))?.seed(job.seed ^ (fresh << 32)))
}

/// Scales a gradient whose norm is too large.
fn clip(gradient: &mut GradStore, vars: &[(String, Var)], most: f64) -> Result<()> {
    let mut squares = None;
    for (_, var) in vars {
        if let Some(grad) = gradient.get(var) {
            let square = l2_penalty(&grad.detach(), 2.0)?.to_dtype(DType::F64)?;
            squares = Some(squares.map_or(Ok(square.clone()), |sum: Tensor| sum + square)?);
        }
    }
    // Read once: it waits for the device.
    let norm = squares.map_or(Ok(0.0), |sum| sum.to_scalar::<f64>())?.sqrt();
    if norm > most {
        for (_, var) in vars {
            if let Some(grad) = gradient.remove(var) {
                gradient.insert(var, (grad * (most / norm))?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sam_runtime::{Error, Pass};

    use super::*;
    use crate::noisy_labels::Method;

    #[test]
    fn what_is_not_finite_is_told_from_other_errors() {
        let wrapped = |error: Error| anyhow::Error::from(candle_core::Error::from(error));
        assert!(is_not_finite(&wrapped(Error::NonFiniteLoss { pass: Pass::Ascent, value: f64::NAN })));
        let (shape, dtype) = ((2, 3).into(), DType::F32);
        let gradient = Error::NonFiniteGradient { pass: Pass::Descent, name: None, index: 1, count: 2, shape, dtype };
        assert!(is_not_finite(&wrapped(gradient)));
        assert!(is_not_finite(&wrapped(Error::NonFiniteNorm(f64::INFINITY))));
        assert!(!is_not_finite(&wrapped(Error::Rho(f64::NAN))));
    }

    #[test]
    fn the_fifth_place_is_among_the_five() {
        let logits = Tensor::new(&[[0f32, 5.0, 1.0, 4.0, 2.0, 3.0, -1.0]; 7], &Device::Cpu).unwrap();
        let labels = Tensor::arange(0u32, 7, &Device::Cpu).unwrap();
        assert_eq!(not_in_top_5(&logits, &labels).unwrap(), 2);
        assert_eq!(not_in_top_5(&logits.affine(f64::NAN, 0.0).unwrap(), &labels).unwrap(), 7);
    }

    /// Also where two are less than a step apart, as in a shortened run.
    #[test]
    fn weights_are_kept_at_the_ends_of_epochs() {
        let at = |step| kept_at(&[0.001, 1.0, 2.5, 2.51], 8, step);
        assert_eq!([at(1), at(8), at(20)], [vec![0.001], vec![1.0], vec![2.5, 2.51]]);
        assert!(at(0).is_empty() && at(16).is_empty());
    }

    #[test]
    fn a_stage_goes_on_with_the_model_of_the_last_fresh_one() {
        let of = |stage| last_fresh(&Method::O2u.stages(), stage);
        assert_eq!([of(0), of(1), of(2), of(3)], [0, 0, 0, 0]);
    }
}
