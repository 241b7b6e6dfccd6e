//! Runs the paper's tables, one command each, and compares its numbers with ours.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use sam_examples::cli::console::{bar, exit, print, say, warn};
use sam_examples::cli::device_args::{ComputeArgs, ThreadsArg};
use sam_examples::cli::options::{parse, seeds, within};
use sam_examples::cli::progress::ProgressDisplay;
use sam_examples::cli::ranks::on_one_rank;
use sam_examples::experiments::figure2;
use sam_examples::experiments::paper::{
    Ended, Found, Measuring, Run, Settings, count, landscape, measure, number, write,
};
use sam_examples::io::atomic::write_atomic;
use sam_examples::io::lease::Holder;
use sam_examples::recipe::{self, Cell, Kept, KeptMeasure, RecipePatch, Scale, Table, table, tables};
use sam_examples::trainer::Next;
use sam_examples::util::stop::{STOPPED, Stop};

sam_examples::use_mimalloc!();

const EXAMPLES: &str = "Examples:
  paper table1 --data data --only 'wrn-28-10/basic/*' --seeds 3
  paper table4 --data data --scale epochs=0.1,images=0.2,width=0.25
  paper mine.toml
  paper list table1
  paper list --deviations
  paper figure1 --data data --scale epochs=0.1,images=0.2
  paper figure2
  paper report table1 table4";

/// The exit code if runs are left to processes that may have died.
const TRY_AGAIN: u8 = 75;

/// The least `--stale`: on a busy machine heartbeats may be late by some seconds.
const LEAST_STALE: u64 = 10;

/// Run what is missing of a table of the paper, and write the table.
///
/// Several processes, on one machine or on many that share a folder, may work on one table: no run is done twice. A
/// process that is told to stop (SIGINT, SIGTERM, SIGHUP, SIGUSR1) saves everything; the next one resumes, bitwise
/// identically. The exit code is 75 if runs are left to processes of other machines that are not known to live.
#[derive(Debug, Parser)]
#[command(
    name = "paper",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{}", recipe::keys())
)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: Work,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the names of all cells, one a line
    List {
        /// Of this table only
        table: Option<String>,

        /// Print the deviations of the recipes from the publications instead, as a table in Markdown
        #[arg(long, conflicts_with = "table")]
        deviations: bool,
    },
    /// Draw Figure 2, a step of SAM, from a run with two weights: figure2.png and figure2.json
    Figure2 {
        /// Folder of the files
        #[arg(long, value_name = "DIR", default_value = "runs/paper")]
        out: PathBuf,
    },
    /// Write the tables from what has been run, without running anything
    Report(Choice),
}

/// Which runs.
#[derive(Debug, Args)]
struct Choice {
    /// Tables: table1, table4, rho-grid, .. (see `list`), or custom files
    #[arg(required = true)]
    tables: Vec<String>,

    #[command(flatten)]
    compute: ComputeArgs,

    /// Only these cells: the beginning of a name, `*` for any part
    #[arg(long, value_name = "CELL")]
    only: Vec<String>,

    /// Number of seeds of each cell
    #[arg(long, default_value_t = 5)]
    seeds: u64,

    /// Smaller runs: a share of epochs, images and width, or `epochs=0.1,images=0.2,width=0.5`
    #[arg(long, default_value = "1")]
    scale: Scale,

    /// Change every recipe, `key = value` in TOML
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Folder of runs and tables
    #[arg(long, value_name = "DIR", default_value = "runs/paper")]
    out: PathBuf,

    /// No progress bars
    #[arg(long)]
    quiet: bool,
}

/// Which runs, and how they are done.
#[derive(Debug, Args)]
struct Work {
    #[command(flatten)]
    choice: Choice,

    /// Folder of the data sets: DIR/cifar10, DIR/cifar100, .. or one set
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    threads: ThreadsArg,

    /// Steps between checkpoints; 0 to write one only when the training is stopped
    #[arg(long, visible_alias = "checkpoint-every", value_name = "STEPS", default_value_t = 500)]
    every: usize,

    /// Seconds without a heartbeat after which the run of a process of another machine is taken over; that of a dead process
    /// of this machine is taken over at once
    #[arg(long, visible_alias = "lease-timeout", value_name = "SECONDS", default_value_t = 300)]
    stale: u64,
}

