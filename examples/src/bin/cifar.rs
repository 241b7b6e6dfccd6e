//! Trains a small network twice, with SGD and with SAM, and shows both learning curves.
//!
//! Without arguments: on an embedded part of Fashion-MNIST, 40 % of whose training labels are wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar};
use sam_examples::augment::Augment;
use sam_examples::cli::console::{bar, exit, say, warn};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{above_0, at_least_0, parse, within};
use sam_examples::cli::out::Out;
use sam_examples::cli::repetitions::Repetitions;
use sam_examples::data::{self, Archive, Dataset, ImageSet, Noise};
use sam_examples::experiments::compare::run::{Ball, CompareConfig, Epoch, TrainMode, Trained, run};
use sam_examples::experiments::compare::{curves, report};
use sam_examples::experiments::landscape::{Network, PointLog, Settings, draw, measure};
use sam_examples::io::atomic::write_atomic;
use sam_examples::models::layers::SamRuntime;
use sam_examples::models::{Architecture, Model};
use sam_examples::trainer::share;
use sam_examples::util::device::DeviceConfig;
use sam_examples::util::numbers::MOST;
use sam_examples::util::stop::{STOPPED, Stop};
use sam_runtime::Sam;
use sam_runtime::distributed::{self, Comm};
use sam_runtime::optim::ParamsSgd;

sam_examples::use_mimalloc!();

const EXAMPLES: &str = "Examples:
  cifar                                              the set that is compiled in, 40 % wrong labels
  cifar --download cifar10 --model resnet20 --augment
  cifar --data flowers --image-size 32 --limit 5000 --epochs 20";

/// Files that are written.
const FILES: [&str; 4] = ["log.jsonl", "table.md", "curves.png", "landscape.png"];

/// Train a small network with SGD and with SAM, and compare.
///
/// Without arguments: on a part of Fashion-MNIST that is compiled in, with 40 % wrong labels. Real data sets:
/// CIFAR-10 and CIFAR-100 (binary), MNIST-like IDX files, SVHN, or any folder train/CLASS/*.png, test/CLASS/*.png.
#[derive(Debug, Parser)]
#[command(name = "cifar", version, after_help = EXAMPLES)]
struct Options {
    /// Folder of the data set
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Download a data set, into the folder `--data` or `data`
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
    only: Option<TrainMode>,

    #[command(flatten)]
    repetitions: Repetitions<3>,

    /// Share of wrong training labels, 0 to 1 [default: 0.4 for the embedded set, 0 for others]
    #[arg(long)]
    noise: Option<f64>,

    /// How wrong labels are drawn [default: exclusive]
    #[arg(long, value_enum)]
    noise_kind: Option<Noise>,

    /// Radius of SAM's ball [default: 0.2 for the embedded set, the paper's 0.05 for others]
    #[arg(long)]
    rho: Option<f64>,

    /// Norm of SAM's ball, 1 to inf [default: 2]
    #[arg(long)]
    p: Option<f64>,

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
    device: DeviceArgs,

    #[command(flatten)]
    out: Out,

    /// No progress bars
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options = parse();
    exit(distributed::run(|world| compare(&options, world)))
}

/// Checks everything that can be checked before a data set is read or downloaded.
fn check(options: &Options) -> Result<()> {
    options.repetitions.check()?;
    within("batch", options.batch as u64, 1..=MOST)?;
    if let Some(limit) = options.limit {
        within("limit", limit, 1..=usize::MAX)?;
    }
    if let Some(model) = options.model {
        ensure!(!model.is_for_text(), "--model is {model}, a language model: expected a network for images");
    }
    above_0("lr", options.lr)?;
    within("momentum", options.momentum, 0.0..=0.999_999)?;
    at_least_0("weight-decay", options.weight_decay)?;
    ensure!(
        !options.nesterov || options.momentum > 0.0,
        "--nesterov has no effect with --momentum 0: remove one of them"
    );
    if options.only == Some(TrainMode::Sgd) {
        for (option, is_set) in [("rho", options.rho.is_some()), ("p", options.p.is_some())] {
            ensure!(!is_set, "--{option} has no effect with --only sgd: remove one of them");
        }
    }
    let (noise, kind) = noise(options);
    data::add_noise(&mut [], 2, noise, kind, 0)?;
    ensure!(
        options.noise_kind.is_none() || noise > 0.0,
        "--noise-kind has no effect without wrong labels: set --noise to a share above 0"
    );
    ensure!(
        options.image_size.is_none() || options.data.is_some(),
        "--image-size has no effect without --data: remove it, or name a folder of pictures with --data"
    );
    if let Some(size) = options.image_size {
        within("image-size", size, 1..=data::MAX_IMAGE_SIZE)?;
    }
    let ball = ball(options);
    Sam::new(ball.rho).p(ball.p).validate()?;
    Ok(())
}

