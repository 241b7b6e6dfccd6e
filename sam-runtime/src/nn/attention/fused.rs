//! Attention as one operation.

use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use candle_nn::attention::AttnMask;

use crate::autograd::fused_op::FusedOp;
use crate::autograd::tape::apply;
use crate::kernels::cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::shapes::AttentionShape;
use crate::kernels::{has_fused_kernels, portable};
use crate::nn::dropout::Dropout;

/// softmax(scale q kᵀ + mask) v of q (batch, heads, queries, dim), k (batch, `kv_heads`, keys, dim) and v (batch, `kv_heads`, keys,
/// `v_dim`), where heads is a multiple of `kv_heads`: (batch, heads, queries, `v_dim`).
///
/// `scale` is 1 / √dim if there is none. With `dropout`, weights are dropped: leave it out in evaluation. Inputs may be
/// transposed views, which are not copied; the output is one, so that `y.transpose(1, 2)?.reshape(..)?` copies nothing either.
/// bf16 and f16 are computed in f32; cuDNN's kernels (feature `cudnn`) round the weights first.
///
/// # Errors
/// If shapes, types or devices do not fit.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::nn::attention::{AttnMask, scaled_dot_product_attention};
///
/// # fn main() -> Result<()> {
/// let q = Var::randn(0f32, 1., (2, 4, 10, 16), &Device::Cpu)?;
/// let [k, v] = [(); 2].map(|()| Tensor::randn(0f32, 1., (2, 2, 10, 16), &Device::Cpu));
/// let y = scaled_dot_product_attention(&q, &k?, &v?, &AttnMask::causal(), None, None)?;
/// assert_eq!(y.dims(), [2, 4, 10, 16]);
/// assert!(y.sum_all()?.backward()?.get(&q).is_some());
/// # Ok(())
/// # }
/// ```
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &AttnMask,
    dropout: Option<&Dropout>,
    scale: Option<f64>,
) -> Result<Tensor> {
    attend(q, k, v, &Settings::new(mask, dropout, scale))
}

/// Attention of q (batch, queries, heads dim), k (batch, keys, `kv_heads` dim) and v (batch, keys, `kv_heads` `v_dim`): (batch,
/// queries, heads `v_dim`). Otherwise as [`scaled_dot_product_attention`].
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn multi_head_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttnMask,
    dropout: Option<&Dropout>,
    scale: Option<f64>,
) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let ((k_batch, keys, k_width), (v_batch, v_keys, v_width)) = (k.dims3()?, v.dims3()?);
    let dim = if heads > 0 && width.is_multiple_of(heads) { width / heads } else { 0 };
    let fits = dim > 0 && k_width.is_multiple_of(dim) && k_width > 0 && v_width.is_multiple_of(k_width / dim);
    if !fits || (k_batch, v_batch, v_keys) != (batch, batch, keys) {
        let shapes = (q.dims(), k.dims(), v.dims());
        candle_core::bail!(
            "expected queries, keys and values (batch, tokens, heads dim) of {heads} heads, found {shapes:?}"
        )
    }
    let kv_heads = k_width / dim;
    let sizes = Sizes { batch, heads, kv_heads, queries, keys, dim, v_dim: v_width / kv_heads };
    let settings = &Settings::new(mask, dropout, scale);
    if has_fused_kernels(q.device()) {
        return fused(&[q, k, v], sizes, settings);
    }
    let split = |x: &Tensor, heads: usize| x.reshape((x.dim(0)?, x.dim(1)?, heads, ()))?.transpose(1, 2);
    let y = by_candle(&split(q, heads)?, &split(k, kv_heads)?, &split(v, kv_heads)?, sizes, settings)?;
    y.transpose(1, 2)?.reshape((batch, queries, ()))
}

