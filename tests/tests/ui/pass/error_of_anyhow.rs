use anyhow::{Context as _, Result, ensure};
use candle_core::{Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[sam(rho = rho.parse::<f64>()?, shards(x; m = x.dims().first().context("a scalar")?.div_ceil(2)))]
fn loss(w: &Var, x: &Tensor, rho: &str, scale: Option<f64>) -> Result<(Tensor, usize)> {
    let scale = scale.context("no scale")?;
    ensure!(scale > 0., "scale {scale}");
    Ok(((w.sqr()?.sum_all()?.mul(&x.mean_all()?)? * scale)?, x.dim(0)?))
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let x = Tensor::ones((5, 1), w.dtype(), w.device())?;
    let (sharp, rows) = loss(&w, &x, "0.5", Some(2.))?;
    assert_sharp(&sharp, &w, 2.);
    assert_eq!(rows, 5);
    for (x, rho, scale, message) in [
        (&x, "0.5", None, "no scale"),
        (&x, "0.5", Some(-1.), "scale -1"),
        (&x, "half", Some(1.), "invalid float literal"),
        (&x.mean_all()?, "0.5", Some(1.), "a scalar"),
    ] {
        assert_eq!(loss(&w, x, rho, scale).unwrap_err().to_string(), message);
    }
    Ok(())
}