fn main() -> ExitCode {
    let options: Options = parse();
    let outcome = match &options.command {
        Some(Command::List { deviations: true, .. }) => {
            print(&recipe::deviations());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::List { table, .. }) => list(table.as_deref()),
        Some(Command::Report(choice)) => report(choice),
        Some(Command::Figure2 { out }) => figure2(out),
        None => on_one_rank(|| run(&options.run)),
    };
    exit(outcome)
}

fn figure2(out: &Path) -> Result<ExitCode> {
    let step = figure2::step()?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    write_atomic(&out.join("figure2.json"), (serde_json::to_string_pretty(&step)? + "\n").as_bytes())?;
    figure2::draw(&step, &out.join("figure2.png"))?;
    say(out.join("figure2.png").display());
    Ok(ExitCode::SUCCESS)
}

fn list(name: Option<&str>) -> Result<ExitCode> {
    let tables = match name {
        Some(name) => vec![table(name)?],
        None => tables()?,
    };
    let names: String = tables.iter().flat_map(|table| &table.cells).map(|cell| cell.name.clone() + "\n").collect();
    print(&names);
    warn("deviations from the publications: `paper list --deviations`");
    Ok(ExitCode::SUCCESS)
}

/// The settings of runs that are only read.
fn settings(choice: &Choice) -> Result<Settings> {
    seeds(0, choice.seeds)?;
    Ok(Settings {
        data: None,
        device: choice.compute.config()?,
        out: choice.out.clone(),
        scale: choice.scale,
        set: choice.set.clone(),
        seeds: choice.seeds,
        every: 0,
        stale: Duration::ZERO,
    })
}

fn report(choice: &Choice) -> Result<ExitCode> {
    let settings = settings(choice)?;
    let mut failed = false;
    for name in &choice.tables {
        let written = write(&table(name)?, &choice.only, &settings)?;
        print(&(written.text + "\n"));
        for error in &written.unusable {
            warn(format_args!("error: {error}"));
            failed = true;
        }
    }
    Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn run(work: &Work) -> Result<ExitCode> {
    let Work { choice, data, every, stale, .. } = work;
    within("stale", *stale, LEAST_STALE..=30 * 24 * 3600)?;
    work.threads.start()?;
    let settings =
        Settings { data: data.clone(), every: *every, stale: Duration::from_secs(*stale), ..settings(choice)? };
    let stop = Stop::on_signals()?;
    // Errors in recipes are reported before anything runs.
    let chosen = choice
        .tables
        .iter()
        .map(|name| {
            let whole = table(name)?;
            Ok((whole.only(&choice.only)?, whole))
        })
        .collect::<Result<Vec<_>>>()?;
    let runs = chosen.iter().flat_map(|(table, _)| &table.cells).map(|cell| settings.run(cell, 0));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    // Each setting has to have an effect on one of them.
    for setting in &choice.set {
        let without = |run: &Run| RecipePatch::check_effect(std::slice::from_ref(setting), &run.recipe);
        if let (Some(Err(error)), true) = (runs.first().map(without), runs.iter().all(|run| without(run).is_err())) {
            return Err(error);
        }
    }
    if let Some(folder) = data {
        ensure!(
            runs.iter().any(|run| run.reads(folder)),
            "--data is {}, but the recipes have `data = \"embedded\"`, what is compiled in: set `data`, or remove --data",
            folder.display()
        );
    }
    let mut worker = Worker { work, settings, stop, failed: false };
    let mut others = Vec::new();
    for (table, whole) in &chosen {
        let runs = (0..choice.seeds).flat_map(|seed| table.cells.iter().map(move |cell| (seed, cell)));
        for (seed, cell) in runs {
            match worker.run(whole, cell, seed)? {
                After::Next => (),
                After::Others(_) => others.push((whole, cell, seed)),
                After::Stop => return Ok(ExitCode::from(STOPPED)),
            }
        }
        if let Some(kept) = &table.kept
            && !worker.measure(table, whole, kept)?
        {
            return Ok(ExitCode::from(STOPPED));
        }
        say(format_args!("\n{}", write(whole, &choice.only, &worker.settings)?.text));
    }
    // Meanwhile the other processes may have finished, or died.
    let mut left = Vec::new();
    for (table, cell, seed) in others {
        match worker.run(table, cell, seed)? {
            After::Next => drop(write(table, &choice.only, &worker.settings)?),
            After::Others(holder) => left.push((format!("{} seed {seed}", cell.name), holder)),
            After::Stop => return Ok(ExitCode::from(STOPPED)),
        }
    }
    for (name, holder) in &left {
        say(format_args!("{name}: {holder}"));
    }
    if !left.is_empty() {
        say(format_args!(
            "{} runs are being executed by other processes: `paper report` shows them when they are done",
            left.len()
        ));
    }
    let known_to_live = left.iter().all(|(_, holder)| holder.lives);
    Ok(ExitCode::from(match (worker.failed, known_to_live) {
        (true, _) => 2,
        (false, false) => TRY_AGAIN,
        (false, true) => 0,
    }))
}

/// The settings of all runs.
struct Worker<'a> {
    work: &'a Work,
    settings: Settings,
    stop: Stop,
    failed: bool,
}

