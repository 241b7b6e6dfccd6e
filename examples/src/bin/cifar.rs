//! Trains a small network twice, with SGD and with SAM, and shows both learning curves.
//!
//! Without arguments: on an embedded part of Fashion-MNIST, 40 % of whose training labels are wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar};
use sam_examples::augment::Augment;
use sam_examples::compute::Compute;
use sam_examples::console::{bar, exit};
use sam_examples::data::{self, Archive, Dataset, Noise};
use sam_examples::models::Architecture;
use sam_examples::report::{self, Log};
use sam_examples::run::{Epoch, Method, Plan, run};
use sam_examples::tutorial::Ball;
use sam_runtime::Sam;
use sam_runtime::optim::ParamsSgd;

/// The system's allocator gives every large buffer back and takes it anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a small network with SGD and with SAM, and compare.
///
/// Without arguments: on a part of Fashion-MNIST that is compiled in, with 40 % wrong labels. Real data sets:
/// CIFAR-10 and CIFAR-100 (binary), MNIST-like IDX files, or any folder train/CLASS/*.png, test/CLASS/*.png.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Folder of the data set
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Fetch a data set, into the folder `--data` or `data`
    #[arg(long, value_enum)]
    download: Option<Archive>,

    /// Crop and scale pictures of a folder to this many pixels a side
    #[arg(long, value_name = "PIXELS")]
    image_size: Option<u32>,

    /// Use the first N training images
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Network: mlp, cnn, resnet20, wrn-16-4, .. [default: mlp for the embedded set, cnn for others]
    #[arg(long)]
    model: Option<Architecture>,

    /// Train with one method only
    #[arg(long, value_enum)]
    only: Option<Method>,

    /// Passes over the training images
    #[arg(long, default_value_t = 40)]
    epochs: usize,

    /// How often the whole is repeated, with other weights, order and wrong labels
    #[arg(long, default_value_t = 3)]
    seeds: u64,

    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Share of wrong training labels, 0 to 1 [default: 0.4 for the embedded set, 0 for others]
    #[arg(long)]
    noise: Option<f64>,

    /// How labels go wrong
    #[arg(long, value_enum, default_value_t = Noise::Exclusive)]
    noise_kind: Noise,

    /// Radius of SAM's ball [default: 0.2 for the embedded set, the paper's 0.05 for others]
    #[arg(long)]
    rho: Option<f64>,

    /// Norm of SAM's ball, 1 to inf
    #[arg(long, default_value_t = 2.0)]
    p: f64,

    /// Images in a batch
    #[arg(long, default_value_t = 128)]
    batch: usize,

    /// Learning rate at the start; it falls to 0 along a cosine
    #[arg(long, default_value_t = 0.05)]
    lr: f64,

    /// Momentum
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,

    /// Nesterov's momentum
    #[arg(long)]
    nesterov: bool,

    /// Weight decay
    #[arg(long, default_value_t = 5e-4)]
    weight_decay: f64,

    /// Flip images, and shift them by up to four pixels
    #[arg(long)]
    augment: bool,

    #[command(flatten)]
    compute: Compute,

    /// Folder of the log, the table and the picture
    #[arg(long, value_name = "DIR", default_value = "runs/cifar")]
    out: PathBuf,

    /// No progress bars
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    exit(compare(&Options::parse()).map(|()| ExitCode::SUCCESS))
}

