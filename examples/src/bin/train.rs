//! Trains one network from a recipe: a cell of the paper's tables, or a custom file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use sam_examples::cli::console::{exit, print, say, warn};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{parse, within};
use sam_examples::cli::out::{Out, numbered};
use sam_examples::cli::progress::ProgressDisplay;
use sam_examples::cli::recipe_args::RecipeArgs;
use sam_examples::io::atomic::write_atomic;
use sam_examples::models::Model;
use sam_examples::recipe::{self, Recipe};
use sam_examples::trainer::{Begin, Data, DirLock, Job, Next, Session, has_results, is_training};
use sam_examples::util::device::DeviceConfig;
use sam_examples::util::stop::{STOPPED, Stop};
use sam_runtime::distributed::{self, Comm};

sam_examples::use_mimalloc!();

const EXAMPLES: &str = "Examples:
  train my.toml --out runs/mine                      a custom recipe
  train my.toml --out runs/mine --resume             resume it
  train my.toml --out runs/mine --resume --set epochs=20.0
                                                     prolong it
  train table1/wrn-28-10/basic/cifar10/sam --data data --scale epochs=0.1,images=0.1,width=0.25
  train gpt/sam --data book.txt --out runs/book a language model of a text
  train my.toml --dry-run                            show the whole recipe, and train nothing";

/// Train one network, unattended.
///
/// Log (log.jsonl), table of epochs (epochs.csv), TensorBoard events, checkpoint, the weights of the lowest test error
/// (best.safetensors) and of the end (weights.safetensors) and result.json go to a folder. Stopped by a signal (SIGINT,
/// SIGTERM, SIGHUP, SIGUSR1), it saves everything first; `--resume` continues bitwise identically.
#[derive(Debug, Parser)]
#[command(name = "train", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", recipe::keys()))]
struct Options {
    #[command(flatten)]
    recipe: RecipeArgs,

    #[command(flatten)]
    device: DeviceArgs,

    /// Threads that load and augment images [default: those that compute]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,

    #[command(flatten)]
    out: Out,

    /// Steps between checkpoints; 0 to write one only when the training is stopped
    #[arg(long, visible_alias = "checkpoint-every", value_name = "STEPS", default_value_t = 500)]
    every: usize,

    /// Steps between reports of the sharpness in the log and the events: L(w + ε̂) - L(w), the cosine of the two gradients, and the
    /// largest eigenvalue of the Hessian, of the batch, at the cost of 12 passes each; 0 for none
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    report: usize,

    /// Resume from the checkpoint in the folder, or start if there is none; with PATH, from that of another training, unless
    /// the folder has one of its own. A recipe whose `epochs`, `steps` or `stretch` are larger prolongs a training
    #[arg(long, value_name = "PATH", conflicts_with = "overwrite")]
    #[expect(clippy::option_option, reason = "an option whose value may be left out")]
    resume: Option<Option<PathBuf>>,

