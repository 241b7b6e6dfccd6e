#![allow(clippy::needless_arbitrary_self_type, reason = "one can write it")]

use candle_core::{Result, Tensor, Var};
use sam_runtime::sam;
use sam_tests::{assert_sharp, three_four};

struct Net<'a> {
    w: &'a Var,
    rho: f64,
    calls: usize,
}

impl Net<'_> {
    const SCALE: f64 = 2.;

    #[sam(rho = self.rho, plain = plain_loss)]
    pub(crate) fn loss(&self, scale: f64) -> Result<Tensor> {
        self.w.sqr()?.sum_all()? * scale
    }

    #[sam(rho = self.rho)]
    fn counted(&mut self) -> Result<Tensor> {
        self.calls += 1;
        self.plain_loss(Self::SCALE)
    }

    #[sam(rho = 0.5)]
    fn typed(self: &Self, (scale, _): &(f64, String)) -> Result<Tensor> {
        let Self { w, .. } = self;
        w.sqr()?.sum_all()? * *scale
    }

    #[sam(rho = 0.5)]
    fn typed_mut(self: &mut Self) -> Result<Tensor> {
        self.calls += 1;
        self.w.sqr()?.sum_all()
    }

    #[sam(rho = Self::SCALE / 4.)]
    fn associated(this: &Self) -> Result<Tensor> {
        Self::plain_loss(this, 1.)
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let w = three_four();
    let mut net = Net { w: &w, rho: 0.5, calls: 0 };
    assert_sharp(&net.loss(3.)?, &w, 3.);
    assert_sharp(&net.counted()?, &w, 2.);
    assert_sharp(&net.typed(&(4., String::new()))?, &w, 4.);
    assert_sharp(&net.typed_mut()?, &w, 1.);
    assert_sharp(&Net::associated(&net)?, &w, 1.);
    assert_eq!(net.calls, 4);
    Ok(())
}
