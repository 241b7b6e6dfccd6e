//! The linear layer.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use candle_nn::{Module, VarBuilder};

use crate::autograd::fused_op::FusedOp;
use crate::autograd::tape::apply;
use crate::kernels::cpu::float::{for_float, like, output, view, zeros};
use crate::kernels::cpu::matmul::{Matrix, add_product, column_sums};
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
        let (mut wide, weight) = (to_compute_dtype(x)?, weight_for(x, &self.weight)?);
        // cuBLAS takes matrices. On the CPU the operation itself takes any rank: a reshape between two layers would cost a copy of
        // the gradient.
        let as_matrix = x.rank() != 2 && !x.device().is_cpu();
        if as_matrix {
            wide = wide.reshape((rows, in_dim))?;
        }
        let layer =
            Product { rows, in_dim, out_dim, shape: if as_matrix { vec![rows, out_dim] } else { shape.clone() } };
        let y = match &self.bias {
            None => apply(layer, &[&wide, &weight])?,
            Some(bias) if bias.dims() == [out_dim] => apply(layer, &[&wide, &weight, &weight_for(x, bias)?])?,
            Some(bias) => candle_core::bail!("expected a bias of {out_dim}, found {:?}", bias.dims()),
        };
        let y = y.to_dtype(x.dtype())?;
        if as_matrix { y.reshape(shape) } else { Ok(y) }
    }
}

/// x wᵀ, and + b if there is one.
struct Product {
    rows: usize,
    in_dim: usize,
    out_dim: usize,
    /// Of the result.
    shape: Vec<usize>,
}

impl FusedOp for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let &Self { rows, in_dim, out_dim, ref shape } = self;
        let (x, w, bias) = (view(&args[0]), view(&args[1]), args.get(2).map(view));
        for_float!(args[0].dtype(), self.name(), |T| {
            let mut y = match &bias {
                Some(bias) => bias.elements::<T>()?.repeat(rows),
                None => zeros(rows * out_dim),
            };
            let x = Matrix::new(x.elements::<T>()?, rows, in_dim);
            add_product(&mut y, x, Matrix::new(w.elements()?, out_dim, in_dim).transposed());
            Ok(output(y, shape.clone()))
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
                    0 => add_product(&mut values, matrix, Matrix::new(w, out_dim, in_dim)),
                    1 => add_product(&mut values, matrix.transposed(), Matrix::new(x, rows, in_dim)),
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
