//! Tests a network that `train` has written.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use sam_examples::cli::console::{exit, say, warn};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::parse;
use sam_examples::metrics::{Scores, top_5_error};
use sam_examples::trainer::{WeightsInfo, loss_note};

sam_examples::use_mimalloc!();

/// Test a network that was trained, on the test images of its data set.
///
/// The file of weights names the network and its data set.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version, after_help = "Example:\n  evaluate runs/train/best.safetensors --data data")]
struct Options {
    /// Weights: weights.safetensors, best.safetensors, ..
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,

    /// Folder of the data sets, or the text of a language model
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,
}

fn main() -> ExitCode {
    exit(evaluate(&parse()).map(|()| ExitCode::SUCCESS))
}

fn evaluate(options: &Options) -> Result<()> {
    let device = options.device.config()?;
    let (info, model) = WeightsInfo::load(&options.weights, &device)?;
    let data = info.data_set(&options.weights, options.data.as_deref(), &device.device)?;
    for note in &data.notes {
        warn(note);
    }
    let scores = Scores::of(&model, data.test.in_order(data.test.test_batch())).context("cannot test the network")?;
    let top_5 = top_5_error(&model, &data.test)?
        .map_or_else(String::new, |error| format!(", top-5 error {:.2} %", 100.0 * error));
    let is_text = info.model.is_for_text();
    say(format_args!(
        "{}: test error {:.2} %{top_5}{}, {} {}; {}, epoch {}",
        data.name,
        100.0 * scores.error,
        if is_text { loss_note(scores.loss) } else { String::new() },
        data.test.len(),
        if is_text { "windows" } else { "images" },
        info.model,
        info.epoch
    ));
    Ok(())
}
