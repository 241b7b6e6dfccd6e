//! A trainer that one can leave alone: it logs, saves everything every so often and when it is told to stop, and goes on
//! with the same bits.
//!
//! The step is the same for SGD and for SAM: the loop asks a method for a loss, and that has the attribute. Of SAM it only saves the
//! state, and logs by how much the loss rises.

mod average;
mod checkpoint;
mod data;
mod events;
mod folder;
mod schedule;
mod statistics;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer as _, VarMap};
use sam_runtime::nn::{self, l2_penalty};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Last, Sam};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::average::Average;
use self::checkpoint::Plan;
pub(crate) use self::checkpoint::difference;
pub use self::checkpoint::{Checkpoint, Place};
pub use self::data::Data;
pub use self::events::Events;
pub use self::folder::Held;
pub(crate) use self::folder::left_behind;
pub use self::schedule::{Shape, rate};
use self::statistics::Statistics;
use crate::batches::{Batch, Source};
use crate::compute;
use crate::kit::Kit;
use crate::loss::{Examples, Objective, trained, trained_vars};
use crate::method::{Images, Memory, Stage, Then, discriminate, predictions, step_rng, without_worst};
use crate::models::Model;
use crate::numbers::count;
use crate::recipe::Recipe;
use crate::report::{Log, write_whole};
use crate::tutorial::error_rate;

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
    pub place: &'a compute::Place,
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

    /// The recipe and seed, in words.
    fn words(&self) -> Result<String> {
        let mut words = serde_json::to_value(self.recipe)?;
        words["seed"] = json!(self.seed);
        words["training images"] = json!(self.data.train.len());
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
    pub fn run(&self, mut tell: impl FnMut(&Status) -> Result<Next>) -> Result<Option<Outcome>> {
        let stages = self.recipe.method.stages();
        let mut training = Training::begin(self)?;
        while let Some(stage) = stages.get(training.place.stage) {
            if !training.stage(stage, stages.len(), &mut tell)? {
                return Ok(None);
            }
        }
        training.outcome().map(Some)
    }
}

/// A training under way.
struct Training<'a> {
    job: &'a Job<'a>,
    sam: Sam,
    place: Place,
    plan: Plan,
    model: Model,
    sgd: Sgd,
    average: Option<Average>,
    /// Of the last step whose numbers were read; not a number before the first.
    loss: f64,
    sharpness: Option<f64>,
    unread: Option<Unread>,
    log: Log,
    events: Events,
    began: Instant,
}

impl<'a> Training<'a> {
    fn begin(job: &'a Job<'a>) -> Result<Self> {
        let recipe = job.recipe;
        let words = job.words()?;
        let path = job.checkpoint();
        let checkpoint = path.exists().then(|| Checkpoint::load(&path, &words)).transpose()?;
        let place = checkpoint
            .as_ref()
            .map_or_else(|| Place { recipe: words, ..Place::default() }, |checkpoint| checkpoint.place.clone());
        let train = &job.data.train;
        let model = fresh_model(job, last_fresh(&recipe.method.stages(), place.stage))?;
        let mut training = Self {
            job,
            sam: method(job, &model, place.stage)?,
            plan: Plan {
                labels: train.labels().to_vec(),
                kept: train.places().to_vec(),
                selected: Vec::new(),
                memory: Memory::default(),
            },
            sgd: optimizer(recipe, &model)?,
            average: Average::of(recipe.ema, &model)?,
            model,
            loss: f64::NAN,
            sharpness: None,
            unread: None,
            log: Log::open(&job.folder.join("log.jsonl"), place.log)?,
            events: Events::open(&job.folder.join("events.out.tfevents"), place.events)?,
            place,
            began: Instant::now(),
        };
        if training.place.log == 0 {
            let line = json!({ "recipe": recipe, "seed": job.seed, "data": job.data.name, "scaled": job.scaled });
            training.log.add(&line)?;
            training.events.say("recipe", &line.to_string())?;
        }
        if let Some(checkpoint) = checkpoint {
            training.take(checkpoint).with_context(|| format!("cannot go on from {}", path.display()))?;
        }
        Ok(training)
    }

