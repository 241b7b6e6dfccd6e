//! What every variant promises, whatever it does.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::Optimizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::nn::Dropout;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::variants::{Combination, Direction, Schedule, Scope};
use sam_runtime::{Pass, Sam, sam};
use sam_tests::{Net, copy, device, gradient, values};

use crate::reference::*;

/// A variant by name, for a network.
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    pub(crate) make: fn(&Net) -> Sam,
    /// Whether its steps depend on the scale of the loss, as they are meant to.
    pub(crate) sees_scale: bool,
}

/// Every published one and every piece.
pub(crate) fn all() -> Vec<Variant> {
    let variant = |name, make| Variant { name, make, sees_scale: false };
    let seeing = |name, make| Variant { name, make, sees_scale: true };
    vec![
        variant("sam", |_| Sam::new(0.3)),
        variant("p = 1", |_| Sam::new(0.3).p(1)),
        variant("p = inf", |_| Sam::new(0.05).p(f64::INFINITY)),
        variant("asam", |net| Sam::asam(&named(net))),
        variant("gsam", |_| {
            let sam = Sam::gsam(0.0..=1.0);
            sam.set_learning_rate(1.0);
            sam
        }),
        variant("look", |_| Sam::look_sam()),
        variant("esam", |_| Sam::esam()),
        variant("f-sam", |_| Sam::f_sam()),
        variant("vasso", |_| Sam::vasso()),
        seeing("m-sam", |net| {
            // With a velocity to go against.
            let mut sgd = Sgd::new(net.vars.to_vec(), ParamsSgd { lr: 0.0, ..Default::default() }).unwrap();
            let velocities = sgd.momentum_buffers();
            let (x, y) = batch_of(99);
            let x = x.to_dtype(net.vars[0].dtype()).unwrap();
            sgd.backward_step(&net.loss(&x, &y).unwrap()).unwrap();
            Sam::momentum_sam(velocities)
        }),
        seeing("fisher", |_| Sam::fisher()),
        variant("wsam", |_| Sam::new(0.3).combination(Combination::Wsam { gamma: 0.9 })),
        variant("decoupled wsam", |_| Sam::wsam()),
        seeing("usam", |_| Sam::usam(0.3)),
        variant("ae-sam", |_| Sam::ae_sam(6)),
        variant("rst", |_| Sam::rst()),
        variant("sparse", |_| Sam::sparse_sam(2)),
        variant("stable", |_| Sam::stable()),
        variant("layer", |_| Sam::layer_sam()),
        seeing("le-sam", |_| Sam::le_sam(0.1, 0.3)),
        variant("stale", |_| Sam::previous_gradient()),
        variant("random", |net| Sam::random_direction(0.3, net.vars.to_vec())),
        variant("second order", |_| Sam::second_order()),
        variant("several ascents", |_| Sam::new(0.3).ascent_steps(3, 0.5)),
        variant("a ball for each", |_| Sam::new(0.3).scope(Scope::PerVariable)),
        variant("every second", |_| Sam::new(0.3).schedule(Schedule::Every(2))),
        variant("late", |_| Sam::new(0.3).schedule(Schedule::FromStep(2))),
        variant("averaged and stable", |_| {
            Sam::new(0.3).direction(Direction::Ema { theta: 0.5 }).combination(Combination::Rescaled).with_diagnostics()
        }),
        variant("some variables", |net| {
            Sam::new(0.3).vars(net.vars[..2].to_vec()).combination(Combination::Gsam { alpha: 0.5 })
        }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Err,
    Panic,
    Nan,
}

/// NaN is an error on the CPU alone: values are not checked on other devices.
fn ends() -> impl Iterator<Item = End> {
    [End::Err, End::Panic].into_iter().chain(device().is_cpu().then_some(End::Nan))
}

/// The weights are what they were, and so is the memory: a step that failed has not been.
#[test]
fn a_step_that_fails_leaves_nothing_behind() {
    for Variant { name, make, .. } in all() {
        // Each run of the loss function in six steps is made to fail once.
        for failing in 0.. {
            let mut reached = false;
            for end in ends() {
                let (good, bad) = (net(), net());
                let (good_sam, bad_sam) = (make(&good), make(&bad));
                let runs = Cell::new(0);
                for number in 0..6 {
                    let step = Step::new(number);
                    let plainly = |net: &Net, sam: &Sam| {
                        let loss = sam.loss(|| net.loss(&step.x, &step.y)).unwrap();
                        let update = gradient(&loss, &net.vars).concat();
                        set_weights(net, &mix(1.0, &weights(net), -LR, &update));
                        sam.apply_decoupled(LR).unwrap();
                    };
                    plainly(&good, &good_sam);

                    let before = bad.bits();
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        bad_sam.loss(|| -> Result<Tensor> {
                            let loss = bad.loss(&step.x, &step.y)?;
                            runs.set(runs.get() + 1);
                            match end {
                                _ if runs.get() != failing + 1 => Ok(loss),
                                End::Err => candle_core::bail!("on purpose"),
                                End::Panic => panic!("on purpose"),
                                End::Nan => loss * f64::NAN,
                            }
                        })
                    }));
                    assert_eq!(bad.bits(), before, "{name}, run {failing}, {end:?}");
                    assert_eq!(Pass::current(), Pass::Plain);
                    if let Ok(Ok(loss)) = outcome {
                        if values(&loss)[0].is_nan() {
                            // A plain step is the function as it is written.
                            reached = true;
                            break;
                        }
                        let update = gradient(&loss, &bad.vars).concat();
                        set_weights(&bad, &mix(1.0, &weights(&bad), -LR, &update));
                        bad_sam.apply_decoupled(LR).unwrap();
                    } else {
                        reached = true;
                        plainly(&bad, &bad_sam);
                    }
                    assert_eq!(bad.bits(), good.bits(), "{name}, run {failing}, {end:?}, step {number}");
                }
            }
            if !reached {
                assert!(failing >= 6, "{name}: {failing} runs in six steps");
                break;
            }
        }
    }
}

