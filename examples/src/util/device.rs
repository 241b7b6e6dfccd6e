//! Where a network is trained, and what it computes in.

use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};

use crate::cli::options::within;

/// What command lines say about a [`Place`].
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
    tf32: bool,

    /// Keep the channels of a pixel side by side, as tensor cores want them, on CUDA; images of one channel stay as they are
    #[arg(long)]
    channels_last: bool,

    /// Threads that compute on the CPU [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The processor
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
    /// Whether images are channels last in memory.
    pub channels_last: bool,
}

impl Place {
    /// f32 on the CPU.
    pub const CPU: Self = Self { device: Device::Cpu, dtype: DType::F32, tf32: false, channels_last: false };

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
        let on_cuda = |flag: bool, name| (flag && device == Some("cuda")).then_some(name);
        let (tf32, last) = (on_cuda(self.tf32, "tf32"), on_cuda(self.channels_last, "channels-last"));
        f.write_str(&[device, dtype, tf32, last].into_iter().flatten().collect::<Vec<_>>().join("-"))
    }
}

impl Compute {
    /// Whether the network computes in bf16.
    #[must_use]
    pub fn is_bf16(self) -> bool {
        self.bf16
    }

    /// The device, ready to be used.
    ///
    /// # Errors
    /// If there is no such device, or an option has no meaning there.
    pub fn place(self) -> Result<Place> {
        for (option, is_set) in [("tf32", self.tf32), ("channels-last", self.channels_last)] {
            ensure!(
                !is_set || self.device == Kind::Cuda,
                "--{option} has no effect on this device: leave it out, or say --device cuda"
            );
        }
        if let Some(threads) = self.threads {
            within("threads", threads, 1..=1024)?;
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start the threads")?;
        }
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
        let dtype = if self.bf16 { DType::BF16 } else { DType::F32 };
        Ok(Place { device, dtype, tf32: self.tf32, channels_last: self.channels_last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_where_it_is_another() {
        assert!(Place::CPU.is_default());
        assert_eq!(Place { dtype: DType::BF16, ..Place::CPU }.to_string(), "bf16");
        // There are no TF32 units on the CPU, and one order of images.
        assert!(Place { tf32: true, channels_last: true, ..Place::CPU }.is_default());
    }
}
