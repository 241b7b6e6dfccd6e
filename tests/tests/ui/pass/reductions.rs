//! Losses that are sums over the samples, and losses that weigh them.

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5, micro_batches(x; m = 2, reduction = sum))]
fn sum(w: &Var, x: &Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()? * x.sum_all()?.to_scalar::<f64>()?
}

#[sam(rho = 0.5, shards(x; m = 2, reduction = sum))]
fn sum_of_shards(w: &Var, x: &Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()? * x.sum_all()?.to_scalar::<f64>()?
}

#[sam(rho = 0.5, micro_batches(x; m = 2, reduction = mean))]
fn mean(w: &Var, x: &Tensor) -> Result<Tensor> {
    w.sqr()?.sum_all()? * x.mean_all()?.to_scalar::<f64>()?
}

#[sam(rho = 0.5, shards(x, tokens; m = 2, weights = tokens.flatten_all()?))]
fn by_tokens(w: &Var, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let weighted = (x * tokens)?.sum_all()?.to_scalar::<f64>()? / tokens.sum_all()?.to_scalar::<f64>()?;
    w.sqr()?.sum_all()? * weighted
}

/// A list, a reference to one, or one that the function is given.
#[sam(rho = 0.5, micro_batches(x, tokens; m = 2, weights = [1., 0., 3.]))]
fn by_a_list(w: &Var, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let weighted = (x * tokens)?.sum_all()?.to_scalar::<f64>()? / tokens.sum_all()?.to_scalar::<f64>()?;
    w.sqr()?.sum_all()? * weighted
}

#[sam(rho = 0.5, micro_batches(x, tokens; m = 2, weights = &vec![2u32, 0, 6]))]
fn by_a_reference(w: &Var, x: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let weighted = (x * tokens)?.sum_all()?.to_scalar::<f64>()? / tokens.sum_all()?.to_scalar::<f64>()?;
    w.sqr()?.sum_all()? * weighted
}

#[sam(rho = 0.5, micro_batches(x, tokens; m = 2, weights = lengths))]
fn by_an_argument(w: &Var, x: &Tensor, tokens: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let weighted = (x * tokens)?.sum_all()?.to_scalar::<f64>()? / tokens.sum_all()?.to_scalar::<f64>()?;
    w.sqr()?.sum_all()? * weighted
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let x = Tensor::new(&[1f64, 2., 6.], w.device())?;
    let tokens = Tensor::new(&[1f64, 0., 3.], w.device())?;
    assert_sharp(&sum(&w, &x)?, &w, 9.);
    assert_sharp(&sum_of_shards(&w, &x)?, &w, 9.);
    assert_sharp(&mean(&w, &x)?, &w, 3.);
    assert_sharp(&by_tokens(&w, &x, &tokens)?, &w, 19. / 4.);
    assert_sharp(&by_a_list(&w, &x, &tokens)?, &w, 19. / 4.);
    assert_sharp(&by_a_reference(&w, &x, &tokens)?, &w, 19. / 4.);
    assert_sharp(&by_an_argument(&w, &x, &tokens, &[1, 0, 3])?, &w, 19. / 4.);
    Ok(())
}
