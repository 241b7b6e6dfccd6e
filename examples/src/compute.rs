//! Where a network is trained, and what it computes in.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};

/// The command line's side of a [`Place`].
#[derive(Clone, Copy, Debug, Args)]
pub struct Compute {
    /// Device to train on; `cuda` and `metal` need builds with these features
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    device: Kind,

    /// Compute in bf16; weights, their gradients and the optimizer stay in f32
    #[arg(long)]
    bf16: bool,

    /// Let products and convolutions of f32 round to TF32, on CUDA
    #[arg(long)]
    pub tf32: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// All its cores
    Cpu,
    /// The first NVIDIA card
    Cuda,
    /// Apple's
    Metal,
}

/// A device, and the type of activations there.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where variables and batches are.
    pub device: Device,
    /// What the network computes in.
    pub dtype: DType,
    /// Whether products of f32 may round to TF32.
    pub tf32: bool,
}

impl Place {
    /// f32 on the CPU.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, tf32: false };

    /// Whether it is f32 on the CPU.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.to_string().is_empty()
    }
}

/// What is other than f32 on the CPU: `cuda-bf16`. Results of two places are not the same bits, and not mixed.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = match self.device {
            Device::Cpu => None,
            Device::Cuda(_) => Some("cuda"),
            Device::Metal(_) => Some("metal"),
        };
        let dtype = (self.dtype != DType::F32).then(|| self.dtype.as_str());
        let tf32 = (self.tf32 && device == Some("cuda")).then_some("tf32");
        f.write_str(&[device, dtype, tf32].into_iter().flatten().collect::<Vec<_>>().join("-"))
    }
}

impl Compute {
    /// The device, ready to be used.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn place(self) -> Result<Place> {
        candle_core::cuda::set_gemm_reduced_precision_f32(self.tf32);
        let device = match self.device {
            Kind::Cpu => Device::Cpu,
            Kind::Cuda if !cfg!(feature = "cuda") => bail!("this was built without CUDA: build with --features cudnn"),
            Kind::Metal if !cfg!(feature = "metal") => {
                bail!("this was built without Metal: build with --features metal")
            }
            Kind::Cuda => {
                Device::new_cuda(0).context("cannot use the first CUDA device: is there one, and its driver?")?
            }
            Kind::Metal => Device::new_metal(0).context("cannot use the first Metal device: is there one?")?,
        };
        Ok(Place { device, dtype: if self.bf16 { DType::BF16 } else { DType::F32 }, tf32: self.tf32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_where_it_is_another() {
        assert!(Place::CPU.is_default());
        assert_eq!(Place { dtype: DType::BF16, ..Place::CPU }.to_string(), "bf16");
        // There are no TF32 units on the CPU.
        assert!(Place { tf32: true, ..Place::CPU }.is_default());
    }
}
