//! Trains one small network with every variant of SAM, on the same batches with the same wrong labels, and compares.

mod list;
mod picture;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use candle_nn::Optimizer;
use clap::Parser;
use sam_examples::augment::Augment;
use sam_examples::cli::console::{bar, exit, say};
use sam_examples::cli::options::{MOST, Out, above_0, parse, seeds, within};
use sam_examples::data::loader::Source;
use sam_examples::data::{self, Dataset, Noise, add_noise};
use sam_examples::experiments::compare::report::{Log, Mean, align, write_whole};
use sam_examples::experiments::compare::tutorial::error_rate;
use sam_examples::models::{Architecture, Model};
use sam_examples::noisy_labels::cosine;
use sam_runtime::optim::{ParamsSgd, Sgd};
use serde::Serialize;

use list::{Entry, Setting, entries};

/// The system's allocator gives every large buffer back and takes it anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 128;
const TEST_BATCH: usize = 500;
/// Files that are written.
const FILES: [&str; 3] = ["log.jsonl", "table.md", "variants.png"];
/// The share of wrong labels.
const NOISE: f64 = 0.4;

/// Compare all variants of SAM on a part of Fashion-MNIST with 40 % wrong labels
#[derive(Debug, Parser)]
#[command(
    name = "variants",
    version,
    after_help = "Examples:\n  variants\n  variants --only asam --epochs 20 --seeds 2"
)]
struct Options {
    /// Only variants with this in their name; SGD and SAM always run
    #[arg(long, value_name = "NAME")]
    only: Option<String>,

    /// Passes over the training images
    #[arg(long, default_value_t = 40)]
    epochs: usize,

    /// How often the whole is repeated, with other weights, order and wrong labels
    #[arg(long, default_value_t = 5)]
    seeds: u64,

    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Multiply every radius by this: how the radii in the list were found, with a seed that is none of the five
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    rho_factor: f64,

    #[command(flatten)]
    out: Out,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

/// What one run came to: a line of the log.
#[derive(Clone, Debug, Serialize)]
struct Run {
    variant: &'static str,
    rho: Option<f64>,
    seed: u64,
    /// Share of wrong test images after each epoch.
    test_error: Vec<f64>,
    /// Share of training images that are not given their label, which may be a wrong one, at the end.
    train_error: f64,
    /// Forward and backward passes a step.
    passes: f64,
    seconds: f64,
}

impl Run {
    fn last(&self) -> f64 {
        self.test_error.last().copied().unwrap_or(1.0)
    }

