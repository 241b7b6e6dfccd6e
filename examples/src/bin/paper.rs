//! Runs the paper's tables, one command each, and shows its numbers and ours beside each other.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use sam_examples::compute::Compute;
use sam_examples::console::{Progress, Stop, exit, print};
use sam_examples::paper::{Ended, Found, Settings, number, write};
use sam_examples::recipe::{Scale, table, tables};

/// The system's allocator gives every large buffer back and takes it anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run what is missing of a table of the paper, and write the table.
///
/// Several processes, on one machine or on many that share a folder, may work on one table: no run is done twice. A
/// process that is told to stop (Ctrl-C, kill) saves everything; the next one goes on with the same bits.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
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
    },
    /// Write the tables from what has been run, without running anything
    Report(Work),
}

#[derive(Debug, Args)]
struct Work {
    /// Tables: table1, table4, rho-grid, .. (see `list`), or files of your own
    #[arg(required = true)]
    tables: Vec<String>,

    /// Folder of the data sets: DIR/cifar10, DIR/cifar100, .. or one set
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    compute: Compute,

    /// Only these cells: the beginning of a name, `*` for any part
    #[arg(long, value_name = "CELL")]
    only: Vec<String>,

    /// How often each cell is run
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

    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 500)]
    every: usize,

    /// Seconds without a sign of life after which another process's run may be taken over
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    stale: u64,

    /// No progress bars
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.command {
        Some(Command::List { table }) => list(table.as_deref()),
        Some(Command::Report(work)) => report(work),
        None => run(&options.run),
    };
    exit(outcome)
}

fn list(name: Option<&str>) -> Result<ExitCode> {
    let tables = match name {
        Some(name) => vec![table(name)?],
        None => tables()?,
    };
    let names: String = tables.iter().flat_map(|table| &table.cells).map(|cell| cell.name.clone() + "\n").collect();
    print(&names)?;
    Ok(ExitCode::SUCCESS)
}

fn settings(work: &Work) -> Result<Settings> {
    if work.seeds == 0 {
        bail!("--seeds is 0: expected 1 or more")
    }
    Ok(Settings {
        data: work.data.clone(),
        place: work.compute.place()?,
        out: work.out.clone(),
        scale: work.scale,
        set: work.set.clone(),
        seeds: work.seeds,
        every: work.every,
        stale: Duration::from_secs(work.stale),
    })
}

fn report(work: &Work) -> Result<ExitCode> {
    let settings = settings(work)?;
    let mut failed = false;
    for name in &work.tables {
        let written = write(&table(name)?, &work.only, &settings)?;
        print(&(written.text + "\n"))?;
        for error in &written.unusable {
            eprintln!("error: {error}");
            failed = true;
        }
    }
    Ok(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn run(work: &Work) -> Result<ExitCode> {
    let (settings, stop) = (settings(work)?, Stop::on_signals()?);
    // What is wrong with a recipe is said before anything runs.
    let chosen = work
        .tables
        .iter()
        .map(|name| {
            let whole = table(name)?;
            Ok((whole.only(&work.only)?, whole))
        })
        .collect::<Result<Vec<_>>>()?;
    for cell in chosen.iter().flat_map(|(table, _)| &table.cells) {
        settings.run(cell, 0)?;
    }
    let (mut failed, mut others) = (0, 0);
    for (table, whole) in &chosen {
        for (seed, cell) in (0..settings.seeds).flat_map(|seed| table.cells.iter().map(move |cell| (seed, cell))) {
            let run = settings.run(cell, seed)?;
            let name = format!("{} seed {seed}", cell.name);
            let mut progress = Progress::new(&name, work.quiet);
            let found = run.do_it(&settings, |status| {
                progress.show(status);
                Ok(stop.next())
            });
            progress.finish();
            match found {
                Ok(Found::Done(_)) => (),
                Ok(Found::Finished(Ended::Diverged { diverged })) => println!("{name}: {diverged}"),
                Ok(Found::Finished(Ended::Trained(outcome))) => {
                    let number = number(table.measure, table.measure.of(&outcome), None);
                    let (measure, seconds) = (table.measure.name(), outcome.seconds);
                    println!("{name}: {measure} {number}, {seconds:.0} s{}", outcome.told());
                }
                Ok(Found::Taken) => others += 1,
                Ok(Found::Stopped) => {
                    let text = write(whole, &work.only, &settings)?.text;
                    println!("{name}: saved; the same command goes on\n\n{text}");
                    return Ok(ExitCode::from(130));
                }
                Err(error) => {
                    eprintln!("error: {name}: {error:#}");
                    failed += 1;
                }
            }
            if stop.is_told() {
                return Ok(ExitCode::from(130));
            }
        }
        println!("\n{}", write(whole, &work.only, &settings)?.text);
    }
    if others > 0 {
        println!("{others} runs are other processes': `paper report` shows them when they are done");
    }
    Ok(if failed > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS })
}
