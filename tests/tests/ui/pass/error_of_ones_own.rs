use candle_core::{Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("scale {0} is negative")]
    Scale(f64),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T = Tensor> = std::result::Result<T, Error>;

#[sam(rho = rho, shards(w; m = 2))]
fn loss(w: &Tensor, scale: f64, rho: f64) -> Result {
    if scale < 0. {
        return Err(Error::Scale(scale));
    }
    Ok((w.sqr()?.sum_all()? * scale)?)
}

/// Any error that can be one of candle's.
#[sam(rho = 0.5)]
fn generic<E: From<candle_core::Error> + From<String>>(w: &Var, scale: &str) -> std::result::Result<Tensor, E> {
    let scale: f64 = scale.parse().map_err(|_| format!("{scale} is no number"))?;
    Ok((w.sqr()?.sum_all()? * scale)?)
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&loss(&w, 2., 0.5)?, &w, 2.);
    assert!(matches!(loss(&w, -1., 0.5), Err(Error::Scale(-1.))));
    let Err(Error::Tensor(error)) = loss(&w, 1., -1.) else { panic!("a negative radius") };
    assert!(error.to_string().contains("-1"), "{error}");

    let sharp = generic::<Box<dyn std::error::Error>>(&w, "3").unwrap();
    assert_sharp(&sharp, &w, 3.);
    let error = generic::<Box<dyn std::error::Error + Send + Sync>>(&w, "x").unwrap_err();
    assert_eq!(error.to_string(), "x is no number");
    Ok(())
}
