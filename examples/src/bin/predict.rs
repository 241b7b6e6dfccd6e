//! Classifies pictures with a network that `train` has written.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use candle_nn::ops::softmax;
use clap::Parser;
use sam_examples::cli::console::{exit, say, warn};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{parse, within};
use sam_examples::data::read_like;
use sam_examples::trainer::WeightsInfo;

sam_examples::use_mimalloc!();

/// Print the likeliest classes of pictures.
///
/// A picture of another size than those of the training is cropped to its central square and scaled.
#[derive(Debug, Parser)]
#[command(
    name = "predict",
    version,
    after_help = "Example:\n  predict runs/train/best.safetensors cat.png dog.jpg --top 3"
)]
struct Options {
    /// Weights: weights.safetensors, best.safetensors, ..
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,

    /// Pictures
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,

    /// Number of classes printed for each, the likeliest first
    #[arg(long, value_name = "N", default_value_t = 1)]
    top: usize,

    #[command(flatten)]
    device: DeviceArgs,
}

fn main() -> ExitCode {
    exit(predict(&parse()))
}

fn predict(options: &Options) -> Result<ExitCode> {
    let device = options.device.config()?;
    let (info, model) = WeightsInfo::load(&options.weights, &device)?;
    ensure!(
        !info.model.is_for_text(),
        "{} is of a language model, {}: expected the weights of a network for images",
        options.weights.display(),
        info.model
    );
    within("top", options.top, 1..=info.classes.len())?;
    let mut failed = false;
    for path in &options.pictures {
        let probabilities = || -> Result<Vec<f32>> {
            ensure!(!path.is_dir(), "it is a folder: name the pictures in it");
            let image = read_like(path, info.shape, info.lazy)?;
            let logits = model.forward(&info.normalized(&[image], &device)?, false)?;
            Ok(softmax(&logits.to_dtype(candle_core::DType::F32)?, 1)?.squeeze(0)?.to_vec1()?)
        };
        match probabilities().with_context(|| format!("cannot classify {}", path.display())) {
            Ok(probabilities) => {
                let mut classes: Vec<_> = info.classes.iter().zip(probabilities).collect();
                classes.sort_by(|a, b| b.1.total_cmp(&a.1));
                let words = classes[..options.top].iter().map(|(class, p)| format!("{class} {:.1} %", 100.0 * p));
                say(format_args!("{}: {}", path.display(), words.collect::<Vec<_>>().join(", ")));
            }
            Err(error) => {
                warn(format_args!("error: {error:#}"));
                failed = true;
            }
        }
    }
    Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS })
}
