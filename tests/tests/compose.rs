//! The returned loss is a loss like any other: scaled, added, accumulated, clipped, given to any optimizer.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, SGD};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::sam;
use sam_tests::{Net, batch, gradient, values};

#[sam(rho = 0.2)]
fn loss(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

fn setting() -> (Net, Tensor, Tensor) {
    let (x, y) = batch(16, DType::F64, 2);
    (Net::new(DType::F64, 1), x, y)
}

#[track_caller]
fn assert_close(found: &[Vec<f64>], expected: impl IntoIterator<Item = f64>) {
    for (found, expected) in found.iter().flatten().zip(expected) {
        assert!((found - expected).abs() < 1e-14, "{found} and {expected}");
    }
}

#[test]
fn scaled() {
    let (net, x, y) = setting();
    let once = gradient(&loss(&net, &x, &y).unwrap(), &net.vars);
    let scaled = (loss(&net, &x, &y).unwrap() * -2.5).unwrap();
    assert_close(&gradient(&scaled, &net.vars), once.iter().flatten().map(|g| g * -2.5));
    let log = loss(&net, &x, &y).unwrap().log().unwrap();
    let value = values(&loss(&net, &x, &y).unwrap())[0];
    assert_close(&gradient(&log, &net.vars), once.iter().flatten().map(|g| g / value));
}

#[test]
fn added_to_another_loss() {
    let (net, x, y) = setting();
    let once = gradient(&loss(&net, &x, &y).unwrap(), &net.vars);
    let penalty = net.vars[0].sqr().unwrap().sum_all().unwrap();
    let sum = (loss(&net, &x, &y).unwrap() + (penalty * 0.1).unwrap()).unwrap();
    let w = values(&net.vars[0]).into_iter().map(|w| 0.2 * w).chain(std::iter::repeat(0.));
    assert_close(&gradient(&sum, &net.vars), once.iter().flatten().zip(w).map(|(g, w)| g + w));
}

#[test]
fn accumulated_over_micro_batches() {
    let (net, x, y) = setting();
    let part = |i: usize| loss(&net, &x.narrow(0, 8 * i, 8).unwrap(), &y.narrow(0, 8 * i, 8).unwrap()).unwrap();
    let parts = [gradient(&part(0), &net.vars), gradient(&part(1), &net.vars)];
    let mean = parts[0].iter().flatten().zip(parts[1].iter().flatten()).map(|(a, b)| (a + b) / 2.);
    let mean: Vec<f64> = mean.collect();
    let sum = ((part(0) + part(1)).unwrap() / 2.).unwrap();
    assert_close(&gradient(&sum, &net.vars), mean.iter().copied());
    let mut store = (part(0) / 2.).unwrap().backward().unwrap();
    store.extend((part(1) / 2.).unwrap().backward().unwrap()).unwrap();
    let stored: Vec<_> = net.vars.iter().map(|var| values(store.get(var).unwrap())).collect();
    assert_close(&stored, mean);
}

#[test]
fn clipped() {
    let (net, x, y) = setting();
    let mut store = loss(&net, &x, &y).unwrap().backward().unwrap();
    let before: Vec<_> = net.vars.iter().map(|var| values(var)).collect();
    let g: Vec<_> = net.vars.iter().map(|var| values(store.get(var).unwrap())).collect();
    let norm = g.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    for var in &net.vars {
        let clipped = (store.remove(var).unwrap() * (0.01 / norm)).unwrap();
        store.insert(var, clipped);
    }
    SGD::new(net.vars.to_vec(), 1.).unwrap().step(&store).unwrap();
    let after: Vec<_> = net.vars.iter().map(|var| values(var)).collect();
    let moved = before.iter().flatten().zip(after.iter().flatten()).map(|(b, a)| (b - a).powi(2)).sum::<f64>().sqrt();
    assert!((moved - 0.01).abs() < 1e-12);
}

#[test]
fn given_to_any_optimizer() {
    fn train<O: Optimizer>(config: O::Config) -> (f64, f64) {
        let (net, x, y) = setting();
        let mut optimizer = O::new(net.vars.to_vec(), config).unwrap();
        let first = values(&net.loss(&x, &y).unwrap())[0];
        for _ in 0..60 {
            optimizer.backward_step(&loss(&net, &x, &y).unwrap()).unwrap();
        }
        (first, values(&net.loss(&x, &y).unwrap())[0])
    }
    let adam = ParamsAdamW { lr: 0.05, ..Default::default() };
    let outcomes = [
        train::<SGD>(1.),
        train::<AdamW>(adam),
        train::<Sgd>(ParamsSgd { lr: 0.2, weight_decay: 0., ..Default::default() }),
    ];
    for (first, last) in outcomes {
        assert!(last < 0.7 * first, "{first} to {last}");
    }
}

/// The gradient can be taken again, and outlives the weights' next step.
#[test]
fn differentiated_twice() {
    let (net, x, y) = setting();
    let loss = loss(&net, &x, &y).unwrap();
    let first = gradient(&loss, &net.vars);
    for var in &net.vars {
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    assert_eq!(gradient(&loss, &net.vars), first);
}

/// bf16 and f16 weights, f32 loss.
#[test]
fn in_halves() {
    for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 2e-3)] {
        let net = Net::new(dtype, 1);
        let (x, y) = batch(16, DType::F64, 2);
        let wide = || -> Result<Tensor> {
            let wide = net.vars.each_ref().map(|var| var.to_dtype(DType::F64));
            let [w1, b1, w2, b2] = wide;
            let hidden = x.matmul(&w1?.t()?)?.broadcast_add(&b1?)?.tanh()?;
            let logits = hidden.matmul(&w2?.t()?)?.broadcast_add(&b2?)?;
            let hit = logits.gather(&y.unsqueeze(1)?, 1)?.squeeze(1)?;
            (logits.exp()?.sum(1)?.log()? - hit)?.mean_all()?.to_dtype(DType::F32)
        };
        let before = net.bits();
        let found = gradient(&sam_runtime::Sam::new(0.2).loss(wide).unwrap(), &net.vars);
        assert_eq!(net.bits(), before);
        let net = net.to_f64();
        let expected = gradient(&loss(&net, &x, &y).unwrap(), &net.vars);
        let scale = expected.iter().flatten().fold(0f64, |m, g| m.max(g.abs()));
        for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((a - b).abs() < tolerance * scale, "{dtype:?}: {a} and {b}");
        }
    }
    assert!(Device::Cpu.is_cpu());
}
