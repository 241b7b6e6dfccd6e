use candle_core::{Result, Tensor, Var};
use sam_runtime::{plain, sam};
use sam_tests::{assert_flat, assert_sharp, three_four};

#[sam(rho = 0.5)]
fn loss(w: &Var) -> Result<Tensor> {
    w.sqr()?.sum_all()
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&loss(&w)?, &w, 1.);
    assert_flat(&plain(|| loss(&w))?, &w, 1.);

    // It has kept its type.
    let pointer: fn(&Var) -> Result<Tensor> = loss;
    let twice = (pointer(&w)? + [&w].map(loss)[0].as_ref().unwrap())?;
    assert_sharp(&twice, &w, 2.);
    Ok(())
}
