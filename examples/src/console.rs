//! What a trainer shows, and how it is told to stop.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::trainer::{Next, Status};

/// Where nobody looks at a bar, a line is written this often.
const PAUSE: Duration = Duration::from_mins(1);

/// How a program ends: an error is said, with what led to it, and is code 2.
#[must_use]
pub fn exit(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

/// Whether the process has been told to stop: by the signals of Ctrl-C and `kill`. A second one stops it at once.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn on_signals() -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let register = flag::register_conditional_shutdown(signal, 130, Arc::clone(&told))
                .and_then(|_| flag::register(signal, Arc::clone(&told)));
            register.context("cannot wait for signals")?;
        }
        Ok(Self(told))
    }

    /// Whether it has.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What a training is to do.
    #[must_use]
    pub fn next(&self) -> Next {
        if self.is_told() { Next::Stop } else { Next::GoOn }
    }
}

/// How far one training is: a bar, or lines where there is no terminal.
#[derive(Debug)]
pub struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    stage: usize,
    /// When the stage was taken up, and at which step.
    since: (Instant, usize),
    said: Instant,
}

impl Progress {
    /// Of a training of this name; silent if wanted.
    #[must_use]
    pub fn new(name: &str, quiet: bool) -> Self {
        let bar = (quiet || std::io::stderr().is_terminal()).then(|| bar(0, name, quiet));
        let now = Instant::now();
        Self { name: name.to_owned(), bar, stage: usize::MAX, since: (now, 0), said: now }
    }

    /// Shows it.
    pub fn show(&mut self, status: &Status) {
        let (step, steps) = status.step;
        if status.stage.0 != self.stage {
            self.stage = status.stage.0;
            self.since = (Instant::now(), step);
            if let Some(bar) = &self.bar {
                bar.reset();
                bar.set_length(steps as u64);
            }
        }
        // Writing to a string does not fail.
        let mut message = format!("loss {:.3}, {:.0} images/s", status.loss, status.throughput);
        if let Some(error) = status.test_error {
            let _ = write!(message, ", test error {:.2} %", 100.0 * error);
        }
        if status.stage.1 > 1 {
            let _ = write!(message, ", training {} of {}", status.stage.0 + 1, status.stage.1);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(step as u64);
            bar.set_message(message);
        } else if self.said.elapsed() >= PAUSE || step == steps {
            self.said = Instant::now();
            let (began, first) = self.since;
            let pace = began.elapsed().as_secs_f64() / (step - first).max(1) as f64;
            let left = indicatif::HumanDuration(Duration::from_secs_f64(pace * (steps - step) as f64));
            eprintln!("{}: step {step} of {steps}, {left} left, {message}", self.name);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints a text, to somebody who may have heard enough before its end.
///
/// # Errors
/// If it cannot be written for another reason.
pub fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A bar of so many steps, with a name before it; not to be seen if that is wanted.
#[must_use]
pub fn bar(length: u64, name: &str, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let bar = bar.with_prefix(name.to_owned());
    match ProgressStyle::with_template("{prefix:12} {bar:40} {pos:>4}/{len} {elapsed:>4} left {eta:>4}  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
