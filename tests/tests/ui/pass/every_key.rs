use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_flat, assert_sharp, gradient, three_four, values};

#[sam(
    rho = schedule(step, draws)?,
    p = inf,
    adaptive = eta,
    vars = state.0.iter().cloned(),
    buffers = [state.1.clone()],
    replay(draws),
    shards(x, y; m = x.dim(0)? / 2),
    plain = plain_loss,
    crate = ::sam_runtime,
)]
fn loss(
    w: &Var,
    state: (&[Var], &Var),
    x: &Tensor,
    y: Tensor,
    draws: &mut usize,
    step: usize,
    eta: f32,
) -> Result<(Tensor, usize)> {
    *draws += 1;
    state.1.set(&(state.1.detach() + 1.)?)?;
    Ok((w.sqr()?.sum_all()?.mul(&(x * y)?.mean_all()?)?, x.dim(0)?))
}

/// Each expression is evaluated once a call.
fn schedule(step: usize, calls: &mut usize) -> Result<f64> {
    *calls += 100;
    if step > 8 {
        candle_core::bail!("step {step} of 8")
    }
    Ok(step as f64 / 8.)
}

#[sam]
fn defaults(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam()]
fn defaults_too(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(adaptive, p = 1 + 1, rho = 1)]
fn integers(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[sam(with = config, plain = plain_with)]
fn with(w: &Var, config: &Sam) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

/// The body sees what holds everything, too.
#[sam(with = config, shards(x; m = 1))]
fn with_mut(w: &Var, config: &mut Sam, x: Tensor) -> Result<Tensor> {
    let _: &Sam = config;
    w.sqr()?.sum_all()?.mul(&x.mean_all()?)
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut draws) = (three_four(), 0);
    let x = Tensor::ones((4, 3), w.dtype(), w.device())?;
    let (vars, steps) = ([w.clone()], Var::zeros((), w.dtype(), w.device())?);
    let (sharp, rows) = loss(&w, (&vars, &steps), &x, x.clone(), &mut draws, 4, 0.25)?;
    assert_eq!((rows, draws), (4, 102));
    // Once for each shard.
    assert_eq!(steps.to_scalar::<f64>()?, 2.);
    assert_eq!(values(&sharp), [25.]);
    let g = gradient(&sharp, &vars);
    // ASAM, p = ∞: ε = ρ (|w| + η) sign g.
    assert!((g[0][0] - 2. * (3. + 0.5 * 3.25)).abs() < 1e-12 && (g[0][1] - 2. * (4. + 0.5 * 4.25)).abs() < 1e-12);
    assert_flat(&plain_loss(&w, (&vars, &steps), &x, x.clone(), &mut draws, 4, 0.25)?.0, &w, 1.);

    let scale = |loss: &Tensor| gradient(loss, &vars)[0][0] / 6.;
    assert!((scale(&defaults(&w)?) - 1.01).abs() < 1e-12);
    assert!((scale(&defaults_too(&w)?) - 1.01).abs() < 1e-12);
    assert!(scale(&integers(&w)?) > 1.);
    assert_sharp(&with(&w, &Sam::new(0.5))?, &w, 1.);
    assert_flat(&plain_with(&w, &Sam::new(0.5))?, &w, 1.);
    assert_sharp(&with_mut(&w, &mut Sam::new(0.5), x)?, &w, 1.);
    Ok(())
}