#[sam(with = sam, hardest(x, y; k = 4))]
fn hardest(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor, hook: &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    hook(losses(net, x, y)?)
}

#[sam(with = sam, sharpest(x, y; k = 6))]
fn sharpest(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor, hook: &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    hook(losses(net, x, y)?)
}

#[sam(with = sam, micro_batches(x, y; m = 5))]
fn parts(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor, hook: &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    hook(net.loss(x, y)?)
}

#[sam(with = sam, shards(x, y; m = 5))]
fn shards(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor, hook: &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    hook(net.loss(x, y)?)
}

/// The same where a step goes over some of the samples at a time: in each run of the loss function.
#[test]
fn a_step_over_some_examples_that_fails_leaves_nothing_behind() {
    type Loss = fn(&Sam, &Net, &Tensor, &Tensor, &dyn Fn(Tensor) -> Result<Tensor>) -> Result<Tensor>;
    for (name, loss, runs) in
        [("hardest", hardest as Loss, 3), ("sharpest", sharpest, 3), ("parts", parts, 6), ("shards", shards, 6)]
    {
        let Step { x, y, .. } = Step::new(0);
        let (net, sam) = (net(), Sam::new(0.3).combination(Combination::Gsam { alpha: 0.4 }));
        let before = net.bits();
        let good = gradient(&loss(&sam, &net, &x, &y, &Ok).unwrap(), &net.vars);
        for failing in 1..=runs + 1 {
            for end in ends() {
                let run = Cell::new(0);
                let hook = |loss: Tensor| {
                    run.set(run.get() + 1);
                    match end {
                        _ if run.get() != failing => Ok(loss),
                        End::Err => candle_core::bail!("on purpose"),
                        End::Panic => panic!("on purpose"),
                        End::Nan => loss * f64::NAN,
                    }
                };
                let outcome = catch_unwind(AssertUnwindSafe(|| loss(&sam, &net, &x, &y, &hook)));
                assert_eq!(matches!(outcome, Ok(Ok(_))), failing > runs, "{name}, run {failing}, {end:?}");
                assert_eq!(net.bits(), before, "{name}, run {failing}, {end:?}");
                assert_eq!(Pass::current(), Pass::Plain);
                assert_eq!(gradient(&loss(&sam, &net, &x, &y, &Ok).unwrap(), &net.vars), good, "{name}");
            }
        }
    }
}

/// In bf16, where what is remembered is f32: the same directions as in f64.
#[test]
fn in_halves() {
    for Variant { name, make, .. } in all() {
        // Its mask is one of another order of magnitude's rounding.
        if name == "sparse" {
            continue;
        }
        let wide = net();
        let narrow = Net { vars: wide.vars.each_ref().map(|var| copy(&var.to_dtype(DType::BF16).unwrap())) };
        let (wide_sam, narrow_sam) = (make(&wide), make(&narrow));
        for number in 0..6 {
            let Step { x, y, .. } = Step::new(number);
            let half = x.to_dtype(DType::BF16).unwrap();
            let a = gradient(&wide_sam.loss(|| wide.loss(&x, &y)).unwrap(), &wide.vars).concat();
            let b = gradient(&narrow_sam.loss(|| narrow.loss(&half, &y)).unwrap(), &narrow.vars).concat();
            wide_sam.apply_decoupled(0.0).unwrap();
            narrow_sam.apply_decoupled(0.0).unwrap();
            let cosine = dot(&a, &b) / length(&a) / length(&b);
            assert!(cosine > 0.95, "{name}, step {number}: {cosine}");
        }
    }
}