/// What to do after a run.
enum After {
    Next,
    /// Another process has it.
    Others(Holder),
    Stop,
}

impl Worker<'_> {
    /// Measures what the runs of a table have kept. Whether everything was measured: not, if the process was told to stop.
    fn measure(&mut self, chosen: &Table, whole: &Table, kept: &Kept) -> Result<bool> {
        let Self { work, settings, stop, .. } = self;
        let mut runs = Vec::new();
        for cell in &chosen.cells {
            for seed in 0..settings.seeds {
                let run = settings.run(cell, seed)?;
                if matches!(run.ended(), Ok(Some(Ended::Trained(_)))) {
                    runs.push(run);
                }
            }
        }
        let bar = bar(runs.iter().map(count).sum::<usize>() as u64, &whole.name, work.choice.quiet);
        match kept.measure {
            KeptMeasure::Hessian => {
                for run in &runs {
                    match measure(run, kept, settings, stop, || bar.inc(1))? {
                        Measuring::Done => (),
                        Measuring::Taken(holder) => {
                            say(format_args!("{} seed {}: the Hessian: {holder}", run.cell, run.seed));
                        }
                        Measuring::Stopped => return Ok(false),
                    }
                }
            }
            KeptMeasure::Landscape => {
                let found = landscape(whole, kept, settings, stop, |all| {
                    bar.set_length(all as u64);
                    bar.inc(1);
                })?;
                bar.finish_and_clear();
                if let Some(text) = found {
                    say(format_args!("\n{text}"));
                }
            }
        }
        bar.finish_and_clear();
        Ok(!stop.is_told())
    }

    /// Runs a cell, unless it has finished, and prints the result.
    fn run(&mut self, table: &Table, cell: &Cell, seed: u64) -> Result<After> {
        let Self { work, settings, stop, .. } = self;
        let name = format!("{} seed {seed}", cell.name);
        let mut progress = ProgressDisplay::new(&name, work.choice.quiet);
        let found = settings.run(cell, seed)?.do_it(settings, stop, |status| {
            progress.show(status);
            Ok(Next::GoOn)
        });
        progress.finish();
        match found {
            Ok(Found::Done(_)) => (),
            Ok(Found::Finished(Ended::Diverged { diverged })) => say(format_args!("{name}: {diverged}")),
            Ok(Found::Finished(Ended::Trained(outcome))) => {
                let number = number(table.measure, outcome.value(table.measure), None);
                let (measure, seconds) = (table.measure.name(), outcome.seconds);
                say(format_args!("{name}: {measure} {number}, {seconds:.0} s{}", outcome.scaled_note()));
            }
            Ok(Found::Taken(holder)) => return Ok(After::Others(holder)),
            Ok(Found::Stopped) => {
                let text = write(table, &work.choice.only, settings)?.text;
                say(format_args!("{name}: saved; run the same command again to resume\n\n{text}"));
                return Ok(After::Stop);
            }
            Err(error) => {
                warn(format_args!("error: {name}: {error:#}"));
                self.failed = true;
            }
        }
        Ok(if self.stop.is_told() { After::Stop } else { After::Next })
    }
}
