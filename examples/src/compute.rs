//! Where a network is trained, and what it computes in.

use anyhow::{Context as _, Result};
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
}

impl Place {
    /// f32 on the CPU.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32 };
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
            Kind::Cuda => Device::new_cuda(0).context("cannot train on `cuda`: build with --features cudnn")?,
            Kind::Metal => Device::new_metal(0).context("cannot train on `metal`: build with --features metal")?,
        };
        Ok(Place { device, dtype: if self.bf16 { DType::BF16 } else { DType::F32 } })
    }
}