/// Inside another step, and under `plain`, each is the function as it is written, and remembers nothing.
#[test]
fn plainly() {
    for Variant { name, make, .. } in all() {
        let net = net();
        let sam = make(&net);
        let (x, y) = batch_of(0);
        let plain = gradient(&net.loss(&x, &y).unwrap(), &net.vars);
        let loss = sam_runtime::plain(|| sam.loss(|| net.loss(&x, &y)).unwrap());
        assert_eq!(gradient(&loss, &net.vars), plain, "{name}");
        assert!(sam.last_stats().is_none(), "{name}");
    }
}

/// Two runs are the same run.
#[test]
fn determinism() {
    for Variant { name, make, .. } in all() {
        let run = || {
            let net = net();
            let sam = make(&net).seed(7);
            for number in 0..5 {
                let step = Step::new(number);
                let loss = sam.loss(|| net.loss(&step.x, &step.y)).unwrap();
                set_weights(&net, &mix(1.0, &weights(&net), -LR, &gradient(&loss, &net.vars).concat()));
                sam.apply_decoupled(LR).unwrap();
            }
            net.bits()
        };
        assert_eq!(run(), run(), "{name}");
    }
}

#[sam(with = sam, micro_batches(x; m = 5), replay(rng))]
fn noisy(
    sam: &Sam,
    w: &Var,
    x: &Tensor,
    dropout: &Dropout,
    rng: &mut ChaCha8Rng,
    seen: &RefCell<Vec<Vec<f64>>>,
) -> Result<Tensor> {
    let noise: f64 = rng.random();
    let kept = dropout.forward(&x.ones_like()?, true)?;
    seen.borrow_mut().push([vec![noise], values(&kept)].concat());
    ((x * kept)?.broadcast_mul(w)? + noise)?.sqr()?.mean_all()
}

/// Every pass over a part of the batch draws what the first one drew for it, and another part draws something else.
#[test]
fn every_pass_sees_the_same_random_numbers() {
    let x = sam_tests::tensor(&[12, 6], DType::F64, 3);
    let w = Var::ones(6, DType::F64, device()).unwrap();
    for (sam, passes) in [(Sam::new(0.3), 2), (Sam::second_order(), 4), (Sam::new(0.3).ascent_steps(3, 0.5), 4)] {
        let (dropout, mut rng) = (Dropout::seeded(0.5, 1), ChaCha8Rng::seed_from_u64(2));
        let mut before = Vec::new();
        for _ in 0..3 {
            let seen = RefCell::default();
            noisy(&sam, &w, &x, &dropout, &mut rng, &seen).unwrap();
            let seen = seen.into_inner();
            assert_eq!(seen.len(), 3 * passes);
            for pass in seen.chunks(3) {
                assert_eq!(pass, &seen[..3]);
            }
            assert!(seen[0] != seen[1] && seen[1][..] != seen[2][..]);
            assert_ne!(seen[0], before, "the next step draws something else");
            before.clone_from(&seen[0]);
        }
    }
}

/// What is seen of a step.
#[test]
fn what_is_seen() {
    let net = net();
    let sam = Sam::new(0.3).with_diagnostics();
    let step = Step::new(0);
    let w = weights(&net);
    sam.loss(|| net.loss(&step.x, &step.y)).unwrap();
    let last = sam.last_stats().unwrap();
    let g = step.g(&w);
    let there = add(&w, &along(0.3, &g));
    let g2 = step.g(&there);
    let mean = |losses: Vector| losses.iter().sum::<f64>() / losses.len() as f64;
    let close = |found: Result<Option<f64>>, expected: f64| {
        let found = found.unwrap().unwrap();
        assert!((found - expected).abs() < 1e-10 * expected.abs(), "{found}, expected {expected}");
    };
    let (here, above) = (mean(step.losses(&w)), mean(step.losses(&there)));
    close(last.loss(), here);
    close(last.perturbed_loss(), above);
    close(last.sharpness(), above - here);
    close(last.gradient_norm(), length(&g));
    close(last.perturbation_norm(), 0.3);
    close(last.cosine(), dot(&g, &g2) / length(&g) / length(&g2));
    close(last.curvature(), 2.0 * (above - here - 0.3 * length(&g)) / 0.09);
}
