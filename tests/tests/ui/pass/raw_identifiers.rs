use candle_core::{Result, Tensor, Var};
use sam_runtime::{Sam, sam};
use sam_tests::{assert_flat, assert_sharp, three_four};

#[sam(rho = r#in, replay(r#mut), shards(r#type, r#x; m = 1), plain = r#try)]
fn r#match(r#ref: &Var, r#type: Tensor, x: &Tensor, r#in: f64, mut r#fn: f64, r#mut: &mut usize) -> Result<Tensor> {
    *r#mut += 1;
    r#fn += 1.;
    r#ref.sqr()?.sum_all()?.mul(&(r#type * r#x)?.mean_all()?)? * r#fn
}

#[sam(with = r#use)]
fn r#loop(r#use: &Sam, w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut n) = (three_four(), 0);
    let x = Tensor::ones((2, 3), w.dtype(), w.device())?;
    assert_sharp(&r#match(&w, x.clone(), &x, 0.5, 1., &mut n)?, &w, 2.);
    assert_eq!(n, 2);
    assert_flat(&r#try(&w, x.clone(), &x, 0.5, 1., &mut n)?, &w, 2.);
    assert_sharp(&r#loop(&Sam::new(0.5), &w)?, &w, 1.);
    Ok(())
}
