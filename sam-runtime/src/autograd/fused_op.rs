//! An operation with a backward pass of its own: what PyTorch calls an `autograd.Function`.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor};

/// One operation on contiguous tensors, with its own backward pass: on the CPU and, where there is one, on a CUDA device.
/// There the first argument may be images that are channels last: then an output of four dimensions is too, and what is
/// like it.
pub(crate) trait FusedOp: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// What the backward pass reads. The rest is not kept for it.
    fn saved(&self) -> Saved {
        Saved::ALL
    }

    /// The gradients of those arguments that are wanted; None stands for zeros. What is not [`saved`](Self::saved) is not there:
    /// `args` are empty then, and `y` is `dy`.
    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>>;

    /// For those that are applied to tensors of a CUDA device.
    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, _: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("there is no {} on CUDA", self.name())
    }

    /// As [`backward`](Self::backward).
    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        candle_core::bail!("there is no {} on CUDA", self.name())
    }
}

/// The tensors that an operation's backward pass reads besides the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved {
    pub(super) args: bool,
    pub(super) output: bool,
}

impl Saved {
    pub(crate) const ALL: Self = Self { args: true, output: true };
    pub(crate) const ARGS: Self = Self { args: true, output: false };
    pub(crate) const OUTPUT: Self = Self { args: false, output: true };
    pub(crate) const NOTHING: Self = Self { args: false, output: false };
}

/// What a layer returns: the elements of a tensor of this shape.
pub(super) type Output = (Storage, Shape);

pub(super) fn forward(layer: &impl FusedOp, args: &[Tensor]) -> Result<Output> {
    #[cfg(feature = "cuda")]
    if args[0].device().is_cuda() {
        return layer.cuda_forward(args).map(|(storage, shape)| (Storage::Cuda(storage), shape));
    }
    layer.forward(args).map(|(storage, shape)| (Storage::Cpu(storage), shape))
}

pub(super) fn backward(
    layer: &dyn FusedOp,
    args: &[Tensor],
    wanted: &[bool],
    y: &Tensor,
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    #[cfg(feature = "cuda")]
    if dy.device().is_cuda() {
        return layer.cuda_backward(args, wanted, y, dy);
    }
    layer.backward(args, wanted, y, dy)
}
