//! Draws the loss around the minima of trained networks, side by side (Figure 1 of the paper).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use candle_core::DType;
use clap::Parser;
use sam_examples::cli::console::{bar, exit, print, warn};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{above_0, parse, within};
use sam_examples::cli::ranks::on_one_rank;
use sam_examples::experiments::landscape::{Network, Settings, count, digest_of, measure, open_log, write};
use sam_examples::trainer::WeightsInfo;
use sam_examples::util::numbers::MOST;
use sam_examples::util::stop::{STOPPED, Stop};

sam_examples::use_mimalloc!();

/// Draw the loss around the minima that `train` has found, as a picture and as a page that can be turned.
///
/// Interrupted, it goes on where it was when it is started again in the same way.
#[derive(Debug, Parser)]
#[command(
    name = "landscape",
    version,
    after_help = "Example:\n  landscape SGD=runs/sgd/weights.safetensors SAM=runs/sam/weights.safetensors --data data"
)]
struct Options {
    /// Weights that `train` has written, of networks of one kind, each with a name before it if its folder's will not do:
    /// SGD=runs/sgd/weights.safetensors
    #[arg(required = true, value_name = "[NAME=]FILE")]
    weights: Vec<String>,

    /// Folder of the data sets
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Number of training images of the loss, and at most as many test images, from the first one on; 0 for all
    #[arg(long, default_value_t = 2000)]
    images: usize,

    /// Points along each side of the plane
    #[arg(long, default_value_t = 25)]
    grid: usize,

    /// How far the plane goes in each direction, in units of the norms of the filters
    #[arg(long, default_value_t = 1.0)]
    span: f64,

    /// Products with the Hessian for its spectrum; each takes 8 bytes of memory for each weight
    #[arg(long, default_value_t = 40)]
    order: usize,

    /// Radius of the ball for the sharpness
    #[arg(long, default_value_t = 0.05)]
    rho: f64,

    /// Seed of the random directions
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Folder of what is written
    #[arg(long, value_name = "DIR", default_value = "runs/landscape")]
    out: PathBuf,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options: Options = parse();
    exit(on_one_rank(|| look(&options)))
}

fn look(options: &Options) -> Result<ExitCode> {
    within("grid", options.grid, 2..=1001)?;
    above_0("span", options.span)?;
    above_0("rho", options.rho)?;
    within("order", options.order, 1..=MOST as usize)?;
    ensure!(options.weights.len() <= 4, "there are {} files of weights: expected at most 4", options.weights.len());
    let place = options.device.config()?;
    ensure!(
        place.dtype == DType::F32 && !place.tf32,
        "--bf16 and --tf32 would round small differences away: remove them"
    );
    let (mut networks, mut digests, mut first) = (Vec::new(), Vec::new(), None::<WeightsInfo>);
    for named in &options.weights {
        let (name, path) = named_file(named);
        ensure!(
            !networks.iter().any(|known: &Network| known.name == name),
            "two networks are called {name}: give them names, NAME=FILE"
        );
        let (info, model) = WeightsInfo::load(path, &place)?;
        ensure!(!info.model.is_for_text(), "{} is of a language model: expected a network for images", path.display());
        if let Some(first) = &first {
            ensure!(
                (first.model, first.shape, &first.data) == (info.model, info.shape, &info.data),
                "{} is of {} on {}, and the first of {} on {}: expected networks of one kind, on one data set",
                path.display(),
                info.model,
                info.data,
                first.model,
                first.data
            );
        }
        digests.push(digest_of(path)?);
        first.get_or_insert(info);
        networks.push(Network { name, model });
    }
    let Some(info) = first else { return Ok(ExitCode::FAILURE) };
    let data = info.data_set(named_file(&options.weights[0]).1, options.data.as_deref(), &place.device)?;
    for note in &data.notes {
        warn(note);
    }
    let most = if options.images == 0 { usize::MAX } else { options.images };
    let [train, test] = [data.train.first(most), data.test.first(most)];
    let settings =
        Settings { grid: options.grid, span: options.span, order: options.order, rho: options.rho, seed: options.seed };
    let stop = Stop::on_signals()?;
    let mut log = open_log(
        &options.out.join("landscape.jsonl"),
        &networks,
        &digests,
        &data.name,
        [&train, &test],
        &settings,
        &stop,
    )?;
    let bar = bar(count(networks.len(), &settings) as u64, "landscape", options.quiet);
    let found = measure(&networks, [&train, &test], &settings, &mut log, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let Some(found) = found else {
        warn("interrupted: start it again in the same way, and it goes on");
        return Ok(ExitCode::from(STOPPED));
    };
    let title = format!("{}, {} images of {}", info.model, train.len(), data.name);
    // The files first: the standard output may be closed.
    print(&write(&found, &settings, &title, &options.out, "landscape")?);
    Ok(ExitCode::SUCCESS)
}

/// A name for tables and pictures, and a path.
fn named_file(named: &str) -> (String, &Path) {
    if let Some((name, path)) = named.split_once('=').filter(|_| !Path::new(named).is_file()) {
        return (name.to_owned(), Path::new(path));
    }
    let path = Path::new(named);
    let folder = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    (folder.unwrap_or_else(|| named.to_owned()), path)
}
