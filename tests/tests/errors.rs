//! Bad numbers and bad losses: a clear error, the weights intact; a zero gradient is no error.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor, Var};
use sam_runtime::{Error, Pass, Sam, sam};
use sam_tests::{Net, batch, copy, device, gradient, is_for_the_cpu, tensor, values};

#[sam(rho = rho, p = p, adaptive = eta, shards(x, y; m = m))]
fn loss(net: &Net, x: &Tensor, y: &Tensor, rho: f64, p: f64, eta: f64, m: usize) -> Result<Tensor> {
    net.loss(x, y)
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(outcome: Result<T>, parts: &[&str]) {
    let error = outcome.unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(error.starts_with(|c: char| c.is_lowercase() || c == '`'), "{error}");
}

#[test]
fn arguments_out_of_range() {
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let before = net.bits();
    for rho in [-0.1, f64::NAN, f64::INFINITY] {
        assert_error(loss(&net, &x, &y, rho, 2., 0., 3), &["`rho`", "0 or more"]);
    }
    for p in [0.5, -1., f64::NAN] {
        assert_error(loss(&net, &x, &y, 0.1, p, 0., 3), &["`p`", "1 <= p <= inf"]);
    }
    for eta in [-0.1, f64::NAN, f64::INFINITY] {
        assert_error(loss(&net, &x, &y, 0.1, 2., eta, 3), &["`adaptive`", "0 or more"]);
    }
    assert_error(loss(&net, &x, &y, 0.1, 2., 0., 0), &["`m` is 0"]);
    assert_error(loss(&net, &x, &y.narrow(0, 0, 8).unwrap(), 0.1, 2., 0., 3), &["9", "8", "rows"]);
    assert_error(loss(&net, &x.narrow(0, 0, 0).unwrap(), &y, 0.1, 2., 0., 3), &["0", "rows"]);
    assert_eq!(net.bits(), before);
}

/// The attribute sees `Arc` itself; behind a name of the user's only the run tells.
#[test]
fn replay_of_a_handle_behind_a_name() {
    type Draws = std::sync::Arc<std::sync::Mutex<u64>>;

    #[sam(rho = 0.1, replay(draws))]
    fn noisy(w: &Var, draws: &mut Draws) -> Result<Tensor> {
        *draws.lock().unwrap() += 1;
        w.sqr()?.sum_all()
    }

    let (w, mut draws) = (Var::new(&[3f64, 4.], device()).unwrap(), Draws::default());
    assert_error(noisy(&w, &mut draws), &["Arc<", "cannot be replayed", "a clone shares its state"]);
    assert_eq!((values(&w), *draws.lock().unwrap()), (vec![3., 4.], 0));
}

#[test]
fn losses_that_are_none() {
    if is_for_the_cpu("on other devices values are not checked") {
        return;
    }
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let before = net.bits();
    let sam = Sam::new(0.1);
    assert_error(sam.loss(|| net.forward(&x)), &["single number", "[9, 3]", "mean_all"]);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for pass in [Pass::Ascent, Pass::Descent] {
            let outcome = sam.loss(|| net.loss(&x, &y)? + if Pass::current() == pass { bad } else { 0. });
            assert_error(outcome, &["the loss is", &format!("{pass} pass"), &bad.to_string(), "unchanged"]);
        }
    }
    let other = copy(&tensor(&[3], DType::F32, 9));
    assert_error(sam.clone().vars([other]).loss(|| net.loss(&x, &y)), &["`vars`", "nothing would be perturbed"]);
    assert_error(sam.vars([]).loss(|| net.loss(&x, &y)), &["`vars`"]);
    assert_eq!(net.bits(), before);
}

/// A finite loss with a gradient that is not: sqrt at 0.
#[test]
fn gradients_that_are_none() {
    if is_for_the_cpu("on other devices values are not checked") {
        return;
    }
    let (a, w) = (copy(&tensor(&[4], DType::F32, 1)), Var::zeros((2, 3), DType::F32, device()).unwrap());
    let before = (values(&a), values(&w));
    for pass in [Pass::Ascent, Pass::Descent] {
        let outcome = Sam::new(0.1).loss(|| -> Result<Tensor> {
            let x = if Pass::current() == pass { w.sqrt()? } else { w.sqr()? };
            a.sqr()?.sum_all()? + x.sum_all()?
        });
        assert_error(outcome, &[&format!("{pass} pass"), "variable", "of 2", "[2, 3]", "F32", "unchanged"]);
        assert_eq!((values(&a), values(&w)), before);
    }
}

#[test]
fn a_zero_gradient_is_no_error() {
    let w = Var::new(&[0f32, 0., 0.], device()).unwrap();
    for p in [1., 1.5, 2., 3., f64::INFINITY] {
        let loss = Sam::new(0.1).p(p).loss(|| -> Result<Tensor> { w.sqr()?.sum_all() }).unwrap();
        assert_eq!(gradient(&loss, std::slice::from_ref(&w)), [[0., 0., 0.]]);
        assert_eq!(values(&w), [0., 0., 0.]);
    }
}

/// A loss that depends on no variable is returned as it is, after one pass.
#[test]
fn a_constant_is_no_error() {
    let mut passes = 0;
    let loss = Sam::new(0.1).loss(|| -> Result<Tensor> {
        passes += 1;
        Tensor::new(3f32, device())
    });
    assert_eq!((values(&loss.unwrap()), passes), (vec![3.], 1));
}

/// Whatever candle and anyhow put around it.
#[test]
fn the_kind_of_an_error_is_kept() {
    let w = Var::new(&[3f64, 4.], device()).unwrap();
    let refused = || Sam::new(-1.).loss(|| -> Result<Tensor> { w.sqr()?.sum_all() }).unwrap_err();
    assert!(matches!(Error::of(&refused()), Some(Error::Rho(rho)) if *rho == -1.));
    let wrapped = refused().context("epoch 3").with_path("model.safetensors").bt();
    assert!(matches!(Error::of(&wrapped), Some(Error::Rho(_))));
    let text = refused().to_string();
    assert!(text.starts_with("`rho` is -1: the radius of the ball must be a finite number, 0 or more"), "{text}");
    let foreign = candle_core::Error::Io(std::io::Error::other("a disk"));
    assert!(Error::of(&foreign).is_none() && Error::of(&candle_core::Error::msg("`rho` is -1")).is_none());
}
