use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

trait Model {
    const RHO: f64;

    fn weights(&self) -> &Var;

    #[sam(rho = Self::RHO, vars = [self.weights().clone()])]
    fn loss(&self) -> Result<Tensor>
    where
        Self: Sized,
    {
        self.weights().sqr()?.sum_all()
    }

    #[sam(rho = 0.5, plain = plain_unsized)]
    fn unsized_loss(&self) -> Result<Tensor> {
        self.weights().sqr()?.sum_all()
    }
}

impl Model for Var {
    const RHO: f64 = 0.5;

    fn weights(&self) -> &Var {
        self
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    assert_sharp(&Model::loss(&w)?, &w, 1.);
    assert_sharp(&w.unsized_loss()?, &w, 1.);
    assert_eq!(w.plain_unsized()?.to_scalar::<f64>()?, 25.);
    Ok(())
}
