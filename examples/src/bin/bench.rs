//! Times a step of a plain optimizer and a SAM step, and prints one JSON line: the median and the minimum milliseconds of each
//! part. Under mpirun each rank takes a batch of its own, and `all_reduce` is the time in which their gradients are averaged.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_examples::cli::console::{exit, say};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{parse, within};
use sam_examples::data::VOCABULARY;
use sam_examples::models::layers::{CandleNn, LayerSet, SamRuntime};
use sam_examples::models::params::trained_vars;
use sam_examples::models::{Architecture, Model};
use sam_examples::trainer::Optimizer;
use sam_examples::util::numbers::MOST;
use sam_examples::util::timing::seconds;
use sam_runtime::distributed::{self, Comm};
use sam_runtime::optim::{ParamGroup, ParamsAdamW, ParamsSgd};
use sam_runtime::{Ascent, Sam, nn};
use serde_json::{Map, Value, json};
use tracing_subscriber::filter::LevelFilter;

sam_examples::use_mimalloc!();

/// Time a step without SAM and a SAM step: of SGD, of transformers and mixers AdamW.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    version,
    after_help = "Examples:\n  bench resnet20 --batch 128\n  bench gpt --threads 2\n  bench mlp-wide --stock --threads 1\n  mpirun -n 4 \
                  bench vit-b-16 --device cuda --bf16"
)]
struct Options {
    /// Network: mlp-wide, resnet20, resnet18, wrn-16-4, wrn-28-10, vit-tiny, gpt, efficientnet-lite0, ..
    model: Architecture,

    /// Images, or windows of 256 tokens, in a batch [default: 128, 32 for wrn-28-10, gpt and images of more than 32 pixels]
    #[arg(long)]
    batch: Option<usize>,

    /// Build the network from the layers of `candle_nn`
    #[arg(long)]
    stock: bool,

    #[command(flatten)]
    device: DeviceArgs,

    /// Number of repetitions
    #[arg(long, default_value_t = 5)]
    iters: usize,

    /// Print which of cuDNN's plans were tried, how long they took, and which was chosen, on the standard error
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let options: Options = parse();
    exit(distributed::run(|world| {
        let line =
            if options.stock { bench::<CandleNn>(&options, world)? } else { bench::<SamRuntime>(&options, world)? };
        if world.rank() == 0 {
            say(line);
        }
        Ok(ExitCode::SUCCESS)
    }))
}

