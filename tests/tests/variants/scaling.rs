//! Scaled losses, halves, and the two meanings of accumulation.

use candle_core::{DType, Result, Tensor};
use sam_runtime::variants::Combination;
use sam_runtime::{Sam, sam};
use sam_tests::{Net, batch, gradient, is_for_the_cpu, values};

use crate::promises::{Variant, all};
use crate::reference::*;

/// Gradients are unscaled before anything is made of them: a power of two changes no bit.
#[test]
fn a_scaled_loss_changes_nothing() {
    for Variant { name, make, .. } in all() {
        let run = |scale: f64| {
            let net = net();
            let sam = make(&net).loss_scale(scale);
            for number in 0..6 {
                let Step { x, y, .. } = Step::new(number);
                let loss = sam.loss(|| net.loss(&x, &y)).unwrap();
                set_weights(&net, &mix(1.0, &weights(&net), -LR, &gradient(&loss, &net.vars).concat()));
                sam.apply_decoupled(LR).unwrap();
            }
            net.bits()
        };
        assert_eq!(run(1024.0), run(1.0), "{name}");
    }
}

/// The loss of a network in f32 that computes in f16.
fn loss_in_halves(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let [w1, b1, w2, b2] = net.vars.each_ref().map(|var| var.to_dtype(DType::F16).unwrap());
    let hidden = x.matmul(&w1.t()?)?.broadcast_add(&b1)?.tanh()?;
    let logits = hidden.matmul(&w2.t()?)?.broadcast_add(&b2)?.to_dtype(DType::F32)?;
    candle_nn::loss::cross_entropy(&logits, y)
}

/// A loss that is computed in f16 from weights in f32, and so small that its gradient vanishes there.
#[test]
fn small_gradients_survive_in_f16() {
    let net = Net::new(DType::F32, 5);
    let (x, y) = batch(12, DType::F16, 3);
    let loss = |net: &Net| loss_in_halves(net, &x, &y)? * 1e-7;
    let found = |sam: Sam| gradient(&sam.loss(|| loss(&net)).unwrap(), &net.vars).concat();
    assert!(length(&found(Sam::new(0.0))) == 0.0 || length(&found(Sam::new(0.0))) < 1e-9, "they were to vanish");
    for combination in [Combination::PerturbedGradient, Combination::Gsam { alpha: 0.4 }, Combination::Rescaled] {
        let scaled = found(Sam::new(0.3).combination(combination).loss_scale(2f64.powi(20)));
        // The same in f32, without the small factor.
        let wide = Net { vars: net.vars.each_ref().map(|var| sam_tests::copy(var)) };
        let x = x.to_dtype(DType::F32).unwrap();
        let loss = Sam::new(0.3).combination(combination).loss(|| wide.loss(&x, &y)).unwrap();
        let expected = times(1e-7, &gradient(&loss, &wide.vars).concat());
        assert_close(&scaled, &expected, 2e-2);
    }
}

#[test]
fn an_overflow_is_an_error_and_the_scale_can_be_halved() {
    if is_for_the_cpu("values are not checked on other devices") {
        return;
    }
    let net = Net::new(DType::F32, 5);
    let (x, y) = batch(12, DType::F16, 3);
    let loss = |net: &Net| loss_in_halves(net, &x, &y);
    let mut sam = Sam::new(0.3).loss_scale(2f64.powi(30));
    let before = net.bits();
    let mut halvings = 0;
    let found = loop {
        match sam.loss(|| loss(&net)) {
            Ok(loss) => break loss,
            Err(error) => {
                assert!(error.to_string().contains("not finite"), "{error}");
                assert_eq!(net.bits(), before);
                halvings += 1;
                sam.set_loss_scale(2f64.powi(30 - halvings));
            }
        }
    };
    assert!(halvings > 3, "{halvings}");
    let plain = gradient(&Sam::new(0.3).loss(|| loss(&net)).unwrap(), &net.vars).concat();
    assert_close(&gradient(&found, &net.vars).concat(), &plain, 2e-2);
}

#[sam(rho = 0.3, shards(x, y; m = 4))]
fn one_for_each(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.3, micro_batches(x, y; m = 4))]
fn one_for_all(net: &Net, x: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((net.loss(x, y)?, net.forward(x)?))
}

/// Micro-batches with a perturbation each, and with one from all of them.
#[test]
fn both_meanings_of_accumulation() {
    let net = net();
    let (w, step) = (weights(&net), Step::new(0));
    let rows = |i: usize| (4 * i..4 * i + 4).collect::<Vec<_>>();
    let each = (0..3).map(|i| step.g_of(&add(&w, &along(0.3, &step.g_of(&w, &rows(i)))), &rows(i)));
    let each = each.fold(vec![0.0; 83], |sum, g| add(&sum, &times(1.0 / 3.0, &g)));
    let all = step.g(&add(&w, &along(0.3, &step.g(&w))));

    let found = gradient(&one_for_each(&net, &step.x, &step.y).unwrap(), &net.vars).concat();
    assert_close(&found, &each, 1e-11);
    let (loss, logits) = one_for_all(&net, &step.x, &step.y).unwrap();
    assert_close(&gradient(&loss, &net.vars).concat(), &all, 1e-11);
    assert!(length(&mix(1.0, &each, -1.0, &all)) > 1e-3);
    assert_close(&values(&logits), &values(&net.forward(&step.x).unwrap()), 1e-12);
}
