//! Equation 2 in candle's own operations: for any device, without a word back to the host.

use candle_core::{DType, Result, Tensor, Var};

use crate::dual_norm::Power;
use crate::gradient::Gradient;
use crate::optim::ParamsSgd;
use crate::sam::Ball;
use crate::weights::exchange;

/// w + ε̂, in new buffers. Where the gradient is zero or not finite, w.
pub(super) fn perturbed(ball: Ball, gradient: Gradient) -> Result<Vec<(Var, Tensor)>> {
    let Some((first, _)) = gradient.first() else { return Ok(gradient) };
    let home = first.device().clone();
    let norm = ball.norm();

    let mut max = Tensor::zeros((), DType::F32, &home)?;
    let mut finite = Tensor::zeros((), DType::F32, &home)?;
    for (var, grad) in &gradient {
        let size = scaled(ball, var, grad)?.abs()?.flatten_all()?;
        max = max.to_dtype(size.dtype())?.maximum(&size.max(0)?.to_device(&home)?)?;
        finite = (finite + (size * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_device(&home)?)?;
    }
    let some = max.gt(&max.zeros_like()?)?;
    let max = some.where_cond(&max, &max.ones_like()?)?;

    let mut sum = max.zeros_like()?;
    for (var, grad) in &gradient {
        let ratio = scaled(ball, var, grad)?.abs()?.broadcast_div(&on(&max, grad)?)?;
        sum = (sum + on(&power(norm.term(), &ratio)?.sum_all()?, &max)?)?;
    }
    // ρ / (Σ r^q)^(1/p), and 0 where there is no direction to go.
    let scale = (sum.powf(-norm.root())? * ball.rho)?;
    let scale = some.where_cond(&scale, &scale.zeros_like()?)?;
    let scale = finite.eq(&finite.zeros_like()?)?.where_cond(&scale, &scale.zeros_like()?)?;

    gradient
        .into_iter()
        .map(|(var, grad)| {
            let slope = scaled(ball, &var, &grad)?;
            let ratio = slope.abs()?.broadcast_div(&on(&max, &grad)?)?;
            let size = (power(norm.size(), &ratio)? * slope.sign()?)?.broadcast_mul(&on(&scale, &grad)?)?;
            let step = match metric(ball, &var)? {
                Some(metric) => (size * metric)?,
                None => size,
            };
            // 0 times a gradient that is not finite is not 0.
            let step = step.ne(&step)?.where_cond(&step.zeros_like()?, &step)?;
            let there = (wide(&var)? + step)?.to_dtype(var.dtype())?;
            Ok((var, there))
        })
        .collect()
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

/// T, where the ball is adaptive.
fn metric(ball: Ball, var: &Var) -> Result<Option<Tensor>> {
    ball.eta.map(|eta| wide(var)?.abs()? + eta).transpose()
}

/// T g.
fn scaled(ball: Ball, var: &Var, grad: &Tensor) -> Result<Tensor> {
    match metric(ball, var)? {
        Some(metric) => wide(grad)? * metric,
        None => wide(grad),
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
