//! Timing of work on a device.

use std::time::Instant;

use candle_core::{Device, Result};

/// The seconds that `f` takes until the device has finished it.
///
/// # Errors
/// Those of `f` and of the device.
pub fn seconds(device: &Device, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    device.synchronize()?;
    let start = Instant::now();
    f()?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}
