//! A step without a perturbation is checked like any other.

use candle_core::{Result, Tensor};
use sam_runtime::variants::{Direction, MomentumBuffers, Schedule};
use sam_runtime::{Sam, plain};

use super::{close, gradient, refused, var};

fn steps() -> [Sam; 6] {
    [
        Sam::new(0.),
        Sam::new(0.1).schedule(Schedule::Every(2)),
        Sam::new(0.1).schedule(Schedule::FromStep(9)),
        Sam::new(0.1).schedule(Schedule::Random(0.)),
        Sam::momentum_sam(MomentumBuffers::default()),
        Sam::new(0.1).direction(Direction::PreviousGradient),
    ]
}

#[test]
fn numbers_that_are_not_finite() {
    let w = var(&[3., 4.]);
    for (i, sam) in steps().into_iter().enumerate() {
        if i == 1 {
            sam.loss(|| w.sqr()?.sum_all()).unwrap();
        }
        refused(sam.loss(|| w.sqr()?.sum_all()? * f64::NAN), &["NaN"]);
        refused(sam.loss(|| w.sqr()?.sum_all()?.log()? / 0.), &["inf"]);
        // √w at 0: a finite loss, an infinite gradient.
        refused(sam.loss(|| (w.as_tensor() - w.detach())?.sqrt()?.sum_all()), &["gradient", "not finite"]);
        refused(sam.loss(|| w.sqr()), &["single number"]);
        refused(sam.loss(|| w.sum_all()?.to_dtype(candle_core::DType::U32)), &["U32"]);
        let loss: Result<Tensor> = sam.loss(|| w.sqr()?.sum_all());
        close(&gradient(&loss.unwrap(), &w), &[6., 8.]);
    }
    // A part of something else is what it is.
    assert!(plain(|| Sam::new(0.1).loss(|| w.sqr()?.sum_all()? * f64::NAN)).is_ok());
}
