use candle_core::{Result, Tensor, Var};
use sam_runtime::{Pass, sam};
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5)]
fn loss(w: &Var, passes: &mut Vec<Pass>, counter: &mut usize, mut slot: &mut [usize]) -> Result<Tensor> {
    passes.push(Pass::current());
    count(counter);
    slot[*counter] = 1;
    slot = &mut slot[1..];
    slot[0] += 1;
    w.sqr()?.sum_all()
}

fn count(counter: &mut usize) {
    *counter += 1;
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut passes, mut counter, mut slots) = (three_four(), vec![], 0, [0; 4]);
    let sharp = loss(&w, &mut passes, &mut counter, &mut slots)?;
    assert_sharp(&sharp, &w, 1.);
    assert_eq!(passes, [Pass::Ascent, Pass::Descent]);
    assert_eq!((counter, slots), (2, [0, 3, 1, 0]));
    Ok(())
}
