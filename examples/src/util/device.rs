//! The device that a network is trained on, and the dtype that it computes in.

use std::fmt;

use candle_core::{DType, Device};

/// A device, and the dtype and memory format of activations there.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Where variables and batches are.
    pub device: Device,
    /// The dtype of activations.
    pub dtype: DType,
    /// Whether products of f32 may round to TF32.
    pub tf32: bool,
    /// Whether images are NHWC (`channels_last`) in memory.
    pub channels_last: bool,
}

impl DeviceConfig {
    /// f32 on the CPU.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, tf32: false, channels_last: false };

    /// Whether it is f32 on the CPU.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.to_string().is_empty()
    }
}

/// How it differs from f32 on the CPU: `cuda-bf16`. Results of two configurations are not bitwise identical, and are kept
/// apart.
impl fmt::Display for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = match self.device {
            Device::Cpu => None,
            Device::Cuda(_) => Some("cuda"),
            Device::Metal(_) => Some("metal"),
        };
        let dtype = (self.dtype != DType::F32).then(|| self.dtype.as_str());
        let on_cuda = |flag: bool, name| (flag && device == Some("cuda")).then_some(name);
        let (tf32, last) = (on_cuda(self.tf32, "tf32"), on_cuda(self.channels_last, "channels-last"));
        f.write_str(&[device, dtype, tf32, last].into_iter().flatten().collect::<Vec<_>>().join("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_where_it_is_not_the_default() {
        assert!(DeviceConfig::CPU.is_default());
        assert_eq!(DeviceConfig { dtype: DType::BF16, ..DeviceConfig::CPU }.to_string(), "bf16");
        // The CPU has no TF32 units, and NCHW only.
        assert!(DeviceConfig { tf32: true, channels_last: true, ..DeviceConfig::CPU }.is_default());
    }
}
