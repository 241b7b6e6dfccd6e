//! Trains one network by a recipe: a cell of the paper's tables, or a file of one's own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sam_examples::compute::Compute;
use sam_examples::console::{Progress, Stop, exit};
use sam_examples::recipe::Told;
use sam_examples::report::write_whole;
use sam_examples::trainer::{Data, Held, Job};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train one network, and leave it alone.
///
/// Log (log.jsonl), TensorBoard events, checkpoint and in the end weights.safetensors and result.json go to a folder. Told to
/// stop (Ctrl-C, kill), it saves everything first; `--resume` goes on with the same bits.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(flatten)]
    told: Told,

    #[command(flatten)]
    compute: Compute,

    /// Folder of everything that is written
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    out: PathBuf,

    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    every: usize,

    /// Go on from the checkpoint in the folder
    #[arg(long)]
    resume: bool,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    exit(train(&Options::parse()))
}

fn train(options: &Options) -> Result<ExitCode> {
    let (stop, place) = (Stop::on_signals()?, options.compute.place()?);
    let recipe = options.told.recipe()?;
    let data = Data::load(&recipe, options.told.data.as_deref(), options.told.seed, &place.device)?;
    let out = &options.out;
    let job = Job {
        recipe: &recipe,
        seed: options.told.seed,
        data: &data,
        place: &place,
        weights: options.told.data.as_deref(),
        folder: out,
        every: options.every,
        keep_weights: true,
        scaled: options.told.scaled(),
    };
    if options.resume && !job.checkpoint().exists() {
        bail!("there is no checkpoint in {} to go on from", out.display())
    }
    let _held = Held::take(out)?;
    if job.checkpoint().exists() && !options.resume {
        bail!("there is a checkpoint in {}: say --resume, or choose another --out", out.display())
    }
    let mut progress = Progress::new(&options.told.name, options.quiet);
    let outcome = job.run(|status| {
        progress.show(status);
        Ok(stop.next())
    })?;
    progress.finish();
    let Some(outcome) = outcome else {
        println!("saved in {}: --resume goes on", out.display());
        return Ok(ExitCode::from(130));
    };
    write_whole(&out.join("result.json"), (serde_json::to_string_pretty(&outcome)? + "\n").as_bytes())?;
    println!(
        "{}: test error {:.2} %, {} steps, {:.0} s{}",
        outcome.data,
        100.0 * outcome.test_error,
        outcome.steps,
        outcome.seconds,
        outcome.told()
    );
    Ok(ExitCode::SUCCESS)
}
