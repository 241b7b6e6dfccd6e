use std::{fmt::Display, ops::Deref};

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5)]
fn loss<'a, 'b: 'a, W, N, const K: usize>(w: &'a W, name: &'b N, factors: [f64; K]) -> Result<(Tensor, usize)>
where
    W: Deref<Target = Tensor> + ?Sized,
    N: Display + ?Sized + 'a,
    [f64; K]: Copy,
{
    let name: &'a N = name;
    let loss = w.sqr()?.sum_all()?;
    Ok(((loss * factors.iter().product::<f64>())?, name.to_string().len() + K))
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let (sharp, n) = loss::<Var, str, 2>(&w, "w", [2., 3.])?;
    assert_sharp(&sharp, &w, 6.);
    assert_eq!(n, 3);
    Ok(())
}
