//! The linear layer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use candle_nn::{Module, VarBuilder};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::float::{for_float, like, output, view, zeros};
use crate::kernels::cpu::matmul::{Matrix, Start, column_sums, multiply};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, weight_for};

/// `candle_nn::Linear`, except that on the CPU the bias is a part of the product, and its gradient no sum over copies.
///
/// bf16 and f16 are computed in f32 there. On CUDA the products are cuBLAS's, and the weight may be of another type than the
/// input. On other devices this is candle's own layer.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A linear layer with its variables from `vb`: `weight` of `(out_dim, in_dim)` and `bias` of `(out_dim)`, as in `candle_nn`.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let layer = nn::linear(20, 10, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// assert_eq!(layer.forward(&Tensor::zeros((3, 20), DType::F32, &Device::Cpu)?)?.dims(), [3, 10]);
/// # Ok(())
/// # }
/// ```
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    candle_nn::linear(in_dim, out_dim, vb).map(Linear::from)
}

/// [`linear`] without a bias.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder<'_>) -> Result<Linear> {
    candle_nn::linear_no_bias(in_dim, out_dim, vb).map(Linear::from)
}

/// [`linear`], or [`linear_no_bias`].
///
/// # Errors
/// If `vb` has variables of another shape.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder<'_>) -> Result<Linear> {
    candle_nn::linear_b(in_dim, out_dim, bias, vb).map(Linear::from)
}

impl Linear {
    /// With `weight` of `(out_dim, in_dim)` and `bias` of `(out_dim)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// What the input is multiplied by, transposed.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(stock: candle_nn::Linear) -> Self {
        Self::new(stock.weight().clone(), stock.bias().cloned())
    }
}

impl Module for Linear {
    /// From `(.., in_dim)` to `(.., out_dim)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_fused_kernels(x.device()) {
            return candle_nn::Linear::new(self.weight.clone(), self.bias.clone()).forward(x);
        }
        let (out_dim, in_dim) = self.weight.dims2()?;
        if x.dims().last() != Some(&in_dim) {
            candle_core::bail!("expected inputs (.., {in_dim}), found {:?}", x.dims())
        }
        let mut shape = x.dims().to_vec();
        shape.pop();
        let rows = shape.iter().product();
        shape.push(out_dim);
        let layer = Product { shape, rows, in_dim, out_dim };
        let (wide, weight) = (to_compute_dtype(x)?.contiguous()?, weight_for(x, &self.weight)?);
        let y = match &self.bias {
            None => apply(layer, &[&wide, &weight])?,
            Some(bias) if bias.dims() == [out_dim] => apply(layer, &[&wide, &weight, &weight_for(x, bias)?])?,
            Some(bias) => candle_core::bail!("expected a bias of {out_dim}, found {:?}", bias.dims()),
        };
        y.to_dtype(x.dtype())
    }
}

/// x wᵀ, and + b if there is one, over the last dimension of x.
struct Product {
    /// Of the output: (.., `out_dim`), so many rows.
    shape: Vec<usize>,
    rows: usize,
    in_dim: usize,
    out_dim: usize,
}

impl FusedOp for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let Self { rows, in_dim, out_dim, .. } = *self;
        let (x, w, bias) = (view(&args[0]), view(&args[1]), args.get(2).map(view));
        for_float!(args[0].dtype(), self.name(), |T| {
            let bias = bias.as_ref().map(|bias| bias.elements::<T>()).transpose()?;
            let start = bias.map_or(Start::Zero, Start::Row);
            let mut y = zeros(rows * out_dim);
            let x = Matrix::new(x.elements::<T>()?, rows, in_dim);
            multiply(&mut y, x, Matrix::new(w.elements()?, out_dim, in_dim).transposed(), start);
            Ok(output(y, &*self.shape))
        })
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Self { rows, in_dim, out_dim, .. } = *self;
        let (x, w, dy) = (view(&args[0]), view(&args[1]), view(dy));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (x, w, dy) = (x.elements::<T>()?, w.elements::<T>()?, dy.elements::<T>()?);
            let matrix = Matrix::new(dy, rows, out_dim);
            let gradient = |(i, arg): (usize, &Tensor)| {
                if !wanted[i] {
                    return Ok(None);
                }
                let mut values = zeros::<T>(arg.elem_count());
                match i {
                    0 => multiply(&mut values, matrix, Matrix::new(w, out_dim, in_dim), Start::Zero),
                    1 => multiply(&mut values, matrix.transposed(), Matrix::new(x, rows, in_dim), Start::Zero),
                    _ => values = column_sums(dy, out_dim),
                }
                like(values, arg).map(Some)
            };
            args.iter().enumerate().map(gradient).collect()
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::linear(&args[0], &args[1], args.get(2))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::linear_back(args, wanted, dy)
    }
}
