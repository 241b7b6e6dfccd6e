//! Step statistics.

use candle_core::{Result, Tensor};

use crate::core::storage::SwapGuard;
use crate::core::var_list::Gradient;
use crate::core::var_list::VarTensors;
use crate::kernels::vars::paired;
use crate::kernels::{dot, read, square};

/// Statistics of the last step of a [`Sam`](crate::Sam). The numbers stay on the device until a method returns one, which
/// synchronizes with the device.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, 4.], &Device::Cpu)?;
/// let sam = Sam::new(0.5).with_diagnostics();
/// sam.loss(|| -> Result<Tensor> { w.sqr()?.sum_all() })?;
/// let last = sam.last_stats().unwrap();
/// assert_eq!((last.passes(), last.loss()?, last.perturbed_loss()?), (2., Some(25.), Some(30.25)));
/// assert_eq!(last.gradient_norm()?, Some(10.));
/// assert!((last.perturbation_norm()?.unwrap() - 0.5).abs() < 1e-12);
/// assert!((last.curvature()?.unwrap() - 2.).abs() < 1e-12);     // of w² it is 2 everywhere
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct StepStats {
    pub(crate) passes: f64,
    pub(crate) loss: Option<Tensor>,
    pub(crate) perturbed_loss: Option<Tensor>,
    pub(crate) ascent: Option<AscentStats>,
    pub(crate) alignment: Option<GradientAlignment>,
}

/// Of g and ε̂.
#[derive(Clone, Debug)]
pub(crate) struct AscentStats {
    gradient_square: Option<Tensor>,
    step_square: Tensor,
    /// <g, ε̂>
    gain: Option<Tensor>,
}

/// Of g and g₂.
#[derive(Clone, Debug)]
pub(crate) struct GradientAlignment {
    product: Tensor,
    first_square: Tensor,
    second_square: Tensor,
}

impl AscentStats {
    /// With the variables at w + ε̂.
    pub(crate) fn look(gradient: Option<&Gradient>, weights: &SwapGuard) -> Result<Self> {
        let step = weights
            .iter()
            .filter(|(var, _)| var.dtype().is_float())
            .map(|(var, old)| Ok((var.clone(), (var.as_detached_tensor() - old)?)))
            .collect::<Result<Gradient>>()?;
        let step_square = square(step.iter().map(|(_, step)| step))?;
        let kept = VarTensors::new(step);
        let pairs = gradient.map(|gradient| paired(gradient, &kept));
        let gradient_square = pairs.as_ref().map(|pairs| square(pairs.iter().map(|(g, _)| *g))).transpose()?;
        let gain = pairs.as_ref().map(|pairs| dot(pairs)).transpose()?;
        Ok(Self { gradient_square, step_square, gain })
    }
}

impl GradientAlignment {
    pub(crate) fn look(first: &Gradient, second: &Gradient) -> Result<Self> {
        let kept = VarTensors::new(first.clone());
        let pairs = paired(second, &kept);
        let first_square = square(pairs.iter().map(|(_, first)| *first))?;
        let second_square = square(pairs.iter().map(|(second, _)| *second))?;
        Ok(Self { product: dot(&pairs)?, first_square, second_square })
    }
}

impl StepStats {
    /// Forward and backward passes over the batch that the step cost, a forward pass alone counting a third: 2 for SAM.
    #[must_use]
    pub fn passes(&self) -> f64 {
        self.passes
    }

    /// L(w), over the samples that the step takes its gradient on. None where no pass was run at w.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn loss(&self) -> Result<Option<f64>> {
        self.loss.as_ref().map(read).transpose()
    }

    /// L(w + ε̂). None where no pass was run there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn perturbed_loss(&self) -> Result<Option<f64>> {
        self.perturbed_loss.as_ref().map(read).transpose()
    }

    /// L(w + ε̂) - L(w), the sharpness that SAM sees.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn sharpness(&self) -> Result<Option<f64>> {
        Ok(self.perturbed_loss()?.zip(self.loss()?).map(|(there, here)| there - here))
    }

    /// ‖g‖₂ over the perturbed variables. None, as the following, unless [diagnostics are on](crate::Sam::with_diagnostics).
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn gradient_norm(&self) -> Result<Option<f64>> {
        let square = self.ascent.as_ref().and_then(|seen| seen.gradient_square.as_ref());
        Ok(square.map(read).transpose()?.map(f64::sqrt))
    }

    /// ‖ε̂‖₂, of the weights as they really moved.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn perturbation_norm(&self) -> Result<Option<f64>> {
        let square = self.ascent.as_ref().map(|seen| &seen.step_square);
        Ok(square.map(read).transpose()?.map(f64::sqrt))
    }

    /// cos(g, g₂), over the perturbed variables.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn cosine(&self) -> Result<Option<f64>> {
        let Some(GradientAlignment { product, first_square, second_square }) = &self.alignment else { return Ok(None) };
        let norms = (read(first_square)? * read(second_square)?).sqrt();
        Ok(if norms > 0.0 { Some(read(product)? / norms) } else { None })
    }

    /// 2 (L(w + ε̂) - L(w) - <g, ε̂>) / ‖ε̂‖²: the curvature of the loss along the ascent. Where it is large for
    /// <g, ε̂> / ‖ε̂‖², ρ is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn curvature(&self) -> Result<Option<f64>> {
        let (Some(rise), Some(seen)) = (self.sharpness()?, &self.ascent) else { return Ok(None) };
        let (Some(gain), square) = (&seen.gain, read(&seen.step_square)?) else { return Ok(None) };
        Ok(if square > 0.0 { Some(2.0 * (rise - read(gain)?) / square) } else { None })
    }

    /// As an event, where somebody listens.
    pub(crate) fn trace(&self) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let number = |value: Result<Option<f64>>| value.ok().flatten();
            tracing::debug!(
                passes = self.passes,
                loss = number(self.loss()),
                perturbed_loss = number(self.perturbed_loss()),
                gradient_norm = number(self.gradient_norm()),
                perturbation_norm = number(self.perturbation_norm()),
                cosine = number(self.cosine()),
                curvature = number(self.curvature()),
                "sharpness-aware step"
            );
        }
    }
}