fn is_embedded(options: &Options) -> bool {
    options.data.is_none() && options.download.is_none()
}

fn noise(options: &Options) -> (f64, Noise) {
    let usual = if is_embedded(options) { 0.4 } else { 0.0 };
    (options.noise.unwrap_or(usual), options.noise_kind.unwrap_or(Noise::Exclusive))
}

fn ball(options: &Options) -> Ball {
    let usual = if is_embedded(options) { 0.2 } else { Sam::DEFAULT_RHO };
    Ball { rho: options.rho.unwrap_or(usual), p: options.p.unwrap_or(2.0) }
}

fn compare(options: &Options, world: &Comm) -> Result<ExitCode> {
    // Rank 0 prints and writes.
    let is_first = world.rank() == 0;
    let quiet = options.quiet || !is_first;
    let stop = Stop::on_signals()?;
    check(options)?;
    if is_first {
        options.out.check(&FILES)?;
    }
    ensure!(
        world.size() == 1 || options.download.is_none(),
        "--download is for one process: download the set without mpirun first, then name its folder with --data"
    );
    let device = options.device.config_of_rank(world)?;
    let screen = if quiet {
        MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden())
    } else {
        MultiProgress::new()
    };
    let set = Arc::new(stop.while_nothing_is_to_save(|| read(options, &screen))?);
    let config = config(options, &set, device, world)?;
    let modes = options.only.map_or(vec![TrainMode::Sgd, TrainMode::Sam], |only| vec![only]);
    let title = title(options, &config, &set);
    if is_first {
        say(format_args!("{title}\n"));
    }

    // What cannot be built is said before older results are removed.
    let shape = [set.channels, set.height, set.width];
    drop(Model::<SamRuntime>::at(&config.device, config.architecture, shape, set.classes.len(), 0)?);
    let start = Instant::now();
    let mut out = if is_first { Some(options.out.claim("runs/cifar", &FILES)?.log(&FILES)?) } else { None };
    // Of the trainings that have ended.
    let mut log: Vec<Epoch> = Vec::new();
    let (mut trained, mut images) = (Vec::new(), None);
    let total = screen.add(bar((modes.len() as u64) * options.repetitions.count * config.epochs as u64, "all", quiet));
    'all: for seed in options.repetitions.seeds() {
        for &mode in &modes {
            let line =
                screen.insert_before(&total, bar(config.epochs as u64, &format!("{} seed {seed}", mode.name()), quiet));
            let mut epochs = Vec::new();
            let ended = run(&config, &set, mode, seed, &stop, |epoch| {
                line.set_message(format!("test error {:.1} %", 100.0 * epoch.test_error));
                line.inc(1);
                total.inc(1);
                if let Some((_, file)) = &mut out {
                    file.add(&epoch)?;
                }
                epochs.push(epoch);
                Ok(())
            })?;
            let Some(Trained { model, train, test }) = ended else { break 'all };
            if images.is_none() {
                images = Some([train, test]);
            }
            // Of the first seed.
            if trained.len() < modes.len() {
                trained.push(Network { name: mode.name().to_owned(), model });
            }
            log.extend(epochs);
            line.finish();
        }
    }
    total.finish_and_clear();
    let planned = modes.len() * options.repetitions.count as usize;
    let done = log.len() / config.epochs;
    let stopped = (done < planned).then(|| format!("stopped after {done} of {planned} trainings"));
    let Some((out, mut file)) = out else {
        return Ok(stopped.map_or(ExitCode::SUCCESS, |_| ExitCode::from(STOPPED)));
    };
    file.sync()?;
    if let Some(stopped) = stopped.as_ref().filter(|_| done == 0) {
        say(format_args!("{stopped}: no table; log: {}", out.display()));
        return Ok(ExitCode::from(STOPPED));
    }

    let modes: Vec<_> = modes.into_iter().filter(|mode| log.iter().any(|epoch| epoch.mode == *mode)).collect();
    let title = stopped.as_ref().map_or_else(|| title.clone(), |stopped| format!("{title}, {stopped}"));
    let table = report::table(&log, &modes);
    let command = command_line(options, &config);
    write_atomic(&out.join(FILES[1]), format!("{title}\n\n{table}\n{command}\n").as_bytes())?;
    curves::draw(&log, &modes, &title, config.noise.0 > 0.0, &out.join(FILES[2]))?;
    say(format_args!("Error on {} test images in %, mean ± 95 % interval:\n\n{table}", set.test.len()));
    say("\"Best epoch\" is chosen on the test images: an upper bound of what early stopping gives.");
    // Not of a comparison that only tries something out.
    if let Some(images) = images.filter(|_| stopped.is_none() && options.limit.is_none()) {
        landscapes(&config, &trained, &images, &stop, &title, &out.join(FILES[3]))?;
    }
    say(format_args!("{:.0} s in all; curves, table and log: {}", start.elapsed().as_secs_f64(), out.display()));
    Ok(stopped.map_or(ExitCode::SUCCESS, |stopped| {
        say(stopped);
        ExitCode::from(STOPPED)
    }))
}

