//! The layers' arithmetic on tensors of a CUDA device. All tensors are contiguous; halves stay halves, and weights may be
//! of another type than what they are for.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};

use super::super::device::code;
use super::super::device::nn::{self, Channels, CrossEntropy, Pool, Running, Target};
#[cfg(feature = "cudnn")]
use super::cudnn;
use super::{Fresh, address, device, patches, place, with};
use crate::kernels::conv::Conv;
use crate::kernels::norm::Norm;

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
    Ok(dx.tensor())
}

/// a + b
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Output> {
    let (left, right, y) = (place(a)?, place(b)?, Fresh::like(a)?);
    let addresses = [left.address, right.address, y.address()?];
    with(device(a)?, |engine| nn::add(engine, left.dtype, addresses, left.elements))?;
    Ok(y.output())
}

/// The elements that the mask of this seed keeps, times the scale: `mask` is the probability of 0, and the scale.
pub(crate) fn dropout(x: &CudaStorage, layout: &Layout, seed: u64, mask: [f32; 2]) -> Result<Output> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, found {layout:?}")
    };
    let y = Fresh::new(x.device(), x.dtype(), layout.shape())?;
    let from = address(x)? + (start * x.dtype().size_in_bytes()) as u64;
    let (dtype, addresses, n) = (code(x.dtype())?, [from, y.address()?], layout.shape().elem_count());
    with(x.device(), |engine| nn::dropout(engine, dtype, addresses, n, seed, mask))?;
    Ok(y.output())
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
    let y = Fresh { storage: product, shape: (rows, outer).into() };
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
    Channels { images: rows, channels: columns, plane: 1 }
}

fn bias_back(bias: &Tensor, dy: &Tensor, sizes: Channels) -> Result<Tensor> {
    let (d_bias, dy_place) = (Fresh::like(bias)?, place(dy)?);
    let (dtypes, addresses) = ([dy_place.dtype, code(bias.dtype())?], [dy_place.address, d_bias.address()?]);
    with(device(dy)?, |engine| nn::bias_back(engine, sizes, dtypes, addresses))?;
    Ok(d_bias.tensor())
}

/// The convolution of x with w, plus a bias.
pub(crate) fn conv(conv: &Conv, args: &[Tensor]) -> Result<Output> {
    let (x, w) = (&args[0], &args[1].to_dtype(args[0].dtype())?);
    #[cfg(feature = "cudnn")]
    let y = cudnn::forward(conv, x, w)?.map_or_else(|| patches::forward(conv, x, w), Ok)?;
    #[cfg(not(feature = "cudnn"))]
    let y = patches::forward(conv, x, w)?;
    if let Some(bias) = args.get(2) {
        let (dtypes, addresses) = ([code(x.dtype())?, place(bias)?.dtype], [y.address()?, place(bias)?.address]);
        with(device(x)?, |engine| nn::bias(engine, outputs(conv), dtypes, addresses))?;
    }
    Ok(y.output())
}

/// The gradients of x, w and the bias that are wanted.
pub(crate) fn conv_back(conv: &Conv, args: &[Tensor], wanted: &[bool], dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let gradient = |(i, arg): (usize, &Tensor)| match i {
        _ if !wanted[i] => Ok(None),
        0 => conv_back_to_images(conv, &args[1].to_dtype(dy.dtype())?, dy).map(Some),
        1 => conv_back_to_weight(conv, &args[0], dy)?.to_dtype(arg.dtype()).map(Some),
        _ => bias_back(arg, dy, outputs(conv)).map(Some),
    };
    args.iter().enumerate().map(gradient).collect()
}

fn conv_back_to_images(conv: &Conv, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dx) = cudnn::backward_data(conv, w, dy)? {
        return Ok(dx);
    }
    patches::backward_data(conv, w, dy)
}

fn conv_back_to_weight(conv: &Conv, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(dw) = cudnn::backward_filter(conv, x, dy)? {
        return Ok(dw);
    }
    patches::backward_filter(conv, x, dy)
}

fn outputs(conv: &Conv) -> Channels {
    Channels { images: conv.images, channels: conv.filters, plane: conv.height.output * conv.width.output }
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
            sizes: Channels { images, channels, plane },
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
    let (y, statistics) = (Fresh::like(this.x)?, Fresh::new(device, DType::F64, 2 * this.norm.channels)?);
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
    Ok((y.output(), statistics.tensor()))
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
    // Without a ReLU the residual's gradient is that of the sum.
    let residual = match residual {
        Some(residual) => Some(residual.tensor()),
        None => this.residual.map(|_| dy.clone()),
    };
    Ok([Some(dx.tensor()), weight.map(Fresh::tensor), bias.map(Fresh::tensor), residual])
}

/// The largest or the mean of each window.
pub(crate) fn pool(sizes: &Pool, x: &Tensor) -> Result<Output> {
    let (n, channels, _, _) = x.dims4()?;
    let [rows, columns] = sizes.output;
    let (from, y) = (place(x)?, Fresh::new(device(x)?, x.dtype(), (n, channels, rows, columns))?);
    let addresses = [from.address, y.address()?];
    with(device(x)?, |engine| sizes.forward(engine, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn pool_back(sizes: &Pool, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (place(x)?, place(dy)?, Fresh::like(x)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with(device(x)?, |engine| sizes.backward(engine, from.dtype, addresses))?;
    Ok(dx.tensor())
}

/// The mean of each plane of (n, channels, height, width).
pub(crate) fn mean(x: &Tensor) -> Result<Output> {
    let (n, channels, height, width) = x.dims4()?;
    let (from, y) = (place(x)?, Fresh::new(device(x)?, x.dtype(), (n, channels))?);
    let (sizes, addresses) = ([n * channels, height * width], [from.address, y.address()?]);
    with(device(x)?, |engine| nn::mean(engine, from.dtype, sizes, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn mean_back(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (n, channels, height, width) = x.dims4()?;
    let (gradient, dx) = (place(dy)?, Fresh::like(x)?);
    let (sizes, addresses) = ([n * channels, height * width], [gradient.address, dx.address()?]);
    with(device(x)?, |engine| nn::mean_back(engine, gradient.dtype, sizes, addresses))?;
    Ok(dx.tensor())
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
    Ok(dx.tensor())
}

fn costs(logits: &Tensor, target: &Tensor, smoothing: f64) -> Result<CrossEntropy> {
    let ((rows, classes), there) = (logits.dims2()?, place(target)?);
    let target = match target.dtype() {
        DType::I64 => Target::Labels { address: there.address, smoothing },
        _ => Target::Probabilities { address: there.address, dtype: there.dtype },
    };
    Ok(CrossEntropy { rows, classes, dtype: code(logits.dtype())?, target })
}
