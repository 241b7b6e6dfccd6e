use candle_core::{Result, Tensor, Var};
use sam_runtime::{Aux, LossOutput, Plain, sam};
use sam_tests::{assert_sharp, three_four};

#[derive(Aux)]
struct Metrics<'a> {
    name: &'a str,
    logits: Tensor,
}

/// By hand.
struct Sign(Tensor, f64);

impl Aux for Sign {
    fn detached(self) -> Result<Self> {
        Ok(Self(self.0.detached()?, self.1))
    }
}

#[derive(Aux, Clone)]
struct Generic<A, const N: usize>(A, [f32; N]);

#[derive(Aux, Clone, Copy, Debug, PartialEq)]
enum Phase {
    Warm,
    Hot { degrees: f64 },
}

#[derive(Aux, Clone, Copy)]
struct Unit;

#[derive(LossOutput)]
struct Step<A> {
    hits: usize,
    loss: Tensor,
    more: Option<A>,
}

#[derive(LossOutput)]
struct Pair(Tensor, Plain<std::ops::Range<usize>>);

#[sam(rho = 0.5)]
fn own<'a>(w: &Var, name: &'a str, _: &str) -> Result<(Tensor, Metrics<'a>)> {
    Ok((w.sqr()?.sum_all()?, Metrics { name, logits: (w.as_tensor() * 1.)? }))
}

#[sam(rho = 0.5)]
fn elided(w: Tensor, name: &str) -> Result<(Tensor, Metrics<'_>)> {
    Ok((w.sqr()?.sum_all()?, Metrics { name, logits: w }))
}

#[sam(rho = 0.5)]
fn opaque(w: &Var) -> Result<(Tensor, impl Aux + PartialEq<i32> + use<>)> {
    Ok((w.sqr()?.sum_all()?, 7))
}

type Several<A> = (Tensor, A, Option<A>, (), (u8, Vec<A>), f32);

#[sam(rho = 0.5)]
fn generic<A: Aux + Clone>(w: &Var, aux: &A, n: u8) -> Result<Several<A>> {
    Ok((w.sqr()?.sum_all()?, aux.clone(), None, (), (n, vec![aux.clone()]), 0.5))
}

#[sam(rho = 0.5)]
fn text<'a>(w: &Var, name: &'a str) -> Result<(Tensor, &'a str, String, (bool, char))> {
    Ok((w.sqr()?.sum_all()?, name, name.to_owned(), (true, 'c')))
}

#[sam(rho = 0.5, shards(x; m = 1))]
fn derived<A: Aux + Clone>(w: &Var, x: &Tensor, aux: &A) -> Result<Step<Generic<A, 2>>> {
    let loss = w.sqr()?.sum_all()?.mul(&x.mean_all()?)?;
    Ok(Step { hits: x.dim(0)?, loss, more: Some(Generic(aux.clone(), [1., 2.])) })
}

#[sam(rho = 0.5)]
fn pair(w: &Var, phase: Phase) -> Result<Pair> {
    let _ = (phase.detached()?, Unit.detached()?, Sign(w.as_tensor().clone(), 1.).detached()?.1);
    Ok(Pair(w.sqr()?.sum_all()?, Plain(0..2)))
}

/// Candle's own methods are what a name means, with everything in scope.
fn everything_in_scope(w: &Var) -> Result<usize> {
    #[allow(unused_imports)]
    use sam_runtime::*;

    let tensor = (w.as_tensor() * 1.)?;
    let detached = tensor.detach();
    Ok(tensor.dims().len() + detached.dims().len() + tensor.narrow(0, 0, 1)?.elem_count())
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let (sharp, metrics) = own(&w, "norm", "")?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!((metrics.name, metrics.logits.to_vec1::<f64>()?), ("norm", vec![3., 4.]));
    assert!(!metrics.logits.track_op());
    let (sharp, metrics) = elided(w.as_tensor().clone(), "norm")?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!((metrics.name, metrics.logits.dims()), ("norm", &[2][..]));
    let (sharp, seven) = opaque(&w)?;
    assert_sharp(&sharp, &w, 1.);
    assert!(seven == 7);
    let (sharp, a, none, (), (n, all), half) = generic(&w, &3usize, 8)?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!((a, none, n, all, half), (3, None, 8, vec![3], 0.5));
    let (sharp, a, b, (c, d)) = text(&w, "norm")?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!((a, &*b, c, d), ("norm", "norm", true, 'c'));
    let x = Tensor::ones((3, 1), w.dtype(), w.device())?;
    let step = derived(&w, &x, &2u8)?;
    assert_sharp(&step.loss, &w, 1.);
    let Some(Generic(sum, mean)) = step.more else { panic!("every shard has one") };
    assert_eq!((step.hits, sum, mean), (3, 6, [1., 2.]));
    let Pair(sharp, Plain(range)) = pair(&w, Phase::Hot { degrees: 1. })?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!(range, 0..2);
    assert_eq!(Phase::Warm.detached()?, Phase::Warm);
    assert!(Phase::join_shards(vec![(1., Phase::Warm)]).unwrap_err().to_string().contains("Phase"));
    assert_eq!(everything_in_scope(&w)?, 3);
    Ok(())
}
