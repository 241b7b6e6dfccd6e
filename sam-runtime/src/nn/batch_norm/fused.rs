//! Batch normalization as one operation.

use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::kernels::cpu::batch_norm::{self as norm, Statistics};
use crate::kernels::cpu::float::{Float, View, for_float, like, output, view};
#[cfg(feature = "cuda")]
use crate::kernels::cuda::{self, BatchNormInput, StatisticsSource};
use crate::kernels::shapes::BatchNormShape;

/// Of x, γ and β if there are any, and a shortcut if there is one.
pub(super) struct Normalize {
    pub(super) norm: BatchNormShape,
    /// Whether there are γ and β.
    pub(super) affine: bool,
    /// None: those of the batch.
    pub(super) fixed: Option<Statistics>,
    pub(super) statistics: Arc<OnceLock<Statistics>>,
    #[cfg(feature = "cuda")]
    pub(super) on_device: OnDevice,
}

/// The same for a CUDA device, where the statistics stay.
#[cfg(feature = "cuda")]
pub(super) struct OnDevice {
    /// Mean and variance.
    pub(super) running: [Tensor; 2],
    /// How far they move, if they do.
    pub(super) momentum: Option<f64>,
    pub(super) train: bool,
    /// Mean and 1/σ.
    pub(super) statistics: OnceLock<Tensor>,
}

impl Normalize {
    fn weight_and_bias<'a>(&self, args: &'a [Tensor]) -> Option<[&'a Tensor; 2]> {
        self.affine.then(|| [&args[1], &args[2]])
    }

    /// Where the shortcut is, if there is one.
    fn shortcut(&self) -> usize {
        if self.affine { 3 } else { 1 }
    }

    /// γ and then β.
    fn affine<T: Float>(&self, args: &[Tensor]) -> Result<Vec<T>> {
        if let Some(affine) = self.weight_and_bias(args) {
            let [weight, bias] = affine.map(view);
            return Ok([weight.elements::<T>()?, bias.elements()?].concat());
        }
        let ones = std::iter::repeat_n(T::narrow(1.0), self.norm.channels);
        Ok(ones.chain(std::iter::repeat_n(T::default(), self.norm.channels)).collect())
    }
}

impl FusedOp for Normalize {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn saved(&self) -> Saved {
        if self.norm.relu { Saved::ALL } else { Saved::ARGS }
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, shortcut) = (view(&args[0]), args.get(self.shortcut()).map(view));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (shortcut, affine) = (shortcut.as_ref().map(View::elements::<T>).transpose()?, self.affine::<T>(args)?);
            let (y, statistics) = norm::forward(&self.norm, x.elements()?, shortcut, &affine, self.fixed.as_ref());
            self.statistics.get_or_init(|| statistics);
            Ok(output(y, args[0].shape()))
        })
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(statistics) = self.statistics.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of a batch normalization")
        };
        let (x, y, dy_view) = (view(&args[0]), view(y), view(dy));
        // Without a ReLU the shortcut's gradient is that of the sum.
        let (fixed, shortcut) = (self.fixed.is_some(), wanted.get(self.shortcut()) == Some(&true));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (images, affine) = ([x.elements::<T>()?, y.elements()?, dy_view.elements()?], self.affine::<T>(args)?);
            let mut found = norm::backward(&self.norm, images, &affine, statistics, fixed, shortcut && self.norm.relu);
            let mut gradients = vec![Some(like(found.x, &args[0])?)];
            if let Some([weight, bias]) = self.weight_and_bias(args) {
                let of_bias = found.affine.split_off(self.norm.channels);
                gradients.extend([Some(like(found.affine, weight)?), Some(like(of_bias, bias)?)]);
            }
            if shortcut {
                let residual = found.residual.map(|residual| like(residual, &args[self.shortcut()])).transpose()?;
                gradients.push(Some(residual.unwrap_or_else(|| dy.clone())));
            }
            gradients.resize(args.len(), None);
            Ok(gradients)
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let OnDevice { running: [mean, var], momentum, train, statistics } = &self.on_device;
        let running = [mean, var];
        let from = match train {
            true => StatisticsSource::Batch(momentum.map(|momentum| (running, momentum))),
            false => StatisticsSource::Fixed(running),
        };
        let (y, found) = cuda::batch_norm(self.on(args), from)?;
        statistics.get_or_init(|| found);
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(statistics) = self.on_device.statistics.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of a batch normalization")
        };
        let gradients = cuda::batch_norm_back(self.on(args), statistics, !self.on_device.train, y, dy)?;
        let [x, weight, bias, residual] = gradients;
        let affine = if self.affine { vec![weight, bias] } else { Vec::new() };
        let residual = (args.len() > self.shortcut()).then_some(residual);
        Ok([x].into_iter().chain(affine).chain(residual).collect())
    }
}

#[cfg(feature = "cuda")]
impl Normalize {
    fn on<'a>(&'a self, args: &'a [Tensor]) -> BatchNormInput<'a> {
        let [weight, bias] = self.weight_and_bias(args).map_or([None; 2], |affine| affine.map(Some));
        BatchNormInput { norm: &self.norm, x: &args[0], weight, bias, residual: args.get(self.shortcut()) }
    }
}
