//! Tests a network that `train` has written.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use sam_examples::cli::console::{exit, say, warn};
use sam_examples::cli::options::parse;
use sam_examples::experiments::compare::tutorial::error_rate;
use sam_examples::recipe::{Changes, Scale};
use sam_examples::trainer::{About, Data, top_5_error};
use sam_examples::util::device::Compute;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Images that are looked at together.
const BATCH: usize = 500;

/// Test a network that was trained, on the test images of its data set.
///
/// The file of weights says which network it is and what it was trained on.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, after_help = "Example:\n  evaluate runs/train/best.safetensors --data data")]
struct Options {
    /// Weights: weights.safetensors, best.safetensors, ..
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,

    /// Folder of the data sets
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    compute: Compute,
}

fn main() -> ExitCode {
    exit(evaluate(&parse()).map(|()| ExitCode::SUCCESS))
}

fn evaluate(options: &Options) -> Result<()> {
    let place = options.compute.place()?;
    let (about, model) = About::load(&options.weights, &place)?;
    let name = options.weights.display().to_string();
    let recipe = Changes::parse(&name, &about.recipe)?.recipe(&Scale::default())?;
    let data = Data::load(&recipe, options.data.as_deref(), about.seed, &place.device)?;
    for note in &data.notes {
        warn(note);
    }
    ensure!(
        data.class_names == about.classes && data.test.shape() == about.shape,
        "{name} is of {} classes and images of {:?}: expected the {} classes and images of {:?} of {}",
        about.classes.len(),
        about.shape,
        data.classes,
        data.test.shape(),
        data.name
    );
    let error = error_rate(&model, data.test.in_order(BATCH)).context("cannot test the network")?;
    let top_5 = top_5_error(&model, &data.test)?
        .map_or_else(String::new, |error| format!(", top-5 error {:.2} %", 100.0 * error));
    say(format_args!(
        "{}: test error {:.2} %{top_5}, {} images; {}, epoch {}",
        data.name,
        100.0 * error,
        data.test.len(),
        about.model,
        about.epoch
    ));
    Ok(())
}
