//! Trains one small network with every variant of SAM, on the same batches with the same wrong labels, and compares.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use sam_examples::cli::console::{bar, exit, say};
use sam_examples::cli::options::{above_0, parse};
use sam_examples::cli::out::Out;
use sam_examples::cli::ranks::on_one_rank;
use sam_examples::cli::repetitions::Repetitions;
use sam_examples::data;
use sam_examples::experiments::variants::report::table;
use sam_examples::experiments::variants::run::{Run, train};
use sam_examples::experiments::variants::{Variant, chart, variants};
use sam_examples::io::atomic::write_atomic;
use sam_examples::util::stop::{STOPPED, Stop};

sam_examples::use_mimalloc!();

/// Files that are written.
const FILES: [&str; 3] = ["log.jsonl", "table.md", "variants.png"];

/// Compare all variants of SAM on a part of Fashion-MNIST with 40 % wrong labels
#[derive(Debug, Parser)]
#[command(
    name = "variants",
    version,
    after_help = "Examples:\n  variants\n  variants --only asam --epochs 20 --seeds 2"
)]
struct Options {
    /// Only variants with this in their name; SGD and SAM always run
    #[arg(long, value_name = "NAME")]
    only: Option<String>,

    #[command(flatten)]
    repetitions: Repetitions<5>,

    /// Multiply every radius by this: how the radii in the list were found, with another seed than the five
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    rho_factor: f64,

    #[command(flatten)]
    out: Out,

    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options = parse();
    exit(on_one_rank(|| compare(&options)))
}

fn compare(options: &Options) -> Result<ExitCode> {
    let stop = Stop::on_signals()?;
    options.repetitions.check()?;
    above_0("rho-factor", options.rho_factor)?;
    let wanted = |variant: &Variant| {
        let name = variant.name.to_lowercase();
        let only = options.only.as_ref().is_none_or(|only| name.contains(&only.to_lowercase()));
        only || ["sgd", "sam"].contains(&name.as_str())
    };
    let variants: Vec<_> = variants().into_iter().filter(wanted).collect();
    if let Some(only) = &options.only {
        let is_in = |variant: &Variant| variant.name.to_lowercase().contains(&only.to_lowercase());
        ensure!(variants.iter().any(is_in), "--only is {only}: expected a part of the name of a variant, such as asam");
    }
    let set = Arc::new(data::embedded()?);
    let start = Instant::now();
    let (out, mut file) = options.out.claim("runs/variants", &FILES)?.log(&FILES)?;
    let mut runs: Vec<Run> = Vec::new();
    let bar = bar(variants.len() as u64 * options.repetitions.count, "all", options.quiet);
    'all: for seed in options.repetitions.seeds() {
        for variant in &variants {
            bar.set_message(format!("{} seed {seed}", variant.name));
            let run = train(variant, &set, seed, options.repetitions.epochs, options.rho_factor, &stop)?;
            let Some(run) = run else { break 'all };
            file.add(&run)?;
            runs.push(run);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    file.sync()?;
    let (done, planned) = (runs.len(), variants.len() * options.repetitions.count as usize);
    let stopped = (done < planned).then(|| format!("stopped after {done} of {planned} trainings"));
    if let Some(stopped) = stopped.as_ref().filter(|_| done == 0) {
        say(format_args!("{stopped}: no table; log: {}", out.display()));
        return Ok(ExitCode::from(STOPPED));
    }

    let variants: Vec<_> =
        variants.into_iter().filter(|variant| runs.iter().any(|run| run.variant == variant.name)).collect();
    let seeds = options.repetitions.words();
    let note_of_stop = stopped.as_ref().map_or_else(String::new, |stopped| format!(", {stopped}"));
    let title = format!("{}, {} images, 40 % wrong labels, {seeds}{note_of_stop}", set.name, set.train.len());
    let table = table(&variants, &runs);
    let note = "Error on test images in %, mean ± 95 % interval. \"Gain\" is SAM's error less the variant's, by pairs of \
                the same seed. \"Best epoch\" is chosen on the test images: an upper bound of what early stopping gives. The radii were \
                chosen on them too, with another seed.";
    write_atomic(&out.join(FILES[1]), format!("{title}\n\n{table}\n{note}\n").as_bytes())?;
    chart::draw(&variants, &runs, &title, &out.join(FILES[2]))?;
    say(format_args!("{title}\n\n{table}\n{note}"));
    say(format_args!("{:.0} s in all; picture, table and log: {}", start.elapsed().as_secs_f64(), out.display()));
    Ok(stopped.map_or(ExitCode::SUCCESS, |stopped| {
        say(stopped);
        ExitCode::from(STOPPED)
    }))
}