fn bench<K: LayerSet + 'static>(options: &Options, world: &Comm) -> Result<Value> {
    within("iters", options.iters, 1..=MOST as usize)?;
    within("batch", options.batch.unwrap_or(1), 1..=1 << 16)?;
    let architecture = options.model;
    let shape = input_of(architecture);
    let is_large = matches!(architecture, Architecture::Wide { width: 160.., .. }) || shape[2] > 32;
    let batch = options.batch.unwrap_or(if is_large { 32 } else { 128 });
    let device = options.device.config_of_rank(world)?;
    if options.verbose {
        ensure!(
            device.device.is_cuda(),
            "--verbose has no effect on this device, which has no cuDNN: remove it, or use --device cuda"
        );
        tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_writer(std::io::stderr).init();
    }
    if options.stock && device.dtype != DType::F32 {
        bail!("--bf16 with --stock: the layers of `candle_nn` compute in the type of their weights");
    }
    let is_text = architecture.is_for_text();
    let model = Model::<K>::at(&device, architecture, shape, if is_text { VOCABULARY } else { 10 }, 0)?;
    let (mut x, y) =
        if is_text { text_of(batch, shape[2], &device.device)? } else { batch_of(batch, shape, &device.device)? };
    if device.channels_last && !is_text {
        x = nn::channels_last(&x)?;
    }
    let clock =
        |f: &mut dyn FnMut() -> candle_core::Result<()>| Ok::<_, anyhow::Error>(1e3 * seconds(&device.device, f)?);
    let vars = trained_vars(model.vars());
    let mut optimizer = optimizer(architecture, vars.clone())?;
    let (sam, alone) = (Sam::default().all_reduce(world), Sam::default());
    let mut loss = |_| model.cross_entropy(&x, &y);

    let mut times: Vec<(&str, Vec<f64>)> =
        ["forward_backward", "sgd", "sam", "all_reduce", "optimizer", "perturb", "restore"]
            .map(|name| (name, Vec::new()))
            .into();
    let warm_up = 2;
    for round in 0..warm_up + options.iters {
        let mut took = Vec::new();
        took.push(clock(&mut || nn::backward(&model.cross_entropy(&x, &y)?).map(drop))?);
        took.push(clock(&mut || {
            let mut grads = nn::backward(&model.cross_entropy(&x, &y)?)?;
            world.average_gradients(&mut grads, vars.iter().cloned())?;
            optimizer.step(&grads)
        })?);
        took.push(clock(&mut || optimizer.backward_step(&sam.loss(|| model.cross_entropy(&x, &y))?))?);
        let mut grads = nn::backward(&model.cross_entropy(&x, &y)?)?;
        took.push(clock(&mut || world.average_gradients(&mut grads, vars.iter().cloned()))?);
        took.push(clock(&mut || optimizer.step(&grads))?);
        drop(grads);
        let (mut ascent, mut perturbed) = (Some(alone.ascend(&mut loss)?), None);
        took.push(clock(&mut || {
            perturbed = ascent.take().map(Ascent::perturb).transpose()?;
            Ok(())
        })?);
        took.push(clock(&mut || {
            drop(perturbed.take());
            Ok(())
        })?);
        if round >= warm_up {
            for ((_, times), milliseconds) in times.iter_mut().zip(took) {
                times.push(milliseconds);
            }
        }
    }
    for (_, times) in &mut times {
        times.sort_by(f64::total_cmp);
    }
    let median = |name: &str| times.iter().find(|(known, _)| *known == name).map_or(0.0, |(_, t)| t[t.len() / 2]);
    let table = |pick: fn(&[f64]) -> f64| -> Map<String, Value> {
        times.iter().map(|(name, times)| ((*name).to_owned(), json!(rounded(pick(times))))).collect()
    };
    // The time until the host returns while the device works: short if it does not synchronize.
    device.device.synchronize()?;
    let start = Instant::now();
    optimizer.backward_step(&sam.loss(|| model.cross_entropy(&x, &y))?)?;
    let enqueued = start.elapsed().as_secs_f64() * 1e3;
    // The loss shows that the step has computed the right thing.
    let loss = model.cross_entropy(&x, &y)?.to_scalar::<f32>()?;
    let overhead = median("sam") / (2.0 * median("forward_backward") + median("optimizer"));
    Ok(json!({
        "layers": if options.stock { "candle_nn" } else { "sam_runtime" },
        "model": options.model.to_string(),
        "optimizer": optimizer.name(),
        "batch": batch,
        "ranks": world.size(),
        "threads": rayon::current_num_threads(),
        "device": format!("{:?}", device.device.location()),
        "dtype": device.dtype.as_str(),
        "tf32": device.tf32,
        "channels_last": device.channels_last,
        "params": model.parameters(),
        "median_ms": table(|times| times[times.len() / 2]),
        "min_ms": table(|times| times[0]),
        "loss": loss,
        "sam_overhead": rounded(overhead),
        "sam_enqueued_ms": rounded(enqueued),
        "peak_rss_mib": peak_memory(),
    }))
}

/// Channels, height and width of an image, or the length of a text.
fn input_of(architecture: Architecture) -> [usize; 3] {
    match architecture {
        Architecture::Mlp(_) | Architecture::MlpNorm(_) | Architecture::MlpWide(_) => [1, 28, 28],
        Architecture::EfficientNetLite0(_) => [3, 128, 128],
        _ if architecture.is_for_text() => [1, 1, 256],
        _ if architecture.is_for_imagenet() => [3, 224, 224],
        _ => [3, 32, 32],
    }
}

/// That of the networks' trainings.
fn optimizer(architecture: Architecture, vars: Vec<Var>) -> Result<Optimizer> {
    let all = [ParamGroup::new(vars)];
    if architecture.is_transformer() {
        return Optimizer::adamw(all, ParamsAdamW { lr: 1e-4, weight_decay: 0.05, ..ParamsAdamW::default() });
    }
    Optimizer::sgd(all, ParamsSgd { lr: 1e-3, momentum: 0.9, nesterov: true, weight_decay: 5e-4 })
}

/// Random tokens and next tokens.
fn text_of(n: usize, length: usize, device: &Device) -> Result<(Tensor, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut tokens = || {
        let tokens = (0..n * length).map(|_| rng.random_range(0..VOCABULARY as u32)).collect();
        Tensor::from_vec(tokens, (n, length), device)
    };
    Ok((tokens()?, tokens()?))
}

fn batch_of(n: usize, shape: [usize; 3], device: &Device) -> Result<(Tensor, Tensor)> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<f32> = (0..n * shape.iter().product::<usize>()).map(|_| rng.random_range(-1.7..1.7)).collect();
    let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..10)).collect();
    let x = Tensor::from_vec(pixels, (n, shape[0], shape[1], shape[2]), device)?;
    Ok((x, Tensor::from_vec(labels, n, device)?))
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// The peak memory of the process in MiB, on Linux.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}
