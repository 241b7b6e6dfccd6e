use candle_core::{Result, Tensor, Var};
use sam_runtime::{Aux, sam};
use sam_tests::{assert_sharp, three_four};

struct Metrics<'a> {
    name: &'a str,
    logits: Tensor,
}

impl Aux for Metrics<'_> {
    fn detached(self) -> candle_core::Result<Self> {
        Ok(Self { logits: self.logits.detached()?, ..self })
    }
}

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

#[test]
fn main() -> Result<()> {
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
    Ok(())
}
