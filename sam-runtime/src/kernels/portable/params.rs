//! Equation 2 in candle's own operations, for any device and without a device-to-host copy.
//!
//! On the CPU they compute in f64 whatever the variables hold. On other devices they compute in f32, and for f64 variables
//! in f64: not every device has it.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::core::dtype::{exact, exact_dtype};
use crate::core::norm_ball::Ball;
use crate::core::norm_ball::Power;
use crate::core::storage::swap_storage;
use crate::core::var_list::Gradient;
use crate::kernels::operands::{AdamWStep, PerturbTarget, Scale, SgdStep};
use crate::kernels::rounding::Rounding;

/// w + ε̂, in new buffers. Where the gradient is zero or not finite, w.
pub(crate) fn perturbed(ball: Ball, targets: Vec<PerturbTarget>) -> Result<Gradient> {
    let scale = BallScale::of(ball, &targets)?;
    let mut rounding = Rounding::of(&targets);
    let values = targets.into_iter().map(|target| {
        if target.var.elem_count() == 0 {
            return Ok((target.var, target.grad));
        }
        let step = scale.step(ball, &target)?;
        let w = exact(&target.var)?;
        let moved = (&w + &step)?;
        let there = moved.to_dtype(target.var.dtype())?;
        if let Some(rounding) = &mut rounding {
            let lost = (exact(&there)? - moved)?;
            rounding.add(&target.var, number(&step.sqr()?.sum_all()?)?, number(&lost.sqr()?.sum_all()?)?);
        }
        Ok((target.var, there))
    });
    let values = values.collect::<Result<_>>()?;
    rounding.map_or(Ok(()), Rounding::check)?;
    Ok(values)
}

/// What is known of all variables together, as numbers on one device.
struct BallScale {
    /// M = max|Tg|, and 1 for a zero gradient.
    max: Tensor,
    /// ρ / (Σ (|Tg|/M)^q)^(1/p), and 0 where there is no direction to go.
    factor: Tensor,
}

impl BallScale {
    fn of(ball: Ball, targets: &[PerturbTarget]) -> Result<Self> {
        let targets: Vec<_> = targets.iter().filter(|target| target.var.elem_count() > 0).collect();
        // The numbers are f64 where one of the variables is: the largest of its gradient may be below what f32 can hold.
        let widest = |target: &&&PerturbTarget| exact_dtype(&target.grad) == DType::F64;
        let Some(home) = targets.iter().find(widest).or(targets.first()) else {
            let zero = Tensor::new(0f64, &Device::Cpu)?;
            return Ok(Self { max: zero.ones_like()?, factor: zero });
        };
        let zero = Tensor::zeros((), exact_dtype(&home.grad), home.var.device())?;
        let at_home = |number: &Tensor| number.to_device(zero.device())?.to_dtype(zero.dtype());

        let (mut max, mut finite) = (zero.clone(), zero.clone());
        for target in &targets {
            let size = scaled(target)?.abs()?.flatten_all()?;
            max = max.maximum(&at_home(&size.max(0)?)?)?;
            finite = (finite + at_home(&(size * 0.0)?.sum_all()?)?)?;
        }
        let some = max.gt(&zero)?;
        let one = zero.ones_like()?;
        let factor = if ball.normalized {
            max = some.where_cond(&max, &one)?;
            let mut sum = zero.clone();
            for target in &targets {
                let ratio = ratio(&scaled(target)?, &max)?;
                sum = (sum + at_home(&power(ball.norm().term(), &ratio)?.sum_all()?)?)?;
            }
            let factor = (sum.powf(-ball.norm().root())? * ball.rho)?;
            some.where_cond(&factor, &zero)?
        } else {
            max = one.clone();
            (one * ball.rho)?
        };
        let factor = finite.eq(&zero)?.where_cond(&factor, &zero)?;
        Ok(Self { max, factor })
    }

    /// ε̂ of one variable.
    fn step(&self, ball: Ball, target: &PerturbTarget) -> Result<Tensor> {
        let along = scaled(target)?;
        let size = power(ball.norm().size(), &ratio(&along, &self.max)?)?;
        let mut step = (size * along.sign()?)?.broadcast_mul(&on(&self.factor, &along)?)?;
        if let Some(metric) = metric(target)? {
            step = step.broadcast_mul(&metric)?;
        }
        if let Some(mask) = &target.mask {
            step = (step * exact(mask)?)?;
        }
        // 0 times a gradient that is not finite is not 0.
        step.ne(&step)?.where_cond(&step.zeros_like()?, &step)
    }
}

/// |Tg| / M
fn ratio(along: &Tensor, max: &Tensor) -> Result<Tensor> {
    let max = on(max, along)?;
    // Too small for this variable's numbers, which are then all 0.
    let max = max.eq(&max.zeros_like()?)?.where_cond(&max.ones_like()?, &max)?;
    along.abs()?.broadcast_div(&max)
}

/// Σ a b, on the device of the first.
pub(crate) fn dot(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (a, b) in pairs {
        let part = (exact(a)? * exact(b)?)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (&sum + on(&part, &sum)?)?,
            None => part,
        });
    }
    sum.map_or_else(|| Tensor::new(0f64, &Device::Cpu), Ok)
}