    /// Takes everything from a checkpoint.
    fn take(&mut self, mut checkpoint: Checkpoint) -> Result<()> {
        self.plan = Plan::from_tensors(checkpoint.take("plan/"))?;
        put(&checkpoint.take("weight/"), self.model.vars(), |_| true)?;
        let (folder, vars) = (self.job.folder, self.model.vars());
        back_through_file(folder, checkpoint.take("velocity/"), |path| self.sgd.load(vars, path))?;
        // A stage that begins anew has nothing from the one before, whose end this is.
        let stages = self.job.recipe.method.stages();
        if self.place.step > 0 || !stages.get(self.place.stage).is_some_and(|stage| stage.fresh) {
            back_through_file(folder, checkpoint.take("sam/"), |path| self.sam.load(vars, path))?;
        }
        // Before a stage's first step there is none yet: `stage` makes it.
        if let Some(average) = self.average.as_mut().filter(|_| self.place.step > 0) {
            average.restore(checkpoint.take("average/"))?;
        }
        Ok(())
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
        let vars = self.model.vars();
        checkpoint.put("velocity/", through_file(self.job.folder, |path| self.sgd.save(vars, path))?);
        checkpoint.put("sam/", through_file(self.job.folder, |path| self.sam.save(vars, path))?);
        if let Some(average) = &self.average {
            checkpoint.put("average/", average.tensors());
        }
        checkpoint.save(&self.job.checkpoint())
    }