/// Attention of `qkv` (batch, tokens, 3 heads dim) with itself: in each row all heads of q, then all of k, then all of v. The result
/// is (batch, tokens, heads dim). Otherwise as [`scaled_dot_product_attention`].
///
/// The fastest way from one linear layer to the next: nothing is transposed, and the gradient is written into one tensor.
///
/// # Errors
/// If shapes, types or devices do not fit.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use sam_runtime::nn::attention::{AttnMask, self_attention};
/// use sam_runtime::nn::{Module, VarBuilder, VarMap, linear};
///
/// # fn main() -> Result<()> {
/// let (vars, dim, heads) = (VarMap::new(), 32, 4);
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let (qkv, out) = (linear(dim, 3 * dim, vb.pp("qkv"))?, linear(dim, dim, vb.pp("out"))?);
/// let x = Tensor::randn(0f32, 1., (2, 10, dim), &Device::Cpu)?;
/// let y = self_attention(&qkv.forward(&x)?, heads, &AttnMask::causal(), None, None)?;
/// assert_eq!(out.forward(&y)?.dims(), x.dims());
/// # Ok(())
/// # }
/// ```
pub fn self_attention(
    qkv: &Tensor,
    heads: usize,
    mask: &AttnMask,
    dropout: Option<&Dropout>,
    scale: Option<f64>,
) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.dims3()?;
    if heads == 0 || !width.is_multiple_of(3 * heads) || width == 0 {
        candle_core::bail!("expected (batch, tokens, 3 heads dim) of {heads} heads, found {:?}", qkv.dims())
    }
    let dim = width / (3 * heads);
    if has_fused_kernels(qkv.device()) {
        let sizes = Sizes { batch, heads, kv_heads: heads, queries: tokens, keys: tokens, dim, v_dim: dim };
        return fused(&[qkv], sizes, &Settings::new(mask, dropout, scale));
    }
    let part = |i: usize| qkv.narrow(2, i * heads * dim, heads * dim);
    multi_head_attention(&part(0)?, &part(1)?, &part(2)?, heads, mask, dropout, scale)
}

/// `candle_nn::ops::sdpa` on every device, with a gradient: [`scaled_dot_product_attention`] with both masks, the causal one aligned
/// with the last key, and scores s become c tanh(s / c) for a `softcapping` c other than 1.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn sdpa(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    do_causal: bool,
    scale: f32,
    softcapping: f32,
) -> Result<Tensor> {
    let tracked = [Some(q), Some(k), Some(v), mask].into_iter().flatten().any(Tensor::track_op);
    if q.device().is_metal() && !tracked {
        return candle_nn::ops::sdpa(q, k, v, mask, do_causal, scale, softcapping);
    }
    let offset = k.dims4()?.2.cast_signed() - q.dims4()?.2.cast_signed();
    let softcap = if softcapping == 1.0 { 0.0 } else { softcapping.into() };
    let (mask, causal) = (mask.cloned(), do_causal.then_some(offset));
    attend(q, k, v, &Settings { mask, causal, softcap, scale: Some(scale.into()), dropout: None })
}

/// What is done to the scores.
pub(super) struct Settings<'a> {
    pub(super) mask: Option<Tensor>,
    pub(super) causal: Option<isize>,
    /// 0: none.
    pub(super) softcap: f64,
    pub(super) scale: Option<f64>,
    pub(super) dropout: Option<&'a Dropout>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(mask: &AttnMask, dropout: Option<&'a Dropout>, scale: Option<f64>) -> Self {
        let (mask, causal) = match mask {
            AttnMask::None => (None, None),
            AttnMask::Causal { kv_offset } => (None, Some(isize::try_from(*kv_offset).unwrap_or(isize::MAX))),
            AttnMask::Mask(mask) => (Some(mask.clone()), None),
        };
        Self { mask, causal, softcap: 0.0, scale, dropout }
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    dim: usize,
    v_dim: usize,
}