/// Draws the loss around the minima of perceptrons. Larger networks would take more than some seconds: `train` them, and
/// use `landscape`.
fn landscapes(
    config: &CompareConfig,
    networks: &[Network],
    images: &[ImageSet; 2],
    stop: &Stop,
    title: &str,
    path: &Path,
) -> Result<()> {
    use Architecture::{Mlp, MlpNorm, MlpWide};
    if !matches!(config.architecture, Mlp(_) | MlpNorm(_) | MlpWide(_)) || config.device.dtype != DType::F32 {
        return Ok(());
    }
    let [train, test] = images.each_ref().map(|images| images.first(1000));
    let rho = if config.ball.rho > 0.0 { config.ball.rho } else { 0.05 };
    let settings = Settings { grid: 17, span: 1.0, order: 15, rho, seed: 0 };
    let found = measure(networks, [&train, &test], &settings, &mut PointLog::in_memory(stop), &mut || ())?;
    let Some(found) = found else { return Ok(()) };
    draw(&found, title, path)?;
    for network in &found.networks {
        say(format_args!(
            "{}: λ₁ of the Hessian {:.1}, L(w + ε̂) - L(w) {:.4}",
            network.name,
            network.spectrum.values.first().copied().unwrap_or_default(),
            network.sharpness
        ));
    }
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
            for note in &set.notes {
                warn(note);
            }
            set
        }
        None => data::embedded()?,
    };
    if let Some(limit) = options.limit {
        set.limit(limit);
    }
    Ok(set)
}

fn config(options: &Options, set: &Dataset, device: DeviceConfig, world: &Comm) -> Result<CompareConfig> {
    if options.batch > set.train.len() {
        bail!(
            "--batch is {}, but there are only {} training images: choose at most as many",
            options.batch,
            set.train.len()
        );
    }
    let (noise, kind) = noise(options);
    data::add_noise(&mut [], set.classes.len(), noise, kind, 0)?;
    let usual = if is_embedded(options) { Architecture::Mlp(128) } else { Architecture::Cnn(16) };
    share("--batch", options.batch, world)?;
    Ok(CompareConfig {
        world: world.clone(),
        device,
        architecture: options.model.unwrap_or(usual),
        epochs: options.repetitions.epochs,
        batch: options.batch,
        sgd: ParamsSgd {
            lr: options.lr,
            momentum: options.momentum,
            nesterov: options.nesterov,
            weight_decay: options.weight_decay,
        },
        ball: ball(options),
        augment: if options.augment { Augment::BASIC } else { Augment::NONE },
        noise: (noise, kind),
    })
}

/// The command line that repeats the run, with every option.
fn command_line(options: &Options, config: &CompareConfig) -> String {
    let CompareConfig { architecture, epochs, batch, sgd, ball, noise, device, .. } = config;
    let mut words = vec![
        format!("--model {architecture} --epochs {epochs} --batch {batch} --lr {} --momentum {}", sgd.lr, sgd.momentum),
        format!(
            "--weight-decay {} --seeds {} --seed {}",
            sgd.weight_decay, options.repetitions.count, options.repetitions.first
        ),
    ];
    let kind = if noise.1 == Noise::Exclusive { "exclusive" } else { "inclusive" };
    words.push(if noise.0 > 0.0 { format!("--noise {} --noise-kind {kind}", noise.0) } else { "--noise 0".to_owned() });
    match options.only {
        Some(TrainMode::Sgd) => words.push("--only sgd".to_owned()),
        Some(TrainMode::Sam) => words.push(format!("--rho {} --p {} --only sam", ball.rho, ball.p)),
        None => words.push(format!("--rho {} --p {}", ball.rho, ball.p)),
    }
    for (is_set, option) in [(sgd.nesterov, "--nesterov"), (options.augment, "--augment")] {
        words.extend(is_set.then(|| option.to_owned()));
    }
    words.extend(options.limit.map(|limit| format!("--limit {limit}")));
    words.extend(options.image_size.map(|size| format!("--image-size {size}")));
    let on = if device.is_default() { String::new() } else { format!(", on {device}") };
    format!("Options: `{}`{on}", words.join(" "))
}

fn title(options: &Options, config: &CompareConfig, set: &Dataset) -> String {
    let model = config.architecture;
    let noise =
        if config.noise.0 > 0.0 { format!(", {:.0} % wrong labels", 100.0 * config.noise.0) } else { String::new() };
    let seeds = options.repetitions.words();
    format!("{}, {} images{noise}, {model}, SAM ρ = {}, {seeds}", set.name, set.train.len(), config.ball.rho)
}
