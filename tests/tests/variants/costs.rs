//! The passes that a step costs, counted by a loss function that counts.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};
use candle_nn::Optimizer;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::variants::{Combination, Radius};
use sam_runtime::{BatchSelection, Sam};
use sam_tests::Net;

use crate::reference::*;

/// Counts the samples of its backward passes.
struct Counter(Arc<AtomicUsize>);

impl CustomOp1 for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        Ok((x.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.0.fetch_add(x.dim(0)?, Ordering::Relaxed);
        Ok(Some(grad.clone()))
    }
}

/// Passes a step over so many steps: a forward pass is a third, a backward pass two. `choose` has the loss function
/// return a loss for each sample.
fn cost(net: &Net, sam: &Sam, steps: u64, choose: Option<fn(&Sam) -> Result<BatchSelection<'_>>>) -> f64 {
    let mut sgd = Sgd::new(net.vars.to_vec(), ParamsSgd { lr: 0.02, ..Default::default() }).unwrap();
    let (forward, backward) = (Cell::new(0), Arc::new(AtomicUsize::new(0)));
    let mut said = 0.0;
    for number in 0..steps {
        let Step { x, y, .. } = Step::new(number);
        let run = |net: &Net, x: &Tensor, y: &Tensor| -> Result<Tensor> {
            forward.set(forward.get() + x.dim(0)?);
            losses(net, x, y)?.apply_op1(Counter(Arc::clone(&backward)))
        };
        let loss = match choose {
            None => sam.loss(|| run(net, &x, &y)?.mean_all()).unwrap(),
            Some(choose) => {
                let examples = choose(sam).unwrap().split(&x).unwrap().split(&y).unwrap();
                let mut body = |_| run(net, &examples.of(&x)?, &examples.of(&y)?);
                let stages = examples.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
                stages.restore::<candle_core::Error>().unwrap()
            }
        };
        said += sam.last_stats().unwrap().passes();
        sgd.backward_step(&loss).unwrap();
    }
    let examples = (steps as usize * BATCH) as f64;
    let counted = (forward.get() as f64 + 2.0 * backward.load(Ordering::Relaxed) as f64) / 3.0 / examples;
    let said = said / steps as f64;
    assert!((counted - said).abs() < 1e-9, "{counted} counted, {said} said");
    counted
}

#[track_caller]
fn assert_cost(sam: &Sam, expected: std::ops::RangeInclusive<f64>) {
    let cost = cost(&net(), sam, 400, None);
    assert!((expected.start() - 1e-9..=expected.end() + 1e-9).contains(&cost), "{cost}, expected {expected:?}");
}

#[test]
fn of_every_variant() {
    assert_cost(&Sam::new(0.0), 1.0..=1.0);
    assert_cost(&Sam::new(0.05), 2.0..=2.0);
    for two in [Sam::asam(&named(&net())), Sam::f_sam(), Sam::vasso(), Sam::fisher(), Sam::stable(), Sam::layer_sam()] {
        assert_cost(&two, 2.0..=2.0);
    }
    let gsam = Sam::gsam(0.0..=1.0);
    gsam.set_learning_rate(0.5);
    assert_cost(&gsam, 2.0..=2.0);
    assert_cost(&Sam::new(0.05).combination(Combination::Wsam { gamma: 0.9 }), 2.0..=2.0);
    assert_cost(&Sam::look_sam(), 1.2..=1.2);
    assert_cost(&Sam::rst(), 1.45..=1.55);
    assert_cost(&Sam::ae_sam(400), 1.4..=1.6);
    assert_cost(&Sam::second_order(), 4.0..=4.0);
    assert_cost(&Sam::new(0.05).ascent_steps(3, 0.5), 4.0..=4.0);
    assert_cost(&Sam::previous_gradient(), 1.0..=1.0);

    let net = net();
    assert!((cost(&net, &Sam::random_direction(0.05, net.vars.to_vec()), 10, None) - 1.0).abs() < 1e-9);
}

/// MSAM is one pass. It needs the optimizer that trains.
#[test]
fn of_m_sam() {
    let net = net();
    let mut sgd = Sgd::new(net.vars.to_vec(), ParamsSgd::default()).unwrap();
    let sam = Sam::momentum_sam(sgd.momentum_buffers()).radius(Radius::Constant(0.3));
    let runs = Cell::new(0);
    for number in 0..10 {
        let Step { x, y, .. } = Step::new(number);
        let loss = sam.loss(|| {
            runs.set(runs.get() + 1);
            net.loss(&x, &y)
        });
        sgd.backward_step(&loss.unwrap()).unwrap();
        assert!((sam.last_stats().unwrap().passes() - 1.0).abs() < 1e-12);
    }
    assert_eq!(runs.get(), 10);
}

#[test]
fn of_chosen_examples() {
    // A forward pass over all, two passes over a third.
    let k_sam = cost(&net(), &Sam::new(0.05), 10, Some(|sam| sam.hardest(BATCH / 3)));
    assert!((k_sam - 1.0).abs() < 1e-9, "{k_sam}");
    // One pass, a forward pass at w + ε̂, a pass over half.
    let esam = cost(&net(), &Sam::esam(), 10, Some(|sam| sam.sharpest(BATCH / 2)));
    assert!((esam - 11.0 / 6.0).abs() < 1e-9, "{esam}");
}
