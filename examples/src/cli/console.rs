//! What programs show: lines that a reader may have stopped reading, progress bars, and how a program ends.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::trainer::Status;

/// Where nobody looks at a bar, a line is written this often.
const PAUSE: Duration = Duration::from_mins(1);

/// Why the standard output could not be written, other than that its reader is gone.
static UNWRITTEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// How a program ends: an error is shown, with what led to it, and is code 2; also that results could not be shown.
#[must_use]
pub fn exit(outcome: Result<ExitCode>) -> ExitCode {
    let outcome = outcome.unwrap_or_else(|error| {
        warn(format_args!("error: {error:#}"));
        ExitCode::from(2)
    });
    match UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) if outcome == ExitCode::SUCCESS => {
            warn(format_args!("error: cannot write to the standard output: {error}"));
            ExitCode::from(2)
        }
        _ => outcome,
    }
}

/// Shows a line on the standard output. A reader that is gone is no error, and any other error is remembered for
/// [`exit`]: work goes on without an audience.
pub fn say(line: impl Display) {
    print(&format!("{line}\n"));
}

/// Shows text as [`say`] does, without a line end.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        _ => (),
    }
}

/// Shows a line on the standard error, if it can be written.
pub fn warn(line: impl Display) {
    // There is nowhere to report this.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
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
        let bar = (quiet || io::stderr().is_terminal()).then(|| bar(0, name, quiet));
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
            let left = Duration::try_from_secs_f64(pace * (steps - step) as f64).unwrap_or(Duration::MAX);
            let left = indicatif::HumanDuration(left);
            warn(format_args!("{}: step {step} of {steps}, {left} left, {message}", self.name));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
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
