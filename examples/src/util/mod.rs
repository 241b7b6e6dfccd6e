//! What everything else may use: devices, random number streams, schedules, signals.

pub mod device;
pub(crate) mod hex;
pub mod numbers;
pub mod partition;
pub mod rng;
pub mod schedule;
pub(crate) mod sha256;
pub mod stop;
pub mod timing;
