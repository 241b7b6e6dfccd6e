//! ReLU, sums and conversions: what is done to each element by itself.

#[cfg(feature = "cuda")]
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, Storage};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::elementwise;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::prepare::{dense, to_compute_dtype, to_layout_of};
use crate::kernels::{check_addable, has_fused_kernels};

/// max(x, 0). As in PyTorch the gradient at 0 is 0 and NaN stays NaN, where candle has 1 and 0.
///
/// # Errors
/// If `x` is not a float tensor.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Var::new(&[-1f32, 0., 2.], &Device::Cpu)?;
/// let y = nn::relu(&x)?;
/// assert_eq!(y.to_vec1::<f32>()?, [0., 0., 2.]);
/// assert_eq!(y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f32>()?, [0., 0., 1.]);
/// # Ok(())
/// # }
/// ```
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if has_fused_kernels(x.device()) { apply(Relu, &[&to_compute_dtype(x)?])?.to_dtype(x.dtype()) } else { x.relu() }
}

struct Relu;

impl FusedOp for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn saved(&self) -> Saved {
        Saved::OUTPUT
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        elementwise::relu(&args[0])
    }

    fn backward(&self, _: &[Tensor], _: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(elementwise::relu_back(y, dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::relu(&args[0])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &[Tensor], _: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::relu_back(y, dy)?)])
    }
}

/// x + y, of one shape: a residual connection. Both get the gradient of the sum.
///
/// # Errors
/// If the shapes or types differ, or are not those of float tensors.
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
/// assert_eq!(nn::add(&x, &x)?.to_vec1::<f32>()?, [2., 4.]);
/// # Ok(())
/// # }
/// ```
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    check_addable(x, y)?;
    if has_fused_kernels(x.device()) && x.device().same_device(y.device()) {
        let wide = to_compute_dtype(x)?;
        apply(Add, &[&wide, &to_layout_of(&wide, y)?])?.to_dtype(x.dtype())
    } else {
        x + y
    }
}

struct Add;

impl FusedOp for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn saved(&self) -> Saved {
        Saved::NOTHING
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        elementwise::add(&args[0], &args[1])
    }

    fn backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dy.clone()), Some(dy.clone())])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::add(&args[0], &args[1])
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, wanted, y, dy)
    }
}

/// `x.to_dtype(dtype)`, as a layer, so that a network that computes in bf16 can consist of layers only.
///
/// For mixed precision keep the variables in f32, convert the images to bf16 with it, and the logits back to f32 before
/// the loss: on CUDA the layers between compute in the type of their input, and gradients of variables are in f32.
///
/// # Errors
/// If one of the types is not a float type.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let x = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
/// assert_eq!(nn::to_dtype(&x, DType::BF16)?.dtype(), DType::BF16);
/// # Ok(())
/// # }
/// ```
pub fn to_dtype(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype || !has_fused_kernels(x.device()) {
        return x.to_dtype(dtype);
    }
    if !x.dtype().is_float() || !dtype.is_float() {
        candle_core::bail!("expected types of floats, found {:?} and {dtype:?}", x.dtype())
    }
    apply(Cast { from: x.dtype(), to: dtype }, &[&dense(x)?])
}

struct Cast {
    from: DType,
    to: DType,
}

impl FusedOp for Cast {
    fn name(&self) -> &'static str {
        "to-dtype"
    }

    fn saved(&self) -> Saved {
        Saved::NOTHING
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        elementwise::to_dtype(&args[0], self.to)
    }

    fn backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let format = ImageLayout::of(dy);
        let dx = format.in_memory(&dy.detach())?.to_dtype(self.from)?;
        Ok(vec![Some(format.named(&dx)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let x = ImageLayout::of(&args[0]).in_memory(&args[0])?;
        match &*x.storage_and_layout().0 {
            Storage::Cuda(storage) => Ok((storage.to_dtype(x.layout(), self.to)?, args[0].shape().clone())),
            _ => candle_core::bail!("expected a tensor on a CUDA device"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, wanted, y, dy)
    }
}
