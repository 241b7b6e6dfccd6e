//! The layers' arithmetic on tensors of a CUDA device. Halves stay halves, and weights may be of another type than what
//! they are for. Images may be channels last: then everything that has their four dimensions is.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Result, Shape, Storage, Tensor};

use super::context::{Fresh, address_of, device, place, with};
#[cfg(feature = "cudnn")]
use super::cudnn;
use super::im2col;
use super::launch::code;
use super::launch::nn::{self, Channels, CrossEntropy, Dropout, Mean, Running, Target, Weight};
use crate::core::dtype::wide;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::batch_norm::Norm;
use crate::kernels::cpu::conv::Conv;
use crate::kernels::shapes::PoolShape;

/// What a layer returns: the elements of a tensor of this shape.
type Output = (CudaStorage, Shape);

/// max(x, 0)
pub(crate) fn relu(x: &Tensor) -> Result<Output> {
    let (from, y) = (place(x)?, Fresh::like(x)?);
    let addresses = [from.address, y.address()?];
    with(device(x)?, |engine| nn::relu(engine, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn relu_back(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (place(y)?, place(dy)?, Fresh::like(y)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with(device(y)?, |engine| nn::relu_back(engine, from.dtype, addresses, from.elements))?;
    dx.tensor()
}

/// a + b
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Output> {
    added(a, b).map(Fresh::output)
}

/// a + b, as a tensor.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    added(a, b)?.tensor()
}

fn added(a: &Tensor, b: &Tensor) -> Result<Fresh> {
    let (left, right, y) = (place(a)?, place(b)?, Fresh::like(a)?);
    let addresses = [left.address, right.address, y.address()?];
    with(device(a)?, |engine| nn::add(engine, left.dtype, addresses, left.elements))?;
    Ok(y)
}

/// The elements that the mask of this seed keeps, times the scale: `mask` is the probability of 0, and the scale.
pub(crate) fn dropout(x: &Tensor, seed: u64, [drop, scale]: [f32; 2]) -> Result<Output> {
    let (from, y) = (place(x)?, Fresh::like(x)?);
    let plane = x.dims().iter().skip(2).product();
    let (mask, addresses) = (Dropout { seed, drop, scale, plane, step: step(x)? }, [from.address, y.address()?]);
    with(device(x)?, |engine| mask.of(engine, from.dtype, addresses, from.elements))?;
    Ok(y.output())
}

/// Σ f x over one or two tensors x, with a factor f for each example.
pub(crate) fn mixture(args: &[Tensor], factors: &[Vec<f32>]) -> Result<Output> {
    let there = factors.iter().map(|factors| on_device(factors, &args[0])).collect::<Result<Vec<_>>>()?;
    Ok(mixed(&args.iter().zip(&there).collect::<Vec<_>>())?.output())
}

/// The gradient of each of those tensors.
pub(crate) fn mixture_back(dy: &Tensor, factors: &[Vec<f32>]) -> Result<Vec<Option<Tensor>>> {
    factors.iter().map(|factors| mixed(&[(dy, &on_device(factors, dy)?)])?.tensor().map(Some)).collect()
}

/// w times a number on its device.
pub(crate) fn times(w: &Tensor, number: &Tensor) -> Result<Tensor> {
    mixed(&[(w, &number.to_dtype(wide(w.dtype()))?)])?.tensor()
}

fn on_device(factors: &[f32], beside: &Tensor) -> Result<Tensor> {
    Tensor::from_slice(factors, factors.len(), beside.device())?.to_dtype(wide(beside.dtype()))
}

/// Σ f x over one or two tensors x, with as many factors f as there are examples.
fn mixed(terms: &[(&Tensor, &Tensor)]) -> Result<Fresh> {
    let (mut tensors, mut factors) = ([0; 2], [0; 2]);
    if terms.iter().any(|(x, _)| x.dtype() != terms[0].0.dtype()) {
        candle_core::bail!("expected tensors of one type to mix")
    }
    for (i, (x, f)) in terms.iter().enumerate() {
        (tensors[i], factors[i]) = (place(x)?.address, place(f)?.address);
    }
    let (x, f) = terms[0];
    let (dtype, n, y) = (place(x)?.dtype, x.elem_count(), Fresh::like(x)?);
    let [a, b] = tensors;
    let sizes = [n, n / f.elem_count()];
    with(device(x)?, |engine| nn::mixture(engine, dtype, [a, b, y.address()?], sizes, factors))?;
    Ok(y)
}

/// x wᵀ + b, of (rows, in), (out, in) and (out).
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Output> {
    let ((rows, inner), (outer, _)) = (x.dims2()?, w.dims2()?);
    let w = w.to_dtype(x.dtype())?.t()?;
    let product = {
        let ((x, x_layout), (w, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
        let (Storage::Cuda(x), Storage::Cuda(w)) = (&*x, &*w) else {
            candle_core::bail!("expected a weight on the CUDA device of the input")
        };
        x.matmul(w, (1, rows, outer, inner), x_layout, w_layout)?
    };
    let y = Fresh { storage: product, shape: (rows, outer).into(), format: ImageLayout::Nchw };
    if let Some(bias) = bias {
        let (dtypes, sizes) = ([code(x.dtype())?, place(bias)?.dtype], columns(rows, outer));
        let addresses = [y.address()?, place(bias)?.address];
        with(device(x)?, |engine| nn::bias(engine, sizes, dtypes, addresses))?;
    }
    Ok(y.output())
}

/// The gradients of x, w and b that are wanted.
pub(crate) fn linear_back(args: &[Tensor], wanted: &[bool], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (rows, outer) = dy.dims2()?;
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => dy.matmul(&args[1].to_dtype(dy.dtype())?).map(Some),
        1 => dy.t()?.matmul(&args[0])?.to_dtype(arg.dtype()).map(Some),
        _ => bias_back(arg, dy, columns(rows, outer)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

fn columns(rows: usize, columns: usize) -> Channels {
    Channels { images: rows, channels: columns, plane: 1, format: ImageLayout::Nchw }
}

fn bias_back(bias: &Tensor, dy: &Tensor, sizes: Channels) -> Result<Tensor> {
    let (d_bias, dy_place) = (Fresh::like(bias)?, place(dy)?);
    let (dtypes, addresses) = ([dy_place.dtype, code(bias.dtype())?], [dy_place.address, d_bias.address()?]);
    with(device(dy)?, |engine| nn::bias_back(engine, sizes, dtypes, addresses))?;
    d_bias.tensor()
}

/// The convolution of x with w, plus a bias. `kept` is what the way back needs again: the weight, as it is multiplied.
pub(crate) fn conv(conv: &Conv, args: &[Tensor], kept: &OnceLock<Tensor>) -> Result<Output> {
    let (x, w) = (&args[0], filters(&args[1], &args[0])?);
    let y = convolved(conv, x, &w)?;
    if let Some(bias) = args.get(2) {
        let (dtypes, addresses) = ([code(x.dtype())?, place(bias)?.dtype], [y.address()?, place(bias)?.address]);
        with(device(x)?, |engine| nn::bias(engine, outputs(conv, x), dtypes, addresses))?;
    }
    kept.get_or_init(|| w);
    Ok(y.output())
}

/// The gradients of x, w and the bias that are wanted.
pub(crate) fn conv_back(
    conv: &Conv,
    args: &[Tensor],
    kept: Option<&Tensor>,
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => {
            let w = kept.map_or_else(|| filters(&args[1], &args[0]), |kept| Ok(kept.clone()))?;
            back_to_images(conv, &w, dy, ImageLayout::of(&args[0])).map(Some)
        }
        1 => back_to_weight(conv, &args[0], arg, dy).map(Some),
        _ => bias_back(arg, dy, outputs(conv, dy)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

fn convolved(conv: &Conv, x: &Tensor, w: &Tensor) -> Result<Fresh> {
    #[cfg(feature = "cudnn")]
    if let Some(y) = cudnn::forward(conv, x, w, ImageLayout::of(x))? {
        return Ok(y);
    }
    match ImageLayout::of(x) {
        ImageLayout::Nchw => im2col::forward(conv, x, w),
        ImageLayout::Nhwc => convolved(conv, &x.contiguous()?, &w.contiguous()?)?.channels_last(),
    }
}

/// In the format of the images, which outputs of one pixel or channel do not tell.
fn back_to_images(conv: &Conv, w: &Tensor, dy: &Tensor, format: ImageLayout) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dx) = cudnn::backward_data(conv, w, dy, format)? {
        return Ok(dx);
    }
    if format == ImageLayout::Nhwc {
        let dx = back_to_images(conv, &w.contiguous()?, &dy.contiguous()?, ImageLayout::Nchw)?;
        return format.arrange(&dx);
    }
    im2col::backward_data(conv, w, dy)
}

/// As contiguous as `weight`, and of its type.
fn back_to_weight(conv: &Conv, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dw) = cudnn::backward_filter(conv, x, dy, ImageLayout::of(x))? {
        return exchanged(&dw, weight.dtype(), ImageLayout::Nchw);
    }
    if ImageLayout::of(x) == ImageLayout::Nhwc {
        return back_to_weight(conv, &x.contiguous()?, weight, &dy.contiguous()?);
    }
    im2col::backward_filter(conv, x, dy)?.to_dtype(weight.dtype())
}

/// The weight, in the type and format of what it is multiplied with.
fn filters(w: &Tensor, images: &Tensor) -> Result<Tensor> {
    exchanged(w, images.dtype(), ImageLayout::of(images))
}

/// A weight in this type and format.
fn exchanged(w: &Tensor, dtype: DType, format: ImageLayout) -> Result<Tensor> {
    let (filters, channels, height, width) = w.dims4()?;
    if ImageLayout::of(w) == format || height * width == 1 {
        return w.to_dtype(dtype);
    }
    let sizes = Weight { filters, channels, places: height * width };
    let (from, to) = (place(w)?, Fresh { format, ..Fresh::new(device(w)?, dtype, w.shape())? });
    let (types, addresses) = ([from.dtype, code(dtype)?], [from.address, to.address()?]);
    with(device(w)?, |engine| sizes.swap_storage(engine, types, addresses, format))?;
    to.tensor()
}

fn outputs(conv: &Conv, images: &Tensor) -> Channels {
    let plane = conv.height.output * conv.width.output;
    Channels { images: conv.images, channels: conv.filters, plane, format: ImageLayout::of(images) }
}

/// What a batch normalisation works with: x, γ, β, and a residual.
#[derive(Clone, Copy)]
pub(crate) struct Normalisation<'a> {
    pub(crate) norm: &'a Norm,
    pub(crate) x: &'a Tensor,
    pub(crate) weight: Option<&'a Tensor>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) residual: Option<&'a Tensor>,
}

/// Where the statistics come from.
#[derive(Clone, Copy)]
pub(crate) enum BatchNormed<'a> {
    /// These mean and variance.
    Fixed([&'a Tensor; 2]),
    /// The batch; running ones, if there are any, move towards those by so much.
    Batch(Option<([&'a Tensor; 2], f64)>),
}

impl Normalisation<'_> {
    /// With the statistics in this tensor.
    fn sizes(&self, statistics: u64) -> Result<nn::Norm> {
        let Norm { channels, plane, eps, centred, relu } = *self.norm;
        let images = self.x.elem_count() / (channels * plane).max(1);
        let affine = self.weight.or(self.bias).map_or(Ok(0), |affine| code(affine.dtype()))?;
        Ok(nn::Norm {
            sizes: Channels { images, channels, plane, format: ImageLayout::of(self.x) },
            eps,
            centred,
            relu,
            dtype: code(self.x.dtype())?,
            affine_dtype: affine,
            weight: optional(self.weight)?,
            bias: optional(self.bias)?,
            statistics,
        })
    }
}

fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), |tensor| Ok(place(tensor)?.address))
}

fn running([mean, var]: [&Tensor; 2]) -> Result<Running> {
    let (mean, var) = (place(mean)?, place(var)?);
    Ok(Running { dtype: mean.dtype, mean: mean.address, var: var.address })
}

/// y, and the statistics that the way back needs.
pub(crate) fn batch_norm(this: Normalisation<'_>, from: BatchNormed<'_>) -> Result<(Output, Tensor)> {
    let device = device(this.x)?;
    let (y, statistics) = (Fresh::like(this.x)?, Fresh::new(device, DType::F64, nn::STATISTICS * this.norm.channels)?);
    let norm = this.sizes(statistics.address()?)?;
    let addresses = [place(this.x)?.address, optional(this.residual)?, y.address()?];
    with(device, |engine| {
        match from {
            BatchNormed::Fixed(statistics) => norm.take(engine, running(statistics)?)?,
            BatchNormed::Batch(None) => norm.measure(engine, addresses[0], None)?,
            BatchNormed::Batch(Some((statistics, momentum))) => {
                norm.measure(engine, addresses[0], Some((running(statistics)?, momentum)))?;
            }
        }
        norm.forward(engine, addresses)
    })?;
    Ok((y.output(), statistics.tensor()?))
}

/// The gradients of x, γ, β and the residual.
pub(crate) fn batch_norm_back(
    this: Normalisation<'_>,
    statistics: &Tensor,
    fixed: bool,
    y: &Tensor,
    dy: &Tensor,
) -> Result<[Option<Tensor>; 4]> {
    let device = device(this.x)?;
    let dx = Fresh::like(this.x)?;
    let masked = this.norm.relu && this.residual.is_some();
    let residual = masked.then(|| Fresh::like(this.x)).transpose()?;
    let [weight, bias] = [this.weight, this.bias].map(|affine| affine.map(Fresh::like).transpose());
    let (weight, bias) = (weight?, bias?);
    let lines = Fresh::new(device, DType::F64, 2 * this.norm.channels)?;
    let fresh = |fresh: &Option<Fresh>| fresh.as_ref().map_or(Ok(0), Fresh::address);
    // Without a residual the sign of y is that of what x comes to.
    let y = if masked { place(y)?.address } else { 0 };
    let values = [place(this.x)?.address, y, place(dy)?.address];
    let gradients = [dx.address()?, fresh(&residual)?, fresh(&weight)?, fresh(&bias)?];
    let norm = this.sizes(place(statistics)?.address)?;
    with(device, |engine| norm.backward(engine, values, fixed, lines.address()?, gradients))?;
    let [dx, weight, bias, residual] =
        [Some(dx), weight, bias, residual].map(|gradient| gradient.map(Fresh::tensor).transpose());
    // Without a ReLU the residual's gradient is that of the sum.
    let residual = residual?.or_else(|| this.residual.map(|_| dy.clone()));
    Ok([dx?, weight?, bias?, residual])
}

/// The largest or the mean of each window.
pub(crate) fn pool(sizes: &PoolShape, x: &Tensor) -> Result<Output> {
    let (n, channels, _, _) = x.dims4()?;
    let [rows, columns] = sizes.output;
    let (from, y) = (place(x)?, Fresh::beside(x, (n, channels, rows, columns))?);
    let addresses = [from.address, y.address()?];
    with(device(x)?, |engine| sizes.forward(engine, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn pool_back(sizes: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (place(x)?, place(dy)?, Fresh::like(x)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with(device(x)?, |engine| sizes.backward(engine, from.dtype, addresses))?;
    dx.tensor()
}

/// The mean of each plane of (n, channels, height, width).
pub(crate) fn mean(x: &Tensor) -> Result<Output> {
    let (n, channels, _, _) = x.dims4()?;
    let (from, y) = (place(x)?, Fresh::new(device(x)?, x.dtype(), (n, channels))?);
    let addresses = [from.address, y.address()?];
    let means = means(x)?;
    with(device(x)?, |engine| means.forward(engine, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn mean_back(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (gradient, dx) = (place(dy)?, Fresh::like(x)?);
    let addresses = [gradient.address, dx.address()?];
    let means = means(x)?;
    with(device(x)?, |engine| means.backward(engine, gradient.dtype, addresses))?;
    dx.tensor()
}

fn means(x: &Tensor) -> Result<Mean> {
    let (n, channels, height, width) = x.dims4()?;
    Ok(Mean { planes: n * channels, plane: height * width, step: step(x)? })
}

/// From one pixel to the next.
pub(crate) fn step(x: &Tensor) -> Result<usize> {
    Ok(match ImageLayout::of(x) {
        ImageLayout::Nchw => 1,
        ImageLayout::Nhwc => x.dim(1)?,
    })
}

/// The mean cross entropy of logits with labels in i64, of which a share is spread evenly, or with probabilities.
pub(crate) fn cross_entropy(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<Output> {
    let loss = Fresh::new(device(logits)?, logits.dtype(), ())?;
    let (costs, addresses) = (costs(logits, target, smoothing)?, [place(logits)?.address, loss.address()?]);
    with(device(logits)?, |engine| costs.forward(engine, addresses))?;
    Ok(loss.output())
}

/// The gradient of the logits.
pub(crate) fn cross_entropy_back(logits: &Tensor, target: &Tensor, smoothing: f64, dy: &Tensor) -> Result<Tensor> {
    let dx = Fresh::like(logits)?;
    let addresses = [place(logits)?.address, place(dy)?.address, dx.address()?];
    let costs = costs(logits, target, smoothing)?;
    with(device(logits)?, |engine| costs.backward(engine, addresses))?;
    dx.tensor()
}

fn costs(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<CrossEntropy> {
    let ((rows, classes), there) = (logits.dims2()?, address_of(target)?);
    let target = match target.dtype() {
        DType::I64 => Target::Labels { address: there, smoothing },
        _ => Target::Probabilities { address: there, dtype: code(target.dtype())? },
    };
    Ok(CrossEntropy { rows, classes, dtype: code(logits.dtype())?, target })
}
