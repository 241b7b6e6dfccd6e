//! Ends the process if it waits too long for the other ranks: MPI itself would wait forever.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::core::lock::lock;

const TIMEOUT: Duration = Duration::from_mins(5);

/// A rank other than 0 waits for what rank 0 sends when it has heard of all. So rank 0, which knows who is missing, is the first
/// to give up.
const GRACE: Duration = Duration::from_secs(2);

/// The wait in which rank 0 hears of all others, and these of rank 0.
pub(super) const GATHER: &str = "a step or a call that all ranks take part in";

const FAILED: i32 = 1;

#[derive(Debug)]
pub(super) struct Watchdog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    timeout: Duration,
    /// What is being waited for, and since when.
    waiting: Option<(&'static str, Instant)>,
    /// Rank 0: who is still missing.
    missing: Vec<usize>,
    calls: u64,
}

impl Watchdog {
    /// Watches this process until it ends.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn start(rank: usize, size: usize) -> std::io::Result<Arc<Self>> {
        let state = State { timeout: TIMEOUT, waiting: None, missing: Vec::new(), calls: 0 };
        let this = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() });
        let watched = Arc::clone(&this);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watched.watch(rank, size))?;
        Ok(this)
    }

    pub(super) fn set_timeout(&self, timeout: Duration) {
        lock(&self.state).timeout = timeout;
        self.changed.notify_all();
    }

    /// Runs a call that returns when the other ranks have made it too.
    pub(super) fn wait<T>(&self, what: &'static str, call: impl FnOnce() -> T) -> T {
        {
            let mut state = lock(&self.state);
            state.waiting = Some((what, Instant::now()));
            state.calls += 1;
        }
        self.changed.notify_all();
        let result = call();
        lock(&self.state).waiting = None;
        result
    }

    pub(super) fn set_missing(&self, ranks: Vec<usize>) {
        lock(&self.state).missing = ranks;
    }

    pub(super) fn arrived(&self, rank: usize) {
        lock(&self.state).missing.retain(|missing| *missing != rank);
    }

    fn watch(&self, rank: usize, size: usize) {
        let mut state = lock(&self.state);
        loop {
            let Some((what, since)) = state.waiting else {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let limit = state.timeout + if rank == 0 { Duration::ZERO } else { GRACE };
            let Some(left) = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                let who = match &state.missing[..] {
                    [] if rank > 0 && what == GATHER => "rank 0".to_owned(),
                    [] => "the other ranks".to_owned(),
                    ranks => ranks.iter().map(|rank| format!("rank {rank}")).collect::<Vec<_>>().join(", "),
                };
                let seconds = state.timeout.as_secs_f64();
                eprintln!(
                    "rank {rank} of {size}: no answer from {who} for {seconds} s, in {what} (call {}): it has stopped or \
                     takes longer than `Comm::set_timeout` allows; the job is ended",
                    state.calls
                );
                exit_from_another_thread(FAILED);
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// Ends the process from a thread that must not call MPI: the launcher sees that and ends the others.
pub(super) fn exit_from_another_thread(code: i32) -> ! {
    // The exit handlers of an MPI library might wait for the thread that is inside of it.
    let _ = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(Duration::from_secs(2));
        std::process::abort();
    });
    std::process::exit(code)
}