fn compare(options: &Options) -> Result<()> {
    let screen = if options.quiet {
        MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden())
    } else {
        MultiProgress::new()
    };
    let set = Arc::new(read(options, &screen)?);
    let plan = plan(options, &set)?;
    let methods = options.only.map_or(vec![Method::Sgd, Method::Sam], |only| vec![only]);
    let title = title(options, &plan, &set);
    println!("{title}\n");

    let start = Instant::now();
    let mut file = Log::create(&options.out.join("log.jsonl"))?;
    let mut log: Vec<Epoch> = Vec::new();
    let total = screen.add(bar((methods.len() as u64) * options.seeds * plan.epochs as u64, "all", options.quiet));
    for seed in options.seed..options.seed + options.seeds {
        for &method in &methods {
            let line = screen.insert_before(
                &total,
                bar(plan.epochs as u64, &format!("{} seed {seed}", method.name()), options.quiet),
            );
            run(&plan, &set, method, seed, |epoch| {
                line.set_message(format!("test error {:.1} %", 100.0 * epoch.test_error));
                line.inc(1);
                total.inc(1);
                file.add(&epoch)?;
                log.push(epoch);
                Ok(())
            })?;
            line.finish();
        }
    }
    total.finish_and_clear();

    let table = report::table(&log, &methods);
    let picture = options.out.join("curves.png");
    report::picture(&log, &methods, &title, &picture)?;
    report::write_whole(&options.out.join("table.md"), format!("{title}\n\n{table}").as_bytes())?;
    println!("Error on {} test images in %, mean ± standard error:\n\n{table}", set.test.len());
    println!("\"Best epoch\" is chosen on the test images: what early stopping could give at most.");
    println!("{:.0} s in all; curves, table and log: {}", start.elapsed().as_secs_f64(), options.out.display());
    Ok(())
}

fn read(options: &Options, screen: &MultiProgress) -> Result<Dataset> {
    let folder = match (options.download, &options.data) {
        (Some(archive), into) => {
            let progress = screen.add(ProgressBar::no_length());
            Some(data::download(archive, into.as_deref().unwrap_or(Path::new("data")), &progress)?)
        }
        (None, folder) => folder.clone(),
    };
    let mut set = match folder {
        Some(folder) => {
            let reading = screen.add(ProgressBar::new_spinner().with_message(format!("reading {}", folder.display())));
            reading.enable_steady_tick(Duration::from_millis(100));
            let set = data::load(&folder, options.image_size)?;
            reading.finish_and_clear();
            set
        }
        None => data::embedded()?,
    };
    if let Some(limit) = options.limit {
        set.train.images.truncate(limit.saturating_mul(set.image_len()));
        set.train.labels.truncate(limit);
    }
    Ok(set)
}

fn plan(options: &Options, set: &Dataset) -> Result<Plan> {
    let embedded = options.data.is_none() && options.download.is_none();
    let at_least_one =
        |name: &str, value: u64| if value == 0 { bail!("--{name} is 0: expected 1 or more") } else { Ok(()) };
    at_least_one("epochs", options.epochs as u64)?;
    at_least_one("seeds", options.seeds)?;
    at_least_one("batch", options.batch as u64)?;
    if options.batch > set.train.len() {
        bail!("--batch is {}, but there are only {} training images", options.batch, set.train.len());
    }
    // What the runs would refuse, before anything is written.
    let noise = (options.noise.unwrap_or(if embedded { 0.4 } else { 0.0 }), options.noise_kind);
    data::add_noise(&mut [], set.classes.len(), noise.0, noise.1, 0)?;
    let rho = options.rho.unwrap_or(if embedded { 0.2 } else { Sam::RHO });
    Sam::new(rho).p(options.p).check()?;
    Ok(Plan {
        place: options.compute.place()?,
        architecture: options.model.unwrap_or(if embedded { Architecture::Mlp(128) } else { Architecture::Cnn(16) }),
        epochs: options.epochs,
        batch: options.batch,
        sgd: ParamsSgd {
            lr: options.lr,
            momentum: options.momentum,
            nesterov: options.nesterov,
            weight_decay: options.weight_decay,
        },
        ball: Ball { rho, p: options.p },
        augment: if options.augment { Augment::BASIC } else { Augment::NONE },
        noise,
    })
}

fn title(options: &Options, plan: &Plan, set: &Dataset) -> String {
    let model = plan.architecture;
    let noise =
        if plan.noise.0 > 0.0 { format!(", {:.0} % wrong labels", 100.0 * plan.noise.0) } else { String::new() };
    let seeds = if options.seeds == 1 { "1 seed".to_owned() } else { format!("{} seeds", options.seeds) };
    format!("{}, {} images{noise}, {model}, SAM ρ = {}, {seeds}", set.name, set.train.len(), plan.ball.rho)
}
