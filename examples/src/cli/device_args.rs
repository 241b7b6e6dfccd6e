//! Options that choose the device and what it computes in.

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use sam_runtime::distributed::Comm;

use super::options::within;
use crate::util::device::DeviceConfig;

/// The options that choose a device and how much of it is used.
#[derive(Clone, Copy, Debug, Args)]
pub struct DeviceArgs {
    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    threads: ThreadsArg,
}

/// The options that make a [`DeviceConfig`].
#[derive(Clone, Copy, Debug, Args)]
pub struct ComputeArgs {
    /// Device to train on; `cuda` and `metal` need builds with these features
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    device: Kind,

    /// Compute in bf16; weights, their gradients and the optimizer stay in f32
    #[arg(long)]
    bf16: bool,

    /// Use TF32 for f32 matrix products and convolutions, on CUDA
    #[arg(long)]
    tf32: bool,

    /// Use NHWC memory format (channels last), as tensor cores prefer, on CUDA; images of one channel stay NCHW
    #[arg(long)]
    channels_last: bool,
}

/// The option for the number of threads.
#[derive(Clone, Copy, Debug, Args)]
pub struct ThreadsArg {
    /// Threads that compute on the CPU [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The processor
    Cpu,
    /// The first NVIDIA card, or with several ranks one for each
    Cuda,
    /// Apple's
    Metal,
}

impl DeviceArgs {
    /// Whether activations are bf16.
    #[must_use]
    pub fn is_bf16(self) -> bool {
        self.compute.bf16
    }

    /// The device, ready to be used, and the threads.
    ///
    /// # Errors
    /// As [`ComputeArgs::config`] and [`ThreadsArg::start`].
    pub fn config(self) -> Result<DeviceConfig> {
        self.config_of_rank(&Comm::solo())
    }

    /// The same for one of several ranks, each of which has a GPU of its own.
    ///
    /// # Errors
    /// As [`config`](Self::config).
    pub fn config_of_rank(self, world: &Comm) -> Result<DeviceConfig> {
        self.threads.start()?;
        self.compute.config_of_rank(world)
    }
}

impl ThreadsArg {
    /// Starts so many threads, if a number was given.
    ///
    /// # Errors
    /// If the number is out of range, or they cannot be started.
    pub fn start(self) -> Result<()> {
        if let Some(threads) = self.threads {
            within("threads", threads, 1..=1024)?;
            rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start the threads")?;
        }
        Ok(())
    }
}

impl ComputeArgs {
    /// The device, ready to be used.
    ///
    /// # Errors
    /// If there is no such device, or an option has no meaning there.
    pub fn config(self) -> Result<DeviceConfig> {
        self.config_of_rank(&Comm::solo())
    }

    fn config_of_rank(self, world: &Comm) -> Result<DeviceConfig> {
        for (option, is_set) in [("tf32", self.tf32), ("channels-last", self.channels_last)] {
            ensure!(
                !is_set || self.device == Kind::Cuda,
                "--{option} has no effect on this device: remove it, or use --device cuda"
            );
        }
        candle_core::cuda::set_gemm_reduced_precision_f32(self.tf32);
        let device = match self.device {
            Kind::Cpu => Device::Cpu,
            Kind::Cuda if !cfg!(feature = "cuda") => bail!("this was built without CUDA: build with --features cudnn"),
            Kind::Metal if !cfg!(feature = "metal") => {
                bail!("this was built without Metal: build with --features metal")
            }
            Kind::Cuda => world
                .cuda_device()
                .context("cannot use a CUDA device: check with `nvidia-smi` that there is one, and a driver for it")?,
            Kind::Metal => {
                Device::new_metal(0).context("cannot use the first Metal device: check that this machine has one")?
            }
        };
        let dtype = if self.bf16 { DType::BF16 } else { DType::F32 };
        Ok(DeviceConfig { device, dtype, tf32: self.tf32, channels_last: self.channels_last })
    }
}
