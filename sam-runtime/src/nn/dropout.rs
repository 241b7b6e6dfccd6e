//! Dropout with a seed, whose second pass draws the masks of the first.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor};
use candle_nn::ModuleT;

use super::rng_stream::RngStream;
use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::core::rng::hash;
use crate::kernels::cpu::dropout::DropoutMask;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::dense;

/// Keeps the seeds of clones apart from those of masks.
const CLONES: u64 = 0x636c_6f6e_6573;

/// The seed of the function [`dropout`].
const FUNCTION: u64 = 0x6675_6e63;

/// Sets each element to 0 with probability `drop_p` and divides the others by `1 - drop_p`, in training.
///
/// The mask is a function of the seed and of how often the layer has been called, so a run can be repeated, also on the
/// CPU, whose generator candle cannot seed. Both passes of a sharpness-aware step see the same masks, as in the authors'
/// code, also if other threads or evaluation use the layer between the passes (see [`RngStream`]). No mask is stored: the
/// backward pass computes it again.
///
/// # Clones
///
/// A clone of a layer from [`new`](Self::new) or [`seeded`](Self::seeded) draws masks of its own. Its seed is a function of the
/// original's seed and of how many clones were made of it before; clones made in the second pass of a step have the seeds of those
/// made in the first. A clone of a layer that was made [with a stream](Self::with_rng) uses that stream too.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::{RngStream, Dropout};
///
/// # fn main() -> Result<()> {
/// let x = Tensor::ones(1000, DType::F32, &Device::Cpu)?;
/// let (a, b) = (Dropout::seeded(0.5, 7), Dropout::seeded(0.5, 7));
/// let y = a.forward(&x, true)?.to_vec1::<f32>()?;
/// assert_eq!(y, b.forward(&x, true)?.to_vec1::<f32>()?);
/// assert_ne!(y, a.forward(&x, true)?.to_vec1::<f32>()?);
/// assert!(y.iter().all(|&y| y == 0. || y == 2.));
///
/// let rng = RngStream::new(7);
/// let c = Dropout::with_rng(0.5, rng.clone());
/// rng.set_position(1); // after the first call
/// assert_ne!(c.forward(&x, true)?.to_vec1::<f32>()?, y);
/// rng.set_position(0);
/// assert_eq!(c.forward(&x, true)?.to_vec1::<f32>()?, y);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Dropout {
    drop_p: f32,
    rng: RngStream,
    /// Seeds of clones. None if they use the same stream.
    clones: Option<RngStream>,
}

impl Dropout {
    /// With a seed of its own: the first layer of a process has 0, the second 1, ..
    #[must_use]
    pub fn new(drop_p: f32) -> Self {
        static LAYERS: AtomicU64 = AtomicU64::new(0);
        Self::seeded(drop_p, LAYERS.fetch_add(1, Ordering::Relaxed))
    }

    /// With this seed. Layers with the same seed draw the same masks.
    #[must_use]
    pub fn seeded(drop_p: f32, seed: u64) -> Self {
        let clones = RngStream::new(hash(seed ^ CLONES));
        Self { drop_p, rng: RngStream::new(seed), clones: Some(clones) }
    }

    /// With the numbers of this stream, in which a training that is resumed can [seek](RngStream::set_position).
    #[must_use]
    pub fn with_rng(drop_p: f32, rng: RngStream) -> Self {
        Self { drop_p, rng, clones: None }
    }

    /// Drops elements if `train`, and returns `x` as it is otherwise.
    ///
    /// # Errors
    /// If the probability is not in [0, 1), or `x` not a float tensor.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !train {
            return Ok(x.clone());
        }
        let mask = self.next_mask()?;
        if has_fused_kernels(x.device()) {
            return apply(mask, &[&dense(x)?]);
        }
        let factors = Tensor::from_vec(mask.factors(x.elem_count()), x.shape(), &Device::Cpu)?;
        x * factors.to_dtype(x.dtype())?.to_device(x.device())?
    }

    /// The mask of one call.
    pub(super) fn next_mask(&self) -> Result<DropoutMask> {
        if !(0.0..1.0).contains(&self.drop_p) {
            candle_core::bail!("dropout probability has to be in [0, 1), got {}", self.drop_p)
        }
        Ok(DropoutMask { drop_p: self.drop_p, seed: self.rng.next_seed() })
    }
}

/// [`Dropout`] as a function, in training: `candle_nn::ops::dropout` with masks that can be repeated.
///
/// All calls of a process draw from one [`RngStream`], so both passes of a sharpness-aware step see the same masks, and a program that
/// makes the same calls in the same order has the same masks. To choose the seed, or to resume a training, use a [`Dropout`].
///
/// # Errors
/// If the probability is not in [0, 1), or `x` not a float tensor.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::ops;
///
/// # fn main() -> Result<()> {
/// let y = ops::dropout(&Tensor::ones(1000, DType::F32, &Device::Cpu)?, 0.5)?;
/// assert!(y.to_vec1::<f32>()?.iter().all(|&y| y == 0. || y == 2.));
/// # Ok(())
/// # }
/// ```
pub fn dropout(x: &Tensor, drop_p: f32) -> Result<Tensor> {
    static DRAWS: LazyLock<RngStream> = LazyLock::new(|| RngStream::new(FUNCTION));
    Dropout::with_rng(drop_p, DRAWS.clone()).forward(x, true)
}

impl Clone for Dropout {
    fn clone(&self) -> Self {
        match &self.clones {
            Some(clones) => Self::seeded(self.drop_p, clones.next_seed()),
            None => Self::with_rng(self.drop_p, self.rng.clone()),
        }
    }
}

impl ModuleT for Dropout {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward(x, train)
    }
}

impl FusedOp for DropoutMask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn saved(&self) -> Saved {
        Saved::NOTHING
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        self.apply(&args[0])
    }

    fn backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        apply(*self, &[&dense(&dy.detach())?]).map(|dx| vec![Some(dx)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::dropout(&args[0], self.seed, [self.drop_p, self.scale()])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, wanted, y, dy)
    }
}
