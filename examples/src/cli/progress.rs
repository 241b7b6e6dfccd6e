//! The progress of a training on the terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::console::{bar, warn};
use crate::trainer::Status;

/// Without a terminal, a line is written this often.
const PAUSE: Duration = Duration::from_mins(1);

/// The progress of one training: a bar, or lines where there is no terminal.
#[derive(Debug)]
pub struct ProgressDisplay {
    name: String,
    bar: Option<ProgressBar>,
    phase: usize,
    /// When the phase was started or resumed, and at which step.
    since: (Instant, usize),
    said: Instant,
}

impl ProgressDisplay {
    /// Of a training of this name; hidden if `quiet`.
    #[must_use]
    pub fn new(name: &str, quiet: bool) -> Self {
        let bar = (quiet || io::stderr().is_terminal()).then(|| bar(0, name, quiet));
        let now = Instant::now();
        Self { name: name.to_owned(), bar, phase: usize::MAX, since: (now, 0), said: now }
    }

    /// Shows the current status.
    pub fn show(&mut self, status: &Status) {
        let (step, steps) = status.step;
        if status.phase.0 != self.phase {
            self.phase = status.phase.0;
            self.since = (Instant::now(), step);
            if let Some(bar) = &self.bar {
                bar.reset();
                bar.set_length(steps as u64);
            }
        }
        // Writing to a string does not fail.
        let mut message = format!("loss {:.3}, {:.0} examples/s", status.loss, status.throughput);
        if let Some(error) = status.test_error {
            let _ = write!(message, ", test error {:.2} %", 100.0 * error);
        }
        if status.phase.1 > 1 {
            let _ = write!(message, ", training {} of {}", status.phase.0 + 1, status.phase.1);
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

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
