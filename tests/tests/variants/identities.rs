//! What a variant reduces to with degenerate constants, and what it does not depend on.

use candle_core::{Result, Tensor, Var};
use sam_runtime::variants::{Combination, Direction, Mask, Metric, MomentumBuffers, Radius, Schedule};
use sam_runtime::{FunctionalSam, Sam};
use sam_tests::{Net, bits, gradient};

use crate::promises::all;
use crate::reference::*;

/// The bits of the weights after some steps.
fn bits_after(sam: &Sam, net: &Net) -> Vec<Vec<u64>> {
    for step in 0..6 {
        let (x, y) = batch_of(step);
        let update = gradient(&sam.loss(|| net.loss(&x, &y)).unwrap(), &net.vars).concat();
        set_weights(net, &mix(1.0, &weights(net), -LR, &update));
    }
    net.vars.iter().map(|var| bits(var)).collect()
}

fn bits_of(sam: &Sam) -> Vec<Vec<u64>> {
    bits_after(sam, &net())
}

fn plain_bits() -> Vec<Vec<u64>> {
    bits_of(&Sam::new(0.0))
}

#[test]
fn without_a_radius_every_variant_is_the_base_to_the_bit() {
    let net = net();
    let expected = {
        for step in 0..6 {
            let (x, y) = batch_of(step);
            let update = gradient(&net.loss(&x, &y).unwrap(), &net.vars).concat();
            set_weights(&net, &mix(1.0, &weights(&net), -LR, &update));
        }
        net.bits()
    };
    for variant in all() {
        let net = self::net();
        let sam = (variant.make)(&net).radius(Radius::Constant(0.0));
        assert_eq!(bits_after(&sam, &net), expected, "{}", variant.name);
    }
}

#[test]
fn what_is_sam_to_the_bit() {
    let sam = bits_of(&Sam::new(0.3));
    assert_ne!(sam, plain_bits());
    let base = || Sam::new(0.3);
    for (name, same) in [
        ("look, k = 1", base().combination(Combination::LookSam { every: 1, alpha: 0.7 })),
        ("F-SAM, sigma = 0", base().direction(Direction::MinusEma { sigma: 0.0, lambda: 0.9 })),
        ("VaSSO, theta = 1", base().direction(Direction::Ema { theta: 1.0 })),
        ("every step", base().schedule(Schedule::Every(1))),
        ("always by chance", base().schedule(Schedule::Random(1.0))),
        ("one ascent", base().ascent_steps(1, 1.0)),
        ("GSAM, alpha = 0", base().combination(Combination::Gsam { alpha: 0.0 })),
        ("WSAM, gamma = 1/2", base().combination(Combination::Wsam { gamma: 0.5 })),
        ("an endless budget", base().radius(Radius::LossBudget { sigma: 1e9, largest: 0.3 })),
        ("watched", base().with_diagnostics()),
    ] {
        assert_eq!(bits_of(&same), sam, "{name}");
    }
}

#[test]
fn what_is_sam_to_rounding() {
    let flat = |sam: &Sam| {
        let net = net();
        bits_after(sam, &net);
        weights(&net)
    };
    let sam = flat(&Sam::new(0.3));
    for (name, same) in [
        ("every coordinate kept", Sam::new(0.3).mask(Mask::Random { keep: 1.0 })),
        ("none left out", Sam::new(0.3).mask(Mask::TopK { sparsity: 0.0, every: 2 })),
        ("Fisher, eta = 0", Sam::new(0.3).metric(Metric::Fisher { eta: 0.0 })),
    ] {
        println!("{name}");
        assert_close(&flat(&same), &sam, 1e-11);
    }
}

/// A map hands out its variables in another order each time.
#[test]
fn the_order_of_the_variables_does_not_matter() {
    let run = |order: [usize; 4], make: fn(Vec<Var>) -> Sam| {
        let net = net();
        let sam = make(order.map(|i| net.vars[i].clone()).to_vec());
        bits_after(&sam, &net)
    };
    let random = |vars| Sam::random_direction(0.3, vars);
    let momentum = |vars: Vec<Var>| {
        let velocities = MomentumBuffers::default();
        velocities.set(vars.iter().map(|var| (var.clone(), (var.as_detached_tensor() * 0.7).unwrap())));
        Sam::momentum_sam(velocities).mask(Mask::Random { keep: 0.5 })
    };
    for make in [random as fn(Vec<Var>) -> Sam, momentum] {
        assert_eq!(run([0, 1, 2, 3], make), run([2, 0, 3, 1], make));
        assert_ne!(run([0, 1, 2, 3], make), plain_bits());
    }
}

/// tanh'(0) aside, this network has no scale of its own: relu(a W₁ x) W₂ / a is one function for every a > 0.
#[test]
fn asam_does_not_see_a_rescaling_of_layers() {
    let run = |a: f64| -> (f64, f64) {
        let net = net();
        set_weights(&net, &weights(&net));
        let [w1, _, w2, _] = &net.vars;
        w1.set(&(w1.as_tensor() * a).unwrap()).unwrap();
        w2.set(&(w2.as_tensor() / a).unwrap()).unwrap();
        let (x, _) = batch_of(0);
        let there = std::cell::Cell::new(0f64);
        let loss = |net: &Net| -> Result<Tensor> {
            let loss = x.matmul(&net.vars[0].t()?)?.relu()?.matmul(&net.vars[2].t()?)?.sqr()?.mean_all()?;
            there.set(loss.to_scalar()?);
            Ok(loss)
        };
        let asam = Sam::new(0.5).adaptive(0.0);
        asam.loss(|| loss(&net)).unwrap();
        let adaptive = there.get();
        Sam::new(0.5).loss(|| loss(&net)).unwrap();
        (adaptive, there.get())
    };
    let ((adaptive, plain), (adaptive_scaled, plain_scaled)) = (run(1.0), run(4.0));
    assert!((adaptive - adaptive_scaled).abs() < 1e-12 * adaptive);
    assert!((plain - plain_scaled).abs() > 1e-2 * plain, "plain SAM should see it");
}

/// c L has c times the gradient, and the same ε̂. A power of two, so that all is to the bit.
#[test]
fn what_is_normalized_does_not_see_the_scale_of_the_loss() {
    for variant in all() {
        if variant.sees_scale {
            continue;
        }
        let run = |scale: f64| {
            let net = net();
            let sam = (variant.make)(&net);
            let mut all = Vec::new();
            for step in 0..6 {
                let (x, y) = batch_of(step);
                let loss = sam.loss(|| net.loss(&x, &y)? * scale).unwrap();
                let update = gradient(&loss, &net.vars).concat();
                set_weights(&net, &mix(1.0, &weights(&net), -LR / scale, &update));
                sam.apply_decoupled(LR / scale).unwrap();
                all.push(net.bits());
            }
            all
        };
        assert_eq!(run(1.0), run(64.0), "{}", variant.name);
    }
}

#[test]
fn functional_sam_of_a_linear_loss_is_sam() {
    let run = |functional: Option<FunctionalSam>| {
        let net = net();
        let (x, _) = batch_of(0);
        let of = |z: Tensor| functional.as_ref().map_or(Ok(z.clone()), |functional| functional.apply(&z));
        let loss = Sam::new(0.3).loss(|| of(net.forward(&x)?)?.sum_all()).unwrap();
        gradient(&loss, &net.vars)
    };
    assert_eq!(run(Some(FunctionalSam::default())), run(None));
}
