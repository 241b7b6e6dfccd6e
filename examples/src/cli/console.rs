//! Terminal output: lines, progress bars, exit codes.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// The first error of writing to the standard output, other than a closed pipe.
static UNWRITTEN: Mutex<Option<io::Error>> = Mutex::new(None);

/// The exit code of a program. An error is printed with its causes and is code 2, as is output that could not be written.
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

/// Prints a line on the standard output. A closed pipe is not an error; any other error is kept for [`exit`], so that a
/// long training does not end because its output cannot be written.
pub fn say(line: impl Display) {
    print(&format!("{line}\n"));
}

/// Prints text as [`say`] does, without a line end.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        _ => (),
    }
}

/// Prints a line on the standard error, if it can be written.
pub fn warn(line: impl Display) {
    // There is nowhere to report this.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// A progress bar of so many steps, with a name before it; hidden if `quiet`.
#[must_use]
pub fn bar(length: u64, name: &str, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let bar = bar.with_prefix(name.to_owned());
    match ProgressStyle::with_template("{prefix:12} {bar:40} {pos:>4}/{len} {elapsed:>4} left {eta:>4}  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
