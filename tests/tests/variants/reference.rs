//! What the formulas are written in: flat vectors in f64, and plain gradients of a small network.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarMap;
use sam_tests::{Net, batch, device, gradient, values};

pub(crate) type Vector = Vec<f64>;

pub(crate) const LR: f64 = 0.3;
/// The weights of each variable in a flat vector.
pub(crate) const PARTS: [std::ops::Range<usize>; 4] = [0..48, 48..56, 56..80, 80..83];
pub(crate) const BATCH: usize = 12;

/// α a + β b
pub(crate) fn mix(alpha: f64, a: &[f64], beta: f64, b: &[f64]) -> Vector {
    a.iter().zip(b).map(|(a, b)| alpha * a + beta * b).collect()
}

pub(crate) fn times(a: f64, v: &[f64]) -> Vector {
    v.iter().map(|v| a * v).collect()
}

pub(crate) fn product(a: &[f64], b: &[f64]) -> Vector {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn length(v: &[f64]) -> f64 {
    dot(v, v).sqrt()
}

pub(crate) fn add(a: &[f64], b: &[f64]) -> Vector {
    mix(1.0, a, 1.0, b)
}

/// v, with length ρ
pub(crate) fn along(rho: f64, v: &[f64]) -> Vector {
    times(rho / length(v), v)
}

/// The batch of each step.
pub(crate) fn batch_of(step: u64) -> (Tensor, Tensor) {
    batch(BATCH, DType::F64, 100 + 2 * step)
}

/// One loss for each sample.
pub(crate) fn losses(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let logits = net.forward(x)?;
    let hit = logits.gather(&y.unsqueeze(1)?, 1)?.squeeze(1)?;
    logits.exp()?.sum(1)?.log()? - hit
}

pub(crate) fn net() -> Net {
    Net::new(DType::F64, 5)
}

/// The network's variables under names.
pub(crate) fn named(net: &Net) -> VarMap {
    let vars = VarMap::new();
    for (name, var) in ["hidden.weight", "hidden.bias", "head.weight", "head.bias"].into_iter().zip(&net.vars) {
        vars.data().lock().unwrap().insert(name.to_owned(), var.clone());
    }
    vars
}

pub(crate) fn weights(net: &Net) -> Vector {
    net.vars.iter().flat_map(|var| values(var)).collect()
}

pub(crate) fn set_weights(net: &Net, w: &[f64]) {
    for (var, part) in net.vars.iter().zip(PARTS) {
        var.set(&Tensor::from_slice(&w[part], var.shape(), device()).unwrap()).unwrap();
    }
}

/// The gradient of `loss` at w, by candle alone.
pub(crate) fn gradient_at(w: &[f64], loss: impl FnOnce(&Net) -> Result<Tensor>) -> Vector {
    let net = net();
    set_weights(&net, w);
    gradient(&loss(&net).unwrap(), &net.vars).concat()
}

/// What a formula has to work with in a step.
pub(crate) struct Step {
    pub(crate) number: u64,
    pub(crate) x: Tensor,
    pub(crate) y: Tensor,
}

impl Step {
    pub(crate) fn new(number: u64) -> Self {
        let (x, y) = batch_of(number);
        Self { number, x, y }
    }

    /// ∇L(w)
    pub(crate) fn g(&self, w: &[f64]) -> Vector {
        gradient_at(w, |net| net.loss(&self.x, &self.y))
    }

    /// The loss of each sample at w.
    pub(crate) fn losses(&self, w: &[f64]) -> Vector {
        let net = net();
        set_weights(&net, w);
        values(&losses(&net, &self.x, &self.y).unwrap())
    }

    /// The gradient of the mean loss of some of the samples.
    pub(crate) fn g_of(&self, w: &[f64], rows: &[usize]) -> Vector {
        let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let rows = Tensor::new(rows, device()).unwrap();
        gradient_at(w, |net| net.loss(&self.x.index_select(&rows, 0)?, &self.y.index_select(&rows, 0)?))
    }
}

/// Gradient descent with what a formula says the gradient is.
pub(crate) fn descend(steps: u64, mut update: impl FnMut(&[f64], &Step) -> Vector) -> Vector {
    let mut w = weights(&net());
    for number in 0..steps {
        let update = update(&w, &Step::new(number));
        w = mix(1.0, &w, -LR, &update);
    }
    w
}

#[track_caller]
pub(crate) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0f64, |m, e| m.max(e.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * scale, "{i}: {found}, expected {expected}");
    }
}
