use candle_core::{Result, Tensor, Var};
use sam_runtime::{Pass, sam};
use sam_tests::{assert_sharp, three_four};

/// One annotated function inside another: the outer one is the loss.
#[sam(rho = 0.5)]
fn outer(w: &Var, passes: &mut Vec<Pass>) -> Result<Tensor> {
    #[sam(rho = 100)]
    fn inner(w: &Var, passes: &mut Vec<Pass>) -> Result<Tensor> {
        passes.push(Pass::current());
        w.sqr()?.sum_all()
    }

    inner(w, passes)
}

/// One that calls itself.
#[sam(rho = 0.5)]
fn power(w: &Var, n: u32, calls: &mut u32) -> Result<Tensor> {
    *calls += 1;
    if n == 0 { w.sqr()?.sum_all() } else { power(w, n - 1, calls)? * 2. }
}

/// Two that call each other.
#[sam(rho = 0.5)]
fn even(w: &Var, n: u32) -> Result<Tensor> {
    if n == 0 { w.sqr()?.sum_all() } else { odd(w, n - 1)? * 2. }
}

#[sam(rho = 0.5)]
fn odd(w: &Var, n: u32) -> Result<Tensor> {
    even(w, n - 1)? * 3.
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut passes, mut calls) = (three_four(), vec![], 0);
    assert_sharp(&outer(&w, &mut passes)?, &w, 1.);
    assert_eq!(passes, [Pass::Ascent, Pass::Descent]);
    assert_sharp(&power(&w, 3, &mut calls)?, &w, 8.);
    assert_eq!(calls, 2 * 4);
    assert_sharp(&even(&w, 4)?, &w, 36.);
    Ok(())
}
