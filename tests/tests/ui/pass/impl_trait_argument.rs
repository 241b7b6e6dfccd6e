use std::rc::Rc;

use candle_core::{Module, Result, Tensor};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5)]
fn loss(
    model: &impl Module,
    x: &Tensor,
    criterion: impl Fn(&Tensor) -> Result<Tensor> + Clone,
    mut scale: impl FnMut() -> f64 + Clone,
    log: &mut impl FnMut(&Tensor),
    shared: Rc<dyn Fn(Tensor) -> Tensor>,
) -> Result<Tensor> {
    let loss = (criterion(&model.forward(x)?)? * scale())?;
    log(&loss);
    Ok(shared(loss))
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut seen) = (three_four(), 0);
    let model = |x: &Tensor| x.broadcast_mul(&w);
    let x = Tensor::ones(2, w.dtype(), w.device())?;
    let mut first = true;
    // Each pass has a clone of it, which counts from the start.
    let scale = move || if std::mem::take(&mut first) { 2. } else { 0. };
    let sharp = loss(&model, &x, |y| y.sqr()?.sum_all(), scale, &mut |_| seen += 1, Rc::new(|loss| loss))?;
    assert_sharp(&sharp, &w, 2.);
    assert_eq!(seen, 2);
    Ok(())
}
