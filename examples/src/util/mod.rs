//! What everything else may use: the device, numbers, signals.

pub mod device;
pub mod numbers;
pub mod stop;