    /// Show the whole recipe, the data set and the network, and train nothing
    #[arg(long)]
    dry_run: bool,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

/// The default folder.
const USUAL: &str = "runs/train";

fn main() -> ExitCode {
    let options = parse();
    exit(distributed::run(|world| train(&options, world)))
}

fn train(options: &Options, world: &Comm) -> Result<ExitCode> {
    let is_first = world.rank() == 0;
    let stop = Stop::on_signals()?;
    if let Some(workers) = options.workers {
        within("workers", workers, 1..=1024)?;
    }
    let recipe = options.recipe.recipe()?;
    let device = options.device.config_of_rank(world)?;
    let (out, begin) = folder(options);
    let from = options.resume.as_ref().and_then(|from| from.as_deref()).map(checkpoint);
    if let Some(from) = from.as_ref().filter(|_| is_first) {
        ensure!(
            from.is_file(),
            "there is no checkpoint {}: expected the file, or the folder of a training",
            from.display()
        );
    }
    if !options.dry_run && is_first {
        begin.check(&out)?;
    }
    let own = out.join("checkpoint.safetensors");
    if let Some(from) =
        from.as_ref().filter(|from| is_first && own.is_file() && own.canonicalize().ok() != from.canonicalize().ok())
    {
        warn(format_args!(
            "resuming from {}, which the folder has already, not from {}",
            own.display(),
            from.display()
        ));
    }
    let data = stop.while_nothing_is_to_save(|| {
        let data = Data::load(&recipe, options.recipe.data.as_deref(), options.recipe.seed, &device.device)?;
        data.with_workers(options.workers)
    })?;
    for note in data.notes.iter().filter(|_| is_first) {
        warn(note);
    }
    if options.dry_run {
        return if is_first { dry_run(&recipe, &data, &device) } else { Ok(ExitCode::SUCCESS) };
    }
    // Rank 0 writes.
    let (out, _lock) = if !is_first {
        (out, None)
    } else if options.out.named().is_some() || begin != Begin::New {
        let lock = DirLock::take(&out, begin)?;
        (out, Some(lock))
    } else {
        let (out, lock) = first_free()?;
        (out, Some(lock))
    };
    let job = Job {
        recipe: &recipe,
        seed: options.recipe.seed,
        data: &data,
        device: &device,
        weights: options.recipe.data.as_deref(),
        folder: &out,
        every: options.every,
        report: options.report,
        keep_weights: true,
        scaled: options.recipe.scaled(),
    };
    let mut progress = ProgressDisplay::new(&options.recipe.name, options.quiet || !is_first);
    let (may_prolong, overwrite) = (begin == Begin::Resume, begin == Begin::Overwrite);
    let session = Session { world: world.clone(), stop, from, may_prolong, overwrite };
    let outcome = job.run_in(&session, |status| {
        progress.show(status);
        Ok(Next::GoOn)
    })?;
    progress.finish();
    let Some(outcome) = outcome else {
        if !is_first {
            return Ok(ExitCode::from(STOPPED));
        }
        say(format_args!("saved in {}: --resume goes on", out.display()));
        return Ok(ExitCode::from(STOPPED));
    };
    if !is_first {
        return Ok(ExitCode::SUCCESS);
    }
    write_atomic(&out.join("result.json"), (serde_json::to_string_pretty(&outcome)? + "\n").as_bytes())?;
    say(format_args!(
        "{}: test error {:.2} %{}, {} steps, {:.0} s{}; {}",
        outcome.data,
        100.0 * outcome.test_error,
        outcome.test_loss_note(),
        outcome.steps,
        outcome.seconds,
        outcome.scaled_note(),
        out.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The folder of the results, and how earlier results are treated.
fn folder(options: &Options) -> (PathBuf, Begin) {
    let begin = match (&options.resume, options.out.overwrites()) {
        (Some(_), _) => Begin::Resume,
        (None, true) => Begin::Overwrite,
        (None, false) => Begin::New,
    };
    if let Some(out) = options.out.named() {
        return (out.to_owned(), begin);
    }
    let free = numbered(USUAL, is_free);
    let out = match (begin, &options.resume) {
        (Begin::Overwrite, _) => PathBuf::from(USUAL),
        (Begin::Resume, Some(None)) => latest(USUAL).unwrap_or(free),
        _ => free,
    };
    (out, begin)
}

/// Whether a folder holds no results; one that cannot be read counts as not empty.
fn is_free(folder: &Path) -> bool {
    !has_results(folder).unwrap_or(true)
}

/// The first default folder that holds no results and that no other process trains in.
fn first_free() -> Result<(PathBuf, DirLock)> {
    let mut others = Vec::new();
    loop {
        let folder = numbered(USUAL, |folder| is_free(folder) && !others.iter().any(|other| other == folder));
        match DirLock::take_if_free(&folder, Begin::New)? {
            Some(lock) => return Ok((folder, lock)),
            None => others.push(folder),
        }
    }
}

/// The training in `usual`, `usual-2`, .. with the highest number.
fn latest(usual: &str) -> Option<PathBuf> {
    let usual = Path::new(usual);
    let (parent, name) = (usual.parent()?, usual.file_name()?.to_str()?);
    let number = |folder: &Path| -> Option<u64> {
        let rest = folder.file_name()?.to_str()?.strip_prefix(name)?;
        if rest.is_empty() { Some(1) } else { rest.strip_prefix('-')?.parse().ok().filter(|number| *number > 1) }
    };
    let folders = std::fs::read_dir(parent).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let trainings = folders.filter(|folder| is_training(folder).unwrap_or(false));
    trainings.filter_map(|folder| Some((number(&folder)?, folder))).max().map(|(_, folder)| folder)
}

/// The checkpoint that a path means: a file, or that of a folder.
fn checkpoint(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("checkpoint.safetensors") } else { path.to_owned() }
}

fn dry_run(recipe: &Recipe, data: &Data, device: &DeviceConfig) -> Result<ExitCode> {
    let model: Model = Model::at(device, recipe.model, data.train.shape(), data.classes, 0)?;
    print(&recipe.to_toml()?);
    let per_epoch = data.train.steps(recipe.batch);
    let is_text = recipe.model.is_for_text();
    let (examples, of) = if is_text { ("windows", "tokens") } else { ("images", "classes") };
    say(format_args!(
        "\n# {}: {} training {examples}, {} test {examples} of {} {of}; {per_epoch} steps an epoch; {} has {} parameters",
        data.name,
        data.train.len(),
        data.test.len(),
        if is_text { recipe.length } else { data.classes },
        recipe.model,
        model.parameters()
    ));
    Ok(ExitCode::SUCCESS)
}
