use candle_core::Result;
use sam_tests::{assert_flat, assert_sharp, three_four};

/// A crate of one's own that exports the runtime, in a place of its own.
pub mod facade {
    pub mod sharpness {
        pub use ::sam_runtime::*;
    }
}

/// The name of the runtime means something else here.
mod sam_runtime {}

pub mod losses {
    use candle_core::{Result, Tensor, Var};

    use super::facade::sharpness as sharp;

    #[sharp::sam(rho = 0.5, replay(n), shards(x, y; m = 2), plain = plain_loss, crate = crate::ui::pass::runtime_exported_again::facade::sharpness)]
    pub(super) fn loss(w: &Var, x: &Tensor, y: Tensor, n: &mut usize) -> Result<Tensor> {
        *n += 1;
        w.sqr()?.sum_all()?.mul(&(x * y)?.mean_all()?)
    }

    #[sharp::sam(with = sam, crate = ::sam_runtime)]
    pub(super) fn with(sam: &sharp::Sam, w: &Var) -> Result<Tensor> {
        w.sqr()?.sum_all()
    }
}

#[cfg_attr(test, test)]
pub(crate) fn main() -> Result<()> {
    let (w, mut n) = (three_four(), 0);
    let x = candle_core::Tensor::ones((2, 3), w.dtype(), w.device())?;
    assert_sharp(&losses::loss(&w, &x, x.clone(), &mut n)?, &w, 1.);
    assert_flat(&losses::plain_loss(&w, &x, x.clone(), &mut n)?, &w, 1.);
    assert_sharp(&losses::with(&facade::sharpness::Sam::new(0.5), &w)?, &w, 1.);
    Ok(())
}
