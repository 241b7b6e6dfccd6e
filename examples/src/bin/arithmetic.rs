//! Times SAM's own arithmetic (norm, perturbation, restoration) on parameters without a network, and prints one JSON line: the
//! effective bandwidth, with four bytes moved per byte of a parameter, and that of a copy.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use candle_core::{DType, Result as Candle, Tensor, Var};
use clap::Parser;
use sam_examples::cli::console::{exit, say};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{parse, within};
use sam_examples::util::numbers::MOST;
use sam_examples::util::timing::seconds;
use sam_runtime::{Pass, Sam};
use serde_json::{Value, json};

/// Time SAM's own arithmetic.
#[derive(Debug, Parser)]
#[command(name = "arithmetic", version, after_help = "Example:\n  arithmetic 36479194 --variables 80 --threads 2")]
struct Options {
    /// Parameters in all
    #[arg(default_value_t = 36_479_194)]
    parameters: usize,

    /// Number of variables
    #[arg(long, default_value_t = 80)]
    variables: usize,

    /// Steps that are timed together; each holds a gradient, so that the device never waits for the host
    #[arg(long, default_value_t = 8)]
    steps: usize,

    /// Number of repetitions
    #[arg(long, default_value_t = 5)]
    iters: usize,

    #[command(flatten)]
    device: DeviceArgs,
}

fn main() -> ExitCode {
    exit(arithmetic(&parse()).map(|line| {
        say(line);
        ExitCode::SUCCESS
    }))
}

fn arithmetic(options: &Options) -> Result<Value> {
    let Options { parameters, variables, steps, iters, device } = options;
    // Eight numbers of four bytes are kept for each: 64 GiB.
    ensure!((1..=1 << 31).contains(parameters), "there are {parameters} parameters: expected 1 to {}", 1u64 << 31);
    within("variables", *variables, 1..=(*parameters).min(MOST as usize))?;
    within("steps", *steps, 1..=1000)?;
    within("iters", *iters, 1..=MOST as usize)?;
    ensure!(
        !device.is_bf16(),
        "--bf16 has no effect: SAM's arithmetic is that of the weights, which are f32; remove it"
    );
    let device = device.config()?.device;
    let sizes = (0..*variables).map(|i| parameters / variables + usize::from(i < parameters % variables));
    let vars = sizes.map(|n| Var::ones(n, DType::F32, &device)).collect::<Candle<Vec<_>>>()?;
    // One copy of all parameters: many small copies would measure the launches.
    let (from, to) = (Tensor::ones(*parameters, DType::F32, &device)?, Var::zeros(*parameters, DType::F32, &device)?);
    let mut loss = |_: Pass| -> Candle<Tensor> {
        let mut sum = Tensor::zeros((), DType::F32, &device)?;
        for var in &vars {
            sum = (sum + var.sum_all()?)?;
        }
        Ok(sum)
    };

    let sam = Sam::default();
    let (mut ours, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..=*iters {
        let ascents = (0..*steps).map(|_| sam.ascend(&mut loss)).collect::<Candle<Vec<_>>>()?;
        ours.push(seconds(&device, || ascents.into_iter().try_for_each(|ascent| ascent.perturb().map(drop)))?);
        copies.push(seconds(&device, || (0..*steps).try_for_each(|_| to.set(&from)))?);
    }
    // The first round warms up.
    let [ours, copies] = [ours, copies].map(|times| {
        let mut times = times[1..].to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2] / *steps as f64
    });
    let gib = (4 * parameters) as f64 / f64::from(1 << 30);
    let (moved, copied) = (4.0 * gib / ours, 2.0 * gib / copies);
    Ok(json!({
        "parameters": parameters,
        "variables": variables,
        "device": format!("{:?}", device.location()),
        "ms": ours * 1e3,
        "gib_per_second": moved,
        "copy_gib_per_second": copied,
        "of_copy": moved / copied,
    }))
}