    fn best(&self) -> f64 {
        self.test_error.iter().copied().fold(1.0, f64::min)
    }
}

fn main() -> ExitCode {
    exit(compare(&parse()).map(|()| ExitCode::SUCCESS))
}

fn compare(options: &Options) -> Result<()> {
    within("epochs", options.epochs as u64, 1..=MOST)?;
    seeds(options.seed, options.seeds)?;
    above_0("rho-factor", options.rho_factor)?;
    let wanted = |entry: &Entry| {
        let name = entry.name.to_lowercase();
        let only = options.only.as_ref().is_none_or(|only| name.contains(&only.to_lowercase()));
        only || ["sgd", "sam"].contains(&name.as_str())
    };
    let entries: Vec<_> = entries().into_iter().filter(wanted).collect();
    if let Some(only) = &options.only {
        let is_in = |entry: &Entry| entry.name.to_lowercase().contains(&only.to_lowercase());
        ensure!(entries.iter().any(is_in), "--only is {only}: expected a part of the name of a variant, such as asam");
    }
    let out = options.out.folder("runs/variants", &FILES)?;
    let set = Arc::new(data::embedded()?);
    let start = Instant::now();
    let mut file = Log::create(&out.join(FILES[0]))?;
    let mut runs: Vec<Run> = Vec::new();
    let bar = bar(entries.len() as u64 * options.seeds, "all", options.quiet);
    for seed in options.seed..options.seed + options.seeds {
        for entry in &entries {
            bar.set_message(format!("{} seed {seed}", entry.name));
            let run = train(entry, &set, seed, options)?;
            file.add(&run)?;
            runs.push(run);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let seeds = if options.seeds == 1 { "1 seed".to_owned() } else { format!("{} seeds", options.seeds) };
    let title = format!("{}, {} images, 40 % wrong labels, {seeds}", set.name, set.train.len());
    let table = table(&entries, &runs);
    let note = "Error on test images in %, mean ± standard error. \"Gain\" is SAM's error less the variant's, by pairs of \
                the same seed. \"Best epoch\" is chosen on the test images: what early stopping could give at most. The radii were \
                chosen on them too, with another seed.";
    write_whole(&out.join(FILES[1]), format!("{title}\n\n{table}\n{note}\n").as_bytes())?;
    picture::draw(&entries, &runs, &title, &out.join(FILES[2]))?;
    say(format_args!("{title}\n\n{table}\n{note}"));
    say(format_args!("{:.0} s in all; picture, table and log: {}", start.elapsed().as_secs_f64(), out.display()));
    Ok(())
}

fn train(entry: &Entry, set: &Arc<Dataset>, seed: u64, options: &Options) -> Result<Run> {
    let shape = [set.channels, set.height, set.width];
    let model: Model = Model::new(Architecture::MlpNorm(128), shape, set.classes.len(), seed)?;
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 5e-4 };
    let mut sgd = Sgd::new(model.vars().all_vars(), params)?;
    let [mut train, test] = Source::both(set);
    add_noise(train.labels_mut(), set.classes.len(), NOISE, Noise::Exclusive, seed)?;

    let steps = train.steps(BATCH);
    let setting = Setting {
        rho: entry.rho.unwrap_or(0.0) * options.rho_factor,
        vars: model.vars(),
        velocities: sgd.velocities(),
        rate: params.lr,
        steps: (steps * options.epochs) as u64,
        epoch: steps as u64,
    };
    let sam = (entry.make)(&setting).seed(seed);
    let start = Instant::now();
    let (mut passes, mut test_error) = (0.0, Vec::new());
    for epoch in 0..options.epochs {
        for (step, batch) in train.shuffled(BATCH, Augment::NONE, seed, epoch).enumerate() {
            let (x, y): (Tensor, Tensor) = batch?;
            let done = (epoch * steps + step) as f64 / (steps * options.epochs) as f64;
            let rate = params.lr * cosine(done);
            sgd.set_learning_rate(rate);
            sam.set_learning_rate(rate);
            sgd.backward_step(&(entry.loss)(&sam, &model, &x, &y)?)?;
            sam.finish(rate)?;
            passes += sam.last().map_or(1.0, |last| last.passes());
        }
        test_error.push(error_rate(&model, test.in_order(TEST_BATCH))?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let train_error = error_rate(&model, train.in_order(TEST_BATCH))?;
    let rho = entry.rho.map(|rho| rho * options.rho_factor);
    Ok(Run { variant: entry.name, rho, seed, test_error, train_error, passes: passes / setting.steps as f64, seconds })
}

fn table(entries: &[Entry], runs: &[Run]) -> String {
    let of = |name: &str| runs.iter().filter(|run| run.variant == name).collect::<Vec<_>>();
    let sam = of("SAM");
    let head = ["variant", "ρ", "passes", "last epoch", "gain", "best epoch", "training error"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for entry in entries {
        let runs = of(entry.name);
        let mean = |value: &dyn Fn(&Run) -> f64| Mean::of(&runs.iter().map(|run| value(run)).collect::<Vec<_>>());
        let gain = Mean::of(&runs.iter().zip(&sam).map(|(run, sam)| sam.last() - run.last()).collect::<Vec<_>>());
        rows.push(vec![
            entry.name.to_owned(),
            runs[0].rho.map_or(String::new(), |rho| format!("{rho}")),
            format!("{:.2}", mean(&|run| run.passes).mean),
            mean(&Run::last).percent(),
            if entry.name == "SAM" { String::new() } else { gain.percent() },
            mean(&Run::best).percent(),
            mean(&|run| run.train_error).percent(),
        ]);
    }
    align(&rows)
}