/// Of (batch, heads, tokens, dim).
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, settings: &Settings<'_>) -> Result<Tensor> {
    let (batch, heads, queries, dim) = q.dims4()?;
    let ((_, kv_heads, keys, _), (.., v_dim)) = (k.dims4()?, v.dims4()?);
    if k.dims() != [batch, kv_heads, keys, dim] || v.dims() != [batch, kv_heads, keys, v_dim] {
        let shapes = (q.dims(), k.dims(), v.dims());
        candle_core::bail!("expected queries, keys and values (batch, heads, tokens, dim), found {shapes:?}")
    }
    let sizes = Sizes { batch, heads, kv_heads, queries, keys, dim, v_dim };
    if !has_fused_kernels(q.device()) {
        return by_candle(q, k, v, sizes, settings);
    }
    fused(&[q, k, v], sizes, settings)?.reshape((batch, queries, heads, v_dim))?.transpose(1, 2)
}

/// Of q, k and v, or of one tensor with all three: (batch, queries, heads `v_dim`).
fn fused(inputs: &[&Tensor], sizes: Sizes, settings: &Settings<'_>) -> Result<Tensor> {
    check(inputs, sizes)?;
    let dtype = inputs[0].dtype();
    let mut args = inputs.iter().map(|x| with_rows(x)).collect::<Result<Vec<_>>>()?;
    if let Some(mask) = &settings.mask {
        args.push(prepared_mask(mask, sizes, &args[0])?);
    }
    let dropout = settings.dropout.map(Dropout::next_mask).transpose()?;
    let shape = AttentionShape {
        drop_p: dropout.map_or(0.0, |mask| mask.drop_p),
        seed: dropout.map_or(0, |mask| mask.seed),
        packed: inputs.len() == 1,
        ..shape(sizes, settings)
    };
    apply(Attention { shape, logs: OnceLock::new() }, &args.iter().collect::<Vec<_>>())?.to_dtype(dtype)
}

/// Without dropout.
fn shape(sizes: Sizes, settings: &Settings<'_>) -> AttentionShape {
    let Sizes { batch, heads, kv_heads, queries, keys, dim, v_dim } = sizes;
    AttentionShape {
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        dim,
        v_dim,
        scale: settings.scale.unwrap_or(1.0 / (dim as f64).sqrt()),
        softcap: settings.softcap,
        causal: settings.causal,
        drop_p: 0.0,
        seed: 0,
        packed: false,
    }
}

/// Without kernels, of (batch, heads, tokens, dim): (batch, heads, queries, `v_dim`).
fn by_candle(q: &Tensor, k: &Tensor, v: &Tensor, sizes: Sizes, settings: &Settings<'_>) -> Result<Tensor> {
    check(&[q, k, v], sizes)?;
    let mask = settings.mask.as_ref().map(|mask| prepared_mask(mask, sizes, q)).transpose()?;
    portable::attention::attention(&shape(sizes, settings), [q, k, v], mask.as_ref(), |weights| {
        match settings.dropout {
            Some(dropout) => dropout.forward(&weights, true),
            None => Ok(weights),
        }
    })
}

fn check(inputs: &[&Tensor], sizes: Sizes) -> Result<()> {
    let Sizes { heads, kv_heads, dim, .. } = sizes;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        candle_core::bail!(
            "expected a number of heads that is a multiple of that of the keys, found {heads} and {kv_heads}"
        )
    }
    if dim == 0 {
        candle_core::bail!("expected heads of at least one dimension, found {:?}", inputs[0].dims())
    }
    let same = |x: &&Tensor| x.dtype() == inputs[0].dtype() && x.device().same_device(inputs[0].device());
    if !inputs.iter().all(same) {
        let found: Vec<_> = inputs.iter().map(|x| (x.dtype(), x.device().location())).collect();
        candle_core::bail!("expected queries, keys and values of one type on one device, found {found:?}")
    }
    Ok(())
}

