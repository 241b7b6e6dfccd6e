//! The largest eigenvalues of the Hessian of trained networks, and a chart of the whole spectrum (section 4.2, Figure 3).

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::DType;
use clap::Parser;
use plotters::prelude::*;
use sam_examples::cli::console::{bar, exit, print};
use sam_examples::cli::device_args::DeviceArgs;
use sam_examples::cli::options::{parse, within};
use sam_examples::cli::out::Out;
use sam_examples::cli::ranks::on_one_rank;
use sam_examples::cli::recipe_args::RecipeArgs;
use sam_examples::experiments::hessian::{KEEP_GRAPH, densities, keeps_graph, of_loss};
use sam_examples::io::atomic::write_atomic;
use sam_examples::io::plot::{INK, png};
use sam_examples::io::table::align;
use sam_examples::models::Model;
use sam_examples::models::layers::CandleNn;
use sam_examples::recipe::Recipe;
use sam_examples::trainer::{Data, load_weights};
use sam_examples::util::device::DeviceConfig;
use sam_examples::util::numbers::MOST;
use serde_json::json;

sam_examples::use_mimalloc!();

/// Files that are written.
const FILES: [&str; 3] = ["spectrum.md", "spectrum.json", "spectrum.png"];

/// Show the sharpness of the minima that `train` has found.
///
/// Recipe, scale, settings and seed are those that the networks were trained with: they determine the network, the
/// training images and their labels.
#[derive(Debug, Parser)]
#[command(
    name = "spectrum",
    version,
    after_help = "Example:\n  spectrum figure3/sgd --data data sgd=runs/sgd/weights.safetensors sam=runs/sam/weights.safetensors"
)]
struct Options {
    #[command(flatten)]
    recipe: RecipeArgs,

    /// Weights, each with a name: sgd=runs/sgd/weights.safetensors
    #[arg(required = true, value_name = "NAME=FILE")]
    weights: Vec<String>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Number of training images of the loss, from the first one on; 0 for all
    #[arg(long, default_value_t = 0)]
    images: usize,

    /// Products with the Hessian; each takes 8 bytes of memory for each weight
    #[arg(long, default_value_t = 90)]
    order: usize,

    #[command(flatten)]
    out: Out,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options: Options = parse();
    if keeps_graph() {
        return exit(on_one_rank(|| look(&options).map(|()| ExitCode::SUCCESS)));
    }
    exit(with_graph())
}

/// Executes this program again, in the same process where the system can, with the environment variable that candle reads at its
/// start.
fn with_graph() -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(KEEP_GRAPH, "1");
    run(&mut command).context("cannot start this program once more")
}

#[cfg(unix)]
fn run(command: &mut Command) -> Result<ExitCode> {
    Err(std::os::unix::process::CommandExt::exec(command).into())
}

#[cfg(not(unix))]
fn run(command: &mut Command) -> Result<ExitCode> {
    let code = command.status()?.code();
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn look(options: &Options) -> Result<()> {
    within("order", options.order, 1..=MOST as usize)?;
    let mut weights = Vec::new();
    for named in &options.weights {
        let Some((name, path)) = named.split_once('=') else {
            bail!("`{named}` is not a name and a file: expected NAME=FILE, such as sgd=runs/sgd/weights.safetensors")
        };
        ensure!(Path::new(path).is_file(), "there is no file {path}: expected the weights of a trained network");
        weights.push((name, Path::new(path)));
    }
    options.out.check(&FILES)?;
    let place = options.device.config()?;
    if place.dtype != DType::F32 || place.tf32 {
        bail!("--bf16 and --tf32 would round small eigenvalues away: remove them")
    }
    let recipe = options.recipe.recipe()?;
    ensure!(
        !recipe.model.is_for_text(),
        "{} is a language model: expected a network for images, whose loss has one label for each example",
        recipe.model
    );
    let data = Data::load(&recipe, options.recipe.data.as_deref(), options.recipe.seed, &place.device)?;
    let claim = options.out.claim("runs/spectrum", &FILES)?;
    let done = write(options, &recipe, &place, &data, &weights, &claim.folder);
    if done.is_err() {
        claim.give_back(&FILES);
    }
    done
}

/// Writes the files to a folder, then prints the table.
fn write(
    options: &Options,
    recipe: &Recipe,
    place: &DeviceConfig,
    data: &Data,
    weights: &[(&str, &Path)],
    out: &Path,
) -> Result<()> {
    let source = data.train.first(if options.images == 0 { usize::MAX } else { options.images });
    let (mut found, mut rows, mut how) = (Vec::new(), Vec::new(), Vec::new());
    rows.push(["network", "λ₁", "λ₁ / λ₅", "λ₅", "least"].map(str::to_owned).to_vec());
    for &(name, path) in weights {
        let model: Model<CandleNn> = Model::at(place, recipe.model, data.train.shape(), data.classes, 0)?;
        load_weights(path, &model, |_| true)?;
        let bar = bar(options.order as u64, name, options.quiet);
        let (spectrum, eigenvalues) = of_loss(&model, &source, options.order, options.recipe.seed, || bar.inc(1))?;
        bar.finish_and_clear();
        let value = |i: usize| spectrum.values().get(i).map_or_else(String::new, |value| format!("{value:.2}"));
        rows.push(vec![
            name.to_owned(),
            value(0),
            spectrum.ratio().map_or_else(String::new, |ratio| format!("{ratio:.1}")),
            value(4),
            value(spectrum.values().len() - 1),
        ]);
        how.push(format!("{name}: {}", eigenvalues.method));
        found.push((name, spectrum, eigenvalues));
    }
    let title = format!("Hessian of the training loss: {}, {} images of {}", recipe.model, source.len(), data.name);
    let scaled = options.recipe.scaled();
    let note = if scaled.is_empty() { scaled } else { format!("Scaled: {scaled}\n\n") };
    let table = format!("# {title}\n\n{note}{}\n{}\n", align(&rows), how.join("\n\n"));
    write_atomic(&out.join(FILES[0]), table.as_bytes())?;
    let all: Vec<_> = found
        .iter()
        .map(|(name, spectrum, _)| json!({ "name": name, "values": spectrum.values(), "weights": spectrum.weights() }))
        .collect();
    write_atomic(&out.join(FILES[1]), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    let curves: Vec<_> = found.iter().map(|(name, _, eigenvalues)| (*name, eigenvalues)).collect();
    png(&out.join(FILES[2]), (1200, 750), |area| {
        let font = ("sans-serif", 30).into_font().color(&INK);
        area.draw(&Text::new(note.trim().to_owned(), (40, area.dim_in_pixel().1.cast_signed() - 52), font))?;
        densities(&area.margin(0, 40, 0, 0), &title, &curves, 36)
    })?;
    // The files first: the standard output may be closed.
    print(&table);
    Ok(())
}
