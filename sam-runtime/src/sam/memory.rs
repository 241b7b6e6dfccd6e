//! What a [`Sam`](crate::Sam) remembers from step to step, and which of its steps are in progress.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::stats::StepStats;
use crate::core::error::Error;
use crate::core::lock::lock;
use crate::variants::State;

/// It changes when a step has ended, so that it is behind a lock. A clone has no steps in progress.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    kept: Mutex<Kept>,
    running: AtomicUsize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) state: State,
    pub(super) last: Option<StepStats>,
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        Self { kept: Mutex::new(self.lock().clone()), running: AtomicUsize::new(0) }
    }
}

/// A step in progress.
pub(crate) struct InFlight<'a>(&'a Memory);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Memory {
    pub(super) fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    /// Marks a step as in progress, as long as the result lives.
    ///
    /// # Errors
    /// If another one is, unless steps do not depend on those before.
    pub(super) fn begin(&self, steps_depend: bool) -> Result<InFlight<'_>, Error> {
        let others = self.running.fetch_add(1, Ordering::Relaxed);
        let this = InFlight(self);
        if others > 0 && steps_depend { Err(Error::SharedMemory) } else { Ok(this) }
    }

    pub(super) fn between_steps(&self) -> Result<(), Error> {
        if self.running.load(Ordering::Relaxed) == 0 { Ok(()) } else { Err(Error::MidStep) }
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// What a step that went well leaves behind.
    pub(crate) fn remember(&self, state: State, last: StepStats) {
        let mut kept = self.lock();
        // Others may have set the rate since the step began.
        let (rate, steps) = (kept.state.rate, kept.state.steps + 1);
        kept.state = State { steps, rate, ..state };
        kept.last = Some(last);
    }
}