/// ‖a‖₂, which overflows or vanishes only if the norm itself does.
pub(crate) fn norm(a: &Tensor) -> Result<Tensor> {
    let size = exact(a)?.abs()?.flatten_all()?;
    let max = size.max(0)?;
    let divisor = max.eq(&max.zeros_like()?)?.where_cond(&max.ones_like()?, &max)?;
    size.broadcast_div(&divisor)?.sqr()?.sum_all()?.sqrt()? * max
}

/// a ← α a + β b.
pub(crate) fn mix(a: &Tensor, alpha: &Tensor, b: &Tensor, beta: &Tensor) -> Result<()> {
    let (wide_a, wide_b) = (exact(a)?, exact(b)?);
    let mixed = (wide_a.broadcast_mul(&on(alpha, &wide_a)?)? + wide_b.broadcast_mul(&on(beta, &wide_a)?)?)?;
    swap_storage(a, &mixed.to_dtype(a.dtype())?)
}

/// a - β b, and 0 where that is less than `tolerance` times a.
pub(crate) fn residual(a: &Tensor, beta: f64, b: &Tensor, tolerance: f64) -> Result<Tensor> {
    let rest = (a - (b * beta)?)?;
    rest.abs()?.lt(&(a.abs()? * tolerance)?)?.where_cond(&rest.zeros_like()?, &rest)
}

/// One step of stochastic gradient descent.
pub(crate) fn sgd(params: SgdStep, var: &Var, grad: &Tensor, velocity: Option<&Tensor>) -> Result<()> {
    let SgdStep { lr, momentum, nesterov, weight_decay } = params;
    let w = wide(var)?;
    let g = (wide(grad)? + (&w * weight_decay)?)?;
    let (step, velocity) = match velocity {
        None => (g, None),
        Some(old) => {
            let new = ((old * momentum)? + &g)?;
            (if nesterov { (g + (&new * momentum)?)? } else { new.clone() }, Some((old, new)))
        }
    };
    swap_storage(var, &(w - (step * lr)?)?.to_dtype(var.dtype())?)?;
    velocity.map_or(Ok(()), |(old, new)| swap_storage(old, &new))
}

/// One step of AdamW.
pub(crate) fn adamw(step: AdamWStep, var: &Var, grad: &Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
    let AdamWStep { keep, lerp, from_gradient, beta2, rate2, bias2_root, eps, minus_rate } = step;
    let (w, g) = (wide(var)?, wide(grad)?);
    let m = (((&g - first)? * lerp)? + if from_gradient { &g } else { first })?;
    let v = ((second * beta2)? + (g.sqr()? * rate2)?)?;
    let divisor = ((v.sqrt()? / bias2_root)? + eps)?;
    let moved = ((w * keep)? + ((&m * minus_rate)? / divisor)?)?;
    swap_storage(var, &moved.to_dtype(var.dtype())?)?;
    swap_storage(first, &m)?;
    swap_storage(second, &v)
}

/// a ← d a + (1 - d) w.
pub(crate) fn ema(average: &Tensor, var: &Var, decay: f64) -> Result<()> {
    swap_storage(average, &((average * decay)? + (wide(var)? * (1.0 - decay))?)?)
}

/// factor · a
pub(crate) fn times(a: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let wide = wide(a)?;
    wide.broadcast_mul(&on(factor, &wide)?)?.to_dtype(a.dtype())
}

/// Each number to the nearest one within ±limit.
pub(crate) fn clamped(a: &Tensor, limit: f64) -> Result<Tensor> {
    let a = a.detach();
    a.ne(&a)?.where_cond(&a, &a.clamp(-limit, limit)?)
}

/// T, where it is not 1.
fn metric(target: &PerturbTarget) -> Result<Option<Tensor>> {
    Ok(match &target.metric {
        Scale::One => None,
        Scale::Weights(eta) => Some((exact(&target.var)?.abs()? + *eta)?),
        Scale::Given(metric) => Some(metric.to_dtype(exact_dtype(&target.grad))?),
    })
}

/// T g.
fn scaled(target: &PerturbTarget) -> Result<Tensor> {
    let grad = exact(&target.grad)?;
    match metric(target)? {
        Some(metric) => grad.broadcast_mul(&metric),
        None => Ok(grad),
    }
}

/// f16 and bf16 in f32.
fn wide(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.detach();
    tensor.to_dtype(crate::core::dtype::wide(tensor.dtype()))
}

/// A number, on the device and in the dtype of the tensor that it is used with.
fn on(number: &Tensor, like: &Tensor) -> Result<Tensor> {
    // f64 stays where it is known.
    if like.dtype() == DType::F64 {
        number.to_device(like.device())?.to_dtype(DType::F64)
    } else {
        number.to_dtype(like.dtype())?.to_device(like.device())
    }
}

/// A number on the CPU.
fn number(number: &Tensor) -> Result<f64> {
    number.to_dtype(DType::F64)?.to_scalar()
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
