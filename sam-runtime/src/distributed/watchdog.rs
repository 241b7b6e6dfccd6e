//! Ends the process if it waits too long for the other ranks: MPI itself would wait forever.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::core::lock::lock;

const TIMEOUT: Duration = Duration::from_mins(5);

/// A rank other than 0 waits for what rank 0 sends when it has heard of all. So rank 0, which knows who is missing, is the first
/// to give up; of the others one after the other does, so that one of them speaks.
const GRACE: Duration = Duration::from_secs(2);

/// How long a rank gives those before it to print why the job ends.
pub(super) fn turn(rank: usize) -> Duration {
    Duration::from_millis(500) * rank.min(6) as u32
}

/// The wait in which rank 0 hears of all others, and these of rank 0.
pub(super) const GATHER: &str = "a step or a call that all ranks take part in";

const FAILED: i32 = 1;

#[derive(Debug)]
pub(super) struct Watchdog {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    timeout: Duration,
    /// What is being waited for, and since when.
    waiting: Option<(&'static str, Instant)>,
    /// What devices have been given to do, the oldest first.
    in_flight: VecDeque<InFlight>,
    /// Rank 0: who is still missing.
    missing: Vec<usize>,
    calls: u64,
}

struct InFlight {
    what: &'static str,
    since: Instant,
    is_done: Box<dyn Fn() -> bool + Send>,
}

/// How often a device is asked whether it is done.
const POLL: Duration = Duration::from_secs(1);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, waiting, in_flight, missing, calls } = self;
        let state = (timeout, waiting, in_flight.len(), missing, calls);
        f.debug_tuple("State").field(&state).finish()
    }
}

impl Watchdog {
    /// Watches this process until it ends.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn start(rank: usize, size: usize) -> std::io::Result<Arc<Self>> {
        let in_flight = VecDeque::new();
        let state = State { timeout: TIMEOUT, waiting: None, in_flight, missing: Vec::new(), calls: 0 };
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

    /// Watches what a device has been given to do, until it is done. Nobody waits for it here, but somebody will.
    #[cfg_attr(not(feature = "nccl"), allow(dead_code, reason = "MPI has done everything when it returns"))]
    pub(super) fn follow(&self, what: &'static str, is_done: impl Fn() -> bool + Send + 'static) {
        let mut state = lock(&self.state);
        state.forget_done();
        state.in_flight.push_back(InFlight { what, since: Instant::now(), is_done: Box::new(is_done) });
        self.changed.notify_all();
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
            state.forget_done();
            let Some((what, since)) = state.oldest() else {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let limit = state.timeout + rank.checked_sub(1).map_or(Duration::ZERO, |before| GRACE + turn(before));
            let Some(left) = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                // In the middle of an all-reduce a rank that has stopped holds up others too.
                let (who, one) = match &state.missing[..] {
                    [] if rank > 0 && what == GATHER => ("rank 0".to_owned(), "it"),
                    [] => ("the other ranks".to_owned(), "one of them"),
                    [rank] => (format!("rank {rank}"), "it"),
                    ranks => {
                        (ranks.iter().map(|rank| format!("rank {rank}")).collect::<Vec<_>>().join(", "), "one of them")
                    }
                };
                let seconds = state.timeout.as_secs_f64();
                eprintln!(
                    "rank {rank} of {size}: no answer from {who} for {seconds} s, in {what} (call {}): {one} has stopped or \
                     takes longer than `Comm::set_timeout` allows; the job is ended",
                    state.calls
                );
                exit_from_another_thread(FAILED);
            };
            let left = if state.in_flight.is_empty() { left } else { left.min(POLL) };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn forget_done(&mut self) {
        while self.in_flight.front().is_some_and(|first| (first.is_done)()) {
            self.in_flight.pop_front();
        }
    }

    /// What has been waited for longest.
    fn oldest(&self) -> Option<(&'static str, Instant)> {
        let on_devices = self.in_flight.front().map(|first| (first.what, first.since));
        self.waiting.into_iter().chain(on_devices).min_by_key(|(_, since)| *since)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_a_device_is_given_is_watched_until_it_is_done() {
        let watchdog = Watchdog::start(0, 2).unwrap();
        let done = Arc::new([const { AtomicBool::new(false) }; 2]);
        for i in 0..2 {
            let done = Arc::clone(&done);
            watchdog.follow("this test", move || done[i].load(Ordering::Relaxed));
        }
        let count = || {
            lock(&watchdog.state).forget_done();
            lock(&watchdog.state).in_flight.len()
        };
        // A stream does one after the other.
        for (i, left) in [(1, 2), (0, 0)] {
            done[i].store(true, Ordering::Relaxed);
            assert_eq!(count(), left);
        }
        assert!(lock(&watchdog.state).oldest().is_none());
    }
}
