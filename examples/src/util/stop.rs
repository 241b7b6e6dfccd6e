//! Stopping a process by signals: they set a flag, which trainings check.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code of a program that was stopped by a signal and has saved everything.
pub const STOPPED: u8 = 130;

/// Whether the process has been told to stop. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    told: Arc<AtomicBool>,
    /// Whether a signal may end the process at once.
    nothing_to_save: Arc<AtomicBool>,
}

/// The error that ends an iteration over images when the process is told to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted: the process was told to stop")
    }
}

/// SIGINT (Ctrl-C), SIGTERM (`kill`), SIGHUP (a closed terminal) and SIGUSR1 (the warning of a batch system such as Slurm).
#[cfg(unix)]
const SIGNALS: [i32; 4] =
    [SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGUSR1];
#[cfg(not(unix))]
const SIGNALS: [i32; 2] = [SIGINT, signal_hook::consts::SIGTERM];

impl Stop {
    /// Listens to SIGINT, SIGTERM, SIGHUP and SIGUSR1, unless the process was started with them ignored, as `nohup` does
    /// with SIGHUP. A second SIGINT ends the process at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        for signal in SIGNALS.into_iter().filter(|signal| !is_ignored(*signal)) {
            let at_once = |flag: &Arc<AtomicBool>| {
                flag::register_conditional_shutdown(signal, i32::from(STOPPED), Arc::clone(flag))
            };
            let register = || {
                at_once(&stop.nothing_to_save)?;
                if signal == SIGINT {
                    at_once(&stop.told)?;
                }
                // The last, so that the first signal sets the flag and does not yet see it.
                flag::register(signal, Arc::clone(&stop.told))
            };
            register().context("cannot install the signal handlers")?;
        }
        Ok(stop)
    }

    /// Whether the process has been told to stop.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Runs something that a signal may interrupt at once, such as reading a data set.
    pub fn while_nothing_is_to_save<R>(&self, f: impl FnOnce() -> R) -> R {
        self.nothing_to_save.store(true, Ordering::Relaxed);
        let result = f();
        self.nothing_to_save.store(false, Ordering::Relaxed);
        result
    }

    /// Runs a training that ends early when the process is told to stop, also in the middle of a test; `None` if it did.
    pub(crate) fn unless_told(&self, train: impl FnOnce() -> Result<ControlFlow<()>>) -> Result<Option<()>> {
        match train() {
            Ok(end) => Ok(end.is_continue().then_some(())),
            Err(error) if self.is_why(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an error means only that the process was told to stop.
    pub(crate) fn is_why(&self, error: &anyhow::Error) -> bool {
        // candle keeps the text of a wrapped error only.
        self.is_told() && format!("{error:#}").contains(&Interrupted.to_string())
    }
}

/// Whether the process was started with a signal ignored, as far as the system tells (Linux).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask & (1 << (signal - 1)) != 0
}
