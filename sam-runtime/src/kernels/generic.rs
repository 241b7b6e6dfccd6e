//! Equation 2 in candle's own operations: for any device, without a word back to the host.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::{Scaling, Slope};
use crate::dual_norm::Power;
use crate::gradient::Gradient;
use crate::optim::ParamsSgd;
use crate::sam::Ball;
use crate::weights::exchange;

/// w + ε̂, in new buffers. Where the gradient is zero or not finite, w.
pub(super) fn perturbed(ball: Ball, slopes: Vec<Slope>) -> Result<Gradient> {
    let Some(first) = slopes.first() else { return Ok(Vec::new()) };
    let home = first.var.device().clone();
    let norm = ball.norm();

    let mut max = Tensor::zeros((), DType::F32, &home)?;
    let mut finite = Tensor::zeros((), DType::F32, &home)?;
    for slope in &slopes {
        let size = scaled(slope)?.abs()?.flatten_all()?;
        max = max.to_dtype(size.dtype())?.maximum(&size.max(0)?.to_device(&home)?)?;
        finite = (finite + (size * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_device(&home)?)?;
    }
    let some = max.gt(&max.zeros_like()?)?;
    let max = if ball.normalised { some.where_cond(&max, &max.ones_like()?)? } else { max.ones_like()? };

    // ρ / (Σ r^q)^(1/p), and 0 where there is no direction to go.
    let scale = if ball.normalised {
        let mut sum = max.zeros_like()?;
        for slope in &slopes {
            let ratio = scaled(slope)?.abs()?.broadcast_div(&on(&max, &slope.grad)?)?;
            sum = (sum + on(&power(norm.term(), &ratio)?.sum_all()?, &max)?)?;
        }
        let scale = (sum.powf(-norm.root())? * ball.rho)?;
        some.where_cond(&scale, &scale.zeros_like()?)?
    } else {
        (max.ones_like()? * ball.rho)?
    };
    let scale = finite.eq(&finite.zeros_like()?)?.where_cond(&scale, &scale.zeros_like()?)?;

    slopes
        .into_iter()
        .map(|slope| {
            let along = scaled(&slope)?;
            let ratio = along.abs()?.broadcast_div(&on(&max, &slope.grad)?)?;
            let size = (power(norm.size(), &ratio)? * along.sign()?)?.broadcast_mul(&on(&scale, &slope.grad)?)?;
            let mut step = match metric(&slope)? {
                Some(metric) => size.broadcast_mul(&metric)?,
                None => size,
            };
            if let Some(mask) = &slope.mask {
                step = (step * wide(mask)?)?;
            }
            // 0 times a gradient that is not finite is not 0.
            let step = step.ne(&step)?.where_cond(&step.zeros_like()?, &step)?;
            let there = (wide(&slope.var)? + step)?.to_dtype(slope.var.dtype())?;
            Ok((slope.var, there))
        })
        .collect()
}

/// Σ a b, on the device of the first.
pub(super) fn dot(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (a, b) in pairs {
        let part = (wide(a)? * wide(b)?)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (&sum + on(&part, &sum)?)?,
            None => part,
        });
    }
    sum.map_or_else(|| Tensor::new(0f32, &Device::Cpu), Ok)
}

/// a ← α a + β b.
pub(super) fn mix(a: &Tensor, alpha: &Tensor, b: &Tensor, beta: &Tensor) -> Result<()> {
    let mixed = (wide(a)?.broadcast_mul(&on(alpha, a)?)? + wide(b)?.broadcast_mul(&on(beta, a)?)?)?;
    exchange(a, &mixed.to_dtype(a.dtype())?)
}

/// One step of stochastic gradient descent.
pub(super) fn sgd(params: ParamsSgd, var: &Var, grad: &Tensor, velocity: Option<&Tensor>) -> Result<()> {
    let ParamsSgd { lr, momentum, nesterov, weight_decay } = params;
    let w = wide(var)?;
    let g = (wide(grad)? + (&w * weight_decay)?)?;
    let (step, velocity) = match velocity {
        None => (g, None),
        Some(old) => {
            let new = ((old * momentum)? + &g)?;
            (if nesterov { (g + (&new * momentum)?)? } else { new.clone() }, Some((old, new)))
        }
    };
    exchange(var, &(w - (step * lr)?)?.to_dtype(var.dtype())?)?;
    velocity.map_or(Ok(()), |(old, new)| exchange(old, &new))
}

/// T, where it is not 1.
fn metric(slope: &Slope) -> Result<Option<Tensor>> {
    Ok(match &slope.metric {
        Scaling::One => None,
        Scaling::Weights(eta) => Some((wide(&slope.var)?.abs()? + *eta)?),
        Scaling::Given(metric) => Some(wide(metric)?),
    })
}

/// T g.
fn scaled(slope: &Slope) -> Result<Tensor> {
    match metric(slope)? {
        Some(metric) => wide(&slope.grad)?.broadcast_mul(&metric),
        None => wide(&slope.grad),
    }
}

/// Halves are reckoned in f32.
fn wide(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    tensor.to_dtype(super::wide(tensor.dtype()))
}

/// A number, where and in the type in which it is used next.
fn on(number: &Tensor, like: &Tensor) -> Result<Tensor> {
    number.to_dtype(super::wide(like.dtype()))?.to_device(like.device())
}

fn power(power: Power, x: &Tensor) -> Result<Tensor> {
    match power {
        Power::One => x.ones_like(),
        Power::Same => Ok(x.clone()),
        Power::Square => x.sqr(),
        Power::Root => x.sqrt(),
        Power::Largest => x.ge(&x.ones_like()?)?.to_dtype(x.dtype()),
        Power::Whole(e) => x.powf(f64::from(e)),
        Power::Real(e) => x.powf(e),
    }
}