    fn all_vars(&self) -> Vec<(String, Var)> {
        let vars = self.model.vars().data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Trains one of the method's trainings to its end; false if it is to stop before.
    fn stage(&mut self, stage: &Stage, stages: usize, tell: &mut impl FnMut(&Status) -> Result<Next>) -> Result<bool> {
        let recipe = self.job.recipe;
        let source = self.source(stage.images)?;
        let batch = recipe.batch.min(source.len());
        let per_epoch = source.steps(batch);
        let whole = if recipe.steps > 0 { recipe.steps as f64 } else { recipe.epochs * per_epoch as f64 };
        let steps = count(whole * recipe.stretch * stage.epochs).max(1);
        let seed = self.job.seed ^ ((self.place.stage as u64) << 32);
        if self.place.step == 0 {
            if stage.fresh && self.place.stage > 0 {
                self.model = fresh_model(self.job, self.place.stage)?;
                self.sam = method(self.job, &self.model, self.place.stage)?;
            }
            self.sgd = optimizer(recipe, &self.model)?;
            self.average = Average::of(recipe.ema, &self.model)?;
            self.plan.memory = Memory::default();
        }
        let (taken_up, since) = (self.place.step, Instant::now());
        while self.place.step < steps {
            let (epoch, done) = (self.place.step / per_epoch, self.place.step % per_epoch);
            if done == 0 {
                (self.place.loss, self.place.sharpness) = Default::default();
                let epochs = steps.div_ceil(per_epoch);
                self.plan.memory.look(recipe.method, &self.model, &source, stage.record, epoch, epochs)?;
            }
            let batches = source.shuffled(batch, recipe.augment(), seed, epoch).after(done).in_background();
            for batch in batches {
                let batch = batch?;
                self.step(stage, &batch, steps, per_epoch)?;
                let last = self.place.step == steps;
                if last || self.place.step.is_multiple_of(per_epoch) {
                    self.read()?;
                    self.end_epoch(epoch, steps.div_ceil(per_epoch), last)?;
                }
                let trained = (self.place.step - taken_up) * batch.places.len();
                let next = tell(&Status {
                    stage: (self.place.stage, stages),
                    step: (self.place.step, steps),
                    loss: self.loss,
                    throughput: trained as f64 / since.elapsed().as_secs_f64(),
                    test_error: self.place.test_error.map(f64::from),
                })?;
                let due = self.job.every > 0 && self.place.steps.is_multiple_of(self.job.every);
                if due || next == Next::Stop {
                    self.save()?;
                }
                if next == Next::Stop {
                    return Ok(false);
                }
                if last {
                    break;
                }
            }
        }
        self.finish(stage, &source)?;
        Ok(true)
    }

    /// The images and labels of a training.
    fn source(&self, images: Images) -> Result<Source> {
        let mut source = self.job.data.train.clone();
        source.labels_mut().copy_from_slice(&self.plan.labels);
        let source = match images {
            Images::Kept => source.part(self.plan.kept.clone()),
            Images::Selected => source.part(self.plan.selected.clone()),
            Images::SelectedAndHalf(half) => {
                let selected: HashSet<_> = self.plan.selected.iter().collect();
                let places = source.places().iter().copied();
                let places =
                    places.filter(|place| half.has(self.job.seed, *place) || selected.contains(place)).collect();
                source.part(places)
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
        let loss = match self.descend(&examples) {
            Ok(loss) => loss,
            Err(error) if is_not_finite(&error) => return Err(Diverged { step, what: error.to_string() }.into()),
            Err(error) => return Err(error),
        };
        self.read()?;
        self.unread = Some(Unread { step, loss, last: self.sam.last() });
        let writes_line = step.is_multiple_of((per_epoch / LINES).max(1));
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

    /// Backward and step; gives the loss without the weight decay.
    fn descend(&mut self, examples: &Examples) -> Result<Tensor> {
        let recipe = self.job.recipe;
        let objective = Objective {
            model: &self.model,
            decay: if recipe.decay_in_loss { recipe.weight_decay } else { 0.0 },
            frozen: recipe.frozen_norm,
            m: if recipe.m == 0 { usize::MAX } else { recipe.m },
        };
        let rows = examples.x.dim(0)?;
        let parts = recipe.parts(rows)?;
        let statistics = Statistics::before(&self.model, recipe.shards(rows)?)?;
        if recipe.clip == 0.0 && parts.len() == 1 {
            let (loss, alone) = recipe.method.loss(&objective, examples, &self.sam)?;
            self.sgd.backward_step(&loss)?;
            statistics.map_or(Ok(()), Statistics::settle)?;
            return Ok(alone.detach());
        }
        let vars = trained(&self.model);
        let (mut sum, mut total): (Option<Tensor>, Option<GradStore>) = (None, None);
        for part in parts {
            let share = part.len() as f64 / rows as f64;
            let part = sam_runtime::Split::narrow_rows(examples, part.start, part.len())?;
            let (loss, alone) = recipe.method.loss(&objective, &part, &self.sam)?;
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
    fn end_epoch(&mut self, epoch: usize, epochs: usize, last: bool) -> Result<()> {
        let data = self.job.data;
        let affordable = epochs * data.train.len() / (TRAINED_PER_TESTED * data.test.len());
        if !last && !(epoch + 1).is_multiple_of(epochs.div_ceil(affordable.clamp(1, TESTS))) {
            return Ok(());
        }
        let error = self.test_error()?;
        self.place.test_error = Some(error.into());
        self.log.add(
            &json!({ "stage": self.place.stage, "step": self.place.step, "epoch": epoch + 1, "test error": error }),
        )?;
        self.events.add(self.place.steps, &[("test/error", error)])
    }

    fn test_error(&self) -> Result<f64> {
        let test = || Ok(error_rate(&self.model, self.job.data.test.in_order(TEST_BATCH).in_background().pairs())?);
        match &self.average {
            Some(average) => average.during(&self.model, test),
            None => test(),
        }
    }

    fn top_5_error(&self) -> Result<Option<f64>> {
        if self.job.data.classes <= 5 {
            return Ok(None);
        }
        let mut wrong = 0;
        for batch in self.job.data.test.in_order(TEST_BATCH).in_background().pairs() {
            let (x, y) = batch?;
            let logits = self.model.forward(&x, false)?;
            wrong += not_in_top_5(&logits, &y)?;
        }
        Ok(Some(f64::from(wrong) / self.job.data.test.len() as f64))
    }

    /// What follows a training.
    fn finish(&mut self, stage: &Stage, source: &Source) -> Result<()> {
        let per_epoch = source.steps(self.job.recipe.batch.min(source.len()));
        let counted = (self.place.step - 1) % per_epoch + 1;
        self.place.last_loss = (f64::from(self.place.loss) / counted as f64).into();
        self.place.last_sharpness = self.place.sharpness.map(|sum| (f64::from(sum) / counted as f64).into());
        if let Some(average) = self.average.take() {
            average.put_into(&self.model)?;
        }
        match stage.then {
            Then::Nothing => (),
            Then::Relabel => {
                for (place, label) in source.places().iter().zip(predictions(&self.model, source)?) {
                    self.plan.labels[*place as usize] = label;
                }
            }
            Then::DropWorst => {
                let losses: Vec<f32> =
                    source.places().iter().map(|place| self.plan.memory.each[*place as usize]).collect();
                self.plan.kept = without_worst(source.places(), &losses, self.job.recipe.noise);
            }
            Then::SelectFrom(half) => {
                let all = self.job.data.train.places().iter().copied();
                let other = source.part(all.filter(|place| half.has(self.job.seed, *place)).collect());
                let predicted = predictions(&self.model, &other)?.into_iter().zip(other.places());
                let right = predicted.filter(|(label, place)| self.plan.labels[**place as usize] == *label);
                let mut selected: BTreeSet<u32> = self.plan.selected.iter().copied().collect();
                selected.extend(right.map(|(_, place)| *place));
                self.plan.selected = selected.into_iter().collect();
            }
            Then::Discriminate => {
                discriminate(&self.model, source, self.job.data.classes)?;
                self.place.test_error = Some(self.test_error()?.into());
            }
        }
        self.place.stage += 1;
        self.place.step = 0;
        self.sgd = optimizer(self.job.recipe, &self.model)?;
        if self.job.every > 0 { self.save() } else { Ok(()) }
    }

    fn outcome(&mut self) -> Result<Outcome> {
        self.log.sync()?;
        self.events.sync()?;
        if self.job.keep_weights {
            let weights = self.all_vars().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
            let weights: BTreeMap<_, _> = weights.collect();
            let bytes = safetensors::serialize(&weights, None)?;
            write_whole(&self.job.folder.join("weights.safetensors"), &bytes)?;
        }
        Ok(Outcome {
            test_error: match self.place.test_error {
                Some(error) => error.into(),
                None => self.test_error()?,
            },
            top_5_error: self.top_5_error()?,
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

/// What `save` writes to a file, for a checkpoint that has it all in one.
fn through_file(folder: &Path, save: impl FnOnce(&Path) -> candle_core::Result<()>) -> Result<HashMap<String, Tensor>> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    let kept = || format!("cannot write a checkpoint to {}; the one before is kept", folder.display());
    save(file.path()).with_context(kept)?;
    Ok(candle_core::safetensors::load(file.path(), &Device::Cpu)?)
}

/// The way back, if there is anything.
fn back_through_file(
    folder: &Path,
    tensors: BTreeMap<String, Tensor>,
    load: impl FnOnce(&Path) -> candle_core::Result<()>,
) -> Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    let file = tempfile::NamedTempFile::new_in(folder)?;
    candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), file.path())?;
    Ok(load(file.path())?)
}

/// The stage whose new model a stage goes on with: its seed is also that of the random layers.
fn last_fresh(stages: &[Stage], stage: usize) -> usize {
    stages.iter().take(stage + 1).rposition(|stage| stage.fresh).unwrap_or(0)
}

/// Puts the weights of a safetensors file into the variables of a model whose names are `wanted`.
///
/// # Errors
/// If it cannot be read, or has not all of them, or one in another shape.
pub fn load_weights<K: Kit + 'static>(path: &Path, model: &Model<K>, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let weights = candle_core::safetensors::load(path, &Device::Cpu);
    let weights = weights.with_context(|| format!("cannot read {}", path.display()))?;
    put(&weights.into_iter().collect(), model.vars(), wanted).with_context(|| format!("cannot use {}", path.display()))
}

fn put(weights: &BTreeMap<String, Tensor>, vars: &VarMap, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, var) in vars.iter().filter(|(name, _)| wanted(name)) {
        let weight = weights.get(name).with_context(|| format!("it has no weight `{name}`"))?;
        ensure!(
            weight.dims() == var.dims(),
            "its weight `{name}` has shape {:?}: expected {:?}",
            weight.dims(),
            var.dims()
        );
        var.set(&weight.to_dtype(var.dtype())?.to_device(var.device())?)?;
    }
    Ok(())
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
    use crate::method::Method;

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

    #[test]
    fn a_stage_goes_on_with_the_model_of_the_last_fresh_one() {
        let of = |stage| last_fresh(&Method::O2u.stages(), stage);
        assert_eq!([of(0), of(1), of(2), of(3)], [0, 0, 2, 2]);
    }
}