/// In the dtype that is computed in, the elements of each row side by side.
fn with_rows(x: &Tensor) -> Result<Tensor> {
    let half = matches!(x.dtype(), DType::BF16 | DType::F16) && x.device().is_cpu();
    let x = if half { x.to_dtype(DType::F32)? } else { x.clone() };
    if x.stride().last() == Some(&1) || x.dims().last() == Some(&1) { Ok(x) } else { x.contiguous() }
}

/// Contiguous, of four dimensions that are 1 or those of the scores.
fn prepared_mask(mask: &Tensor, sizes: Sizes, q: &Tensor) -> Result<Tensor> {
    let full = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
    let offset = full.len().saturating_sub(mask.rank());
    let fits = mask.rank() <= 4 && mask.dims().iter().zip(&full[offset..]).all(|(size, all)| *size == 1 || size == all);
    if !fits || !mask.device().same_device(q.device()) {
        candle_core::bail!(
            "expected a mask for scores {full:?} on the device of the queries, found {:?} on {:?}",
            mask.dims(),
            mask.device().location()
        )
    }
    let mut mask = mask.clone();
    while mask.rank() < full.len() {
        mask = mask.unsqueeze(0)?;
    }
    for i in 0..full.len() {
        // Broadcast already: one of them is enough.
        if mask.stride()[i] == 0 && mask.dims()[i] > 1 {
            mask = mask.narrow(i, 0, 1)?;
        }
    }
    match mask.dtype() {
        DType::U8 => mask.contiguous(),
        // The kernels of CUDA read any.
        dtype if dtype.is_float() && mask.device().is_cuda() => mask.contiguous(),
        dtype if dtype.is_float() => mask.to_dtype(q.dtype())?.contiguous(),
        dtype => candle_core::bail!("expected a mask of u8 or of floats, found {dtype:?}"),
    }
}

struct Attention {
    shape: AttentionShape,
    /// The logarithm of each row's sum, for the backward pass.
    logs: OnceLock<Tensor>,
}

impl Attention {
    fn logs(&self) -> Result<&Tensor> {
        self.logs.get().ok_or_else(|| candle_core::Error::msg("expected a forward pass before that of the gradient"))
    }
}

impl FusedOp for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (y, logs) = cpu::attention::attention(&self.shape, args)?;
        self.logs.get_or_init(|| logs);
        Ok(y)
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cpu::attention::attention_back(&self.shape, args, wanted, y, dy, self.logs()?)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (y, logs) = cuda::attention(&self.shape, args)?;
        self.logs.get_or_init(|| logs);
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::attention_back(&self.shape, args, wanted, y, dy, self.logs()?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// The way of devices without a kernel, on the CPU.
    #[test]
    fn candle_gives_the_same() -> Result<()> {
        let q = Var::randn(0f64, 1., (2, 4, 5, 6), &Device::Cpu)?;
        let k = Tensor::randn(0f64, 1., (2, 2, 7, 6), &Device::Cpu)?;
        let v = Tensor::randn(0f64, 1., (2, 2, 7, 3), &Device::Cpu)?;
        let bias = Var::randn(0f64, 1., (4, 5, 7), &Device::Cpu)?;
        let sizes = Sizes { batch: 2, heads: 4, kv_heads: 2, queries: 5, keys: 7, dim: 6, v_dim: 3 };
        let settings = || Settings {
            mask: Some(bias.as_tensor().clone()),
            causal: Some(1),
            softcap: 2.0,
            scale: Some(0.7),
            dropout: None,
        };
        let (ours, theirs) = (attend(&q, &k, &v, &settings())?, by_candle(&q, &k, &v, sizes, &settings())?);
        assert!((&ours - &theirs)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-14);
        let (ours, theirs) = (ours.sqr()?.sum_all()?.backward()?, theirs.sqr()?.sum_all()?.backward()?);
        for var in [&q, &bias] {
            let (Some(a), Some(b)) = (ours.get(var), theirs.get(var)) else { candle_core::bail!("no gradient") };
            assert!((a - b)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-13);
        }
        Ok(())
    }
}
