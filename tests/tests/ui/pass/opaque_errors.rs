//! Errors that the signature does not name.

use std::fmt::Debug;

use candle_core::{Tensor, Var};
use sam_runtime::{Aux, sam};
use sam_tests::{assert_sharp, three_four};

#[sam(rho = 0.5)]
fn opaque(w: &Var) -> Result<Tensor, impl From<candle_core::Error> + Debug> {
    w.sqr()?.sum_all()
}

#[sam(rho = 0.5, shards(x; m = 1))]
fn both(
    w: &Var,
    x: &Tensor,
) -> Result<(Tensor, impl Aux + Debug + use<>), impl From<candle_core::Error> + Debug + use<>> {
    let loss = w.sqr()?.sum_all()?.mul(&x.mean_all()?)?;
    anyhow::Ok((loss, "both"))
}

/// An error that appears only through `?`.
#[derive(Debug)]
pub(crate) struct Error(String);

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<std::num::ParseFloatError> for Error {
    fn from(error: std::num::ParseFloatError) -> Self {
        Self(error.to_string())
    }
}

#[sam(rho = rho.parse::<f64>()?)]
fn by_question_mark(w: &Var, rho: &str) -> Result<Tensor, Error> {
    let scale: f64 = "2".parse()?;
    Ok((w.sqr()?.sum_all()? * scale)?)
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<(), Error> {
    let w = three_four();
    assert_sharp(&opaque(&w).unwrap(), &w, 1.);
    let x = Tensor::ones((2, 1), w.dtype(), w.device())?;
    let (sharp, text) = both(&w, &x).unwrap();
    assert_sharp(&sharp, &w, 1.);
    assert_eq!(format!("{text:?}"), "\"both\"");
    assert_sharp(&by_question_mark(&w, "0.5")?, &w, 2.);
    assert_eq!(by_question_mark(&w, "half").unwrap_err().0, "invalid float literal");
    Ok(())
}
