#![allow(clippy::needless_pass_by_value, clippy::toplevel_ref_arg, reason = "one can write it")]

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[derive(Clone)]
struct Batch {
    w: Var,
    scales: Scales,
}

#[derive(Clone)]
struct Scales(f64, f64);

#[sam(rho = 0.5)]
fn loss(
    Batch { w, scales: ref whole @ Scales(ref a, _) }: Batch,
    (b, [mut c, .., _]): (f64, [f64; 3]),
    &(d, _): &(f64, String),
    (Ok(e) | Err(e)): std::result::Result<f64, f64>,
    _: Tensor,
    ref f: Vec<f64>,
) -> Result<Tensor> {
    c += *a + whole.1;
    w.sqr()?.sum_all()? * (b + c + d + e + f[0])
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let batch = Batch { w: w.clone(), scales: Scales(1., 2.) };
    let sharp = loss(batch, (4., [8., 0., 0.]), &(16., String::new()), Err(32.), w.detach(), vec![64.])?;
    assert_sharp(&sharp, &w, 127.);
    Ok(())
}
