//! The linear layer.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType};
use candle_nn::{Module, VarBuilder};

use super::widened;
use crate::kernels::float::{Float, elements, for_float, with_elements};
use crate::kernels::matmul::{Matrix, add_product};

/// `candle_nn::Linear`, except that on the CPU the bias is a part of the product, and its gradient no sum over copies.
///
/// bf16 and f16 are computed in f32. On other devices this is candle's own layer.
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
        if !x.device().is_cpu() {
            return candle_nn::Linear::new(self.weight.clone(), self.bias.clone()).forward(x);
        }
        let (out_dim, in_dim) = self.weight.dims2()?;
        if x.dims().last() != Some(&in_dim) {
            candle_core::bail!("expected inputs (.., {in_dim}), found {:?}", x.dims())
        }
        let mut shape = x.dims().to_vec();
        shape.pop();
        let op = Product { rows: shape.iter().product(), in_dim, out_dim };
        shape.push(out_dim);
        let (wide, weight) = (widened(x)?.contiguous()?, widened(&self.weight)?.contiguous()?);
        let wide = if x.rank() == 2 { wide } else { wide.reshape((op.rows, in_dim))? };
        let y = match &self.bias {
            None => wide.apply_op2(&weight, op)?,
            Some(bias) if bias.dims() == [out_dim] => wide.apply_op3(&weight, &widened(bias)?.contiguous()?, op)?,
            Some(bias) => candle_core::bail!("expected a bias of {out_dim}, found {:?}", bias.dims()),
        };
        let y = y.to_dtype(x.dtype())?;
        if x.rank() == 2 { Ok(y) } else { y.reshape(shape) }
    }
}

/// x wᵀ + b
struct Product {
    rows: usize,
    in_dim: usize,
    out_dim: usize,
}

impl Product {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (w, w_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let Self { rows, in_dim, out_dim } = *self;
        for_float!(x.dtype(), "linear", |T| {
            let mut y = match bias {
                Some((bias, layout)) => elements::<T>(bias, layout)?.repeat(rows),
                None => vec![T::default(); rows * out_dim],
            };
            let x = Matrix::new(elements::<T>(x, x_layout)?, rows, in_dim);
            add_product(&mut y, x, Matrix::new(elements(w, w_layout)?, out_dim, in_dim).transposed());
            Ok((<T as WithDType>::to_cpu_storage_owned(y), (rows, out_dim).into()))
        })
    }

    /// Those of x, w and b that are asked for.
    fn gradients(&self, x: &Tensor, w: &Tensor, dy: &Tensor, bias: bool) -> Result<[Option<Tensor>; 3]> {
        let dy = &dy.contiguous()?;
        for_float!(x.dtype(), "linear", |T| self.typed_gradients::<T>(x, w, dy, bias))
    }

    fn typed_gradients<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        dy: &Tensor,
        bias: bool,
    ) -> Result<[Option<Tensor>; 3]> {
        let Self { rows, in_dim, out_dim } = *self;
        with_elements::<T, _>(dy, |dy| {
            let matrix = Matrix::new(dy, rows, out_dim);
            let dx = || {
                let mut dx = vec![T::default(); rows * in_dim];
                with_elements(w, |w| {
                    add_product(&mut dx, matrix, Matrix::new(w, out_dim, in_dim));
                    Ok(())
                })?;
                Tensor::from_vec(dx, x.shape(), x.device())
            };
            let dw = || {
                let mut dw = vec![T::default(); out_dim * in_dim];
                with_elements(x, |x| {
                    add_product(&mut dw, matrix.transposed(), Matrix::new(x, rows, in_dim));
                    Ok(())
                })?;
                Tensor::from_vec(dw, w.shape(), w.device())
            };
            let db = || {
                let mut sums = vec![0.0; out_dim];
                for dy in dy.chunks_exact(out_dim.max(1)) {
                    sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy.wide());
                }
                Tensor::from_vec(sums.into_iter().map(T::narrow).collect::<Vec<T>>(), out_dim, x.device())
            };
            Ok([x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?, bias.then(db).transpose()?])
        })
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.gradients(x, w, dy, false)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), Some((bias, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.gradients(x, w, dy, bias.track_op())?;
        Ok((dx, dw, db))
    }
}
