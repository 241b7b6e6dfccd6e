//! The gradient is ∇L(w + ε̂), with ε̂ by equation 2, for every p, adaptive or not, in shards or not.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor, Var};
use proptest::prelude::*;
use sam_runtime::{Sam, sam};
use sam_tests::{Net, batch, device, displace, equation_2, gradient, norm, numbers, values};

const ORDERS: [f64; 7] = [1.0, 1.25, 1.5, 2.0, 3.0, 7.0, f64::INFINITY];

#[sam(rho = rho, p = p)]
fn loss(net: &Net, x: &Tensor, y: &Tensor, rho: f64, p: f64) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = rho, p = p, adaptive = eta)]
fn adaptive_loss(net: &Net, x: &Tensor, y: &Tensor, rho: f64, p: f64, eta: f64) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = rho, p = p, shards(x, y; m = m))]
fn sharded_loss(net: &Net, x: &Tensor, y: Tensor, rho: f64, p: f64, m: usize) -> Result<Tensor> {
    net.loss(x, &y)
}

#[sam(rho = rho, p = p, adaptive, shards(x, y; m = m))]
fn adaptive_sharded_loss(net: &Net, x: &Tensor, y: Tensor, rho: f64, p: f64, m: usize) -> Result<Tensor> {
    net.loss(x, &y)
}

/// ∇L(w + ε̂) in f64, from plain gradients and the formula.
fn reference(net: &Net, x: &Tensor, y: &Tensor, rho: f64, p: f64, eta: Option<f64>) -> Vec<Vec<f64>> {
    let (net, x) = (net.to_f64(), x.to_dtype(DType::F64).unwrap());
    let w: Vec<_> = net.vars.iter().map(|var| values(var)).collect();
    let g = gradient(&net.loss(&x, y).unwrap(), &net.vars);
    displace(&net, &equation_2(rho, p, eta, &w, &g));
    gradient(&net.loss(&x, y).unwrap(), &net.vars)
}

#[track_caller]
fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    let scale = expected.iter().flatten().fold(0f64, |m, e| m.max(e.abs()));
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() <= tolerance * scale, "{found} and {expected}");
    }
}

fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { 1e-12 } else { 2e-5 }
}

#[test]
fn equals_the_formula() {
    for dtype in [DType::F32, DType::F64] {
        for (seed, p) in ORDERS.into_iter().enumerate() {
            let (net, (x, y)) = (Net::new(dtype, seed as u64), batch(20, dtype, 7));
            let found = gradient(&loss(&net, &x, &y, 0.1, p).unwrap(), &net.vars);
            assert_close(&found, &reference(&net, &x, &y, 0.1, p, None), tolerance(dtype));
            let found = gradient(&adaptive_loss(&net, &x, &y, 0.5, p, 0.01).unwrap(), &net.vars);
            assert_close(&found, &reference(&net, &x, &y, 0.5, p, Some(0.01)), tolerance(dtype));
        }
    }
}

/// One ε̂ for each shard, the gradients averaged by the number of samples.
#[test]
fn equals_the_formula_in_shards() {
    for dtype in [DType::F32, DType::F64] {
        for (p, eta) in ORDERS.into_iter().flat_map(|p| [(p, None), (p, Some(Sam::ASAM_ETA))]) {
            let (net, (x, y)) = (Net::new(dtype, 3), batch(20, dtype, 8));
            let loss = if eta.is_none() { sharded_loss } else { adaptive_sharded_loss };
            let found = gradient(&loss(&net, &x, y.clone(), 0.1, p, 8).unwrap(), &net.vars);
            let mut expected: Vec<Vec<f64>> = found.iter().map(|g| vec![0.0; g.len()]).collect();
            for (start, m) in [(0, 8), (8, 8), (16, 4)] {
                let (x, y) = (x.narrow(0, start, m).unwrap(), y.narrow(0, start, m).unwrap());
                let shard = reference(&net, &x, &y, 0.1, p, eta);
                for (sum, g) in expected.iter_mut().flatten().zip(shard.iter().flatten()) {
                    *sum += g * m as f64 / 20.0;
                }
            }
            assert_close(&found, &expected, tolerance(dtype));
        }
    }
}

/// A shard as large as the batch is the batch.
#[test]
fn one_shard_is_plain_sam() {
    let (net, (x, y)) = (Net::new(DType::F64, 5), batch(20, DType::F64, 9));
    for m in [20, 1000] {
        let sharded = sharded_loss(&net, &x, y.clone(), 0.1, 2.0, m).unwrap();
        let whole = loss(&net, &x, &y, 0.1, 2.0).unwrap();
        assert_eq!(values(&sharded), values(&whole));
        assert_close(&gradient(&sharded, &net.vars), &gradient(&whole, &net.vars), 1e-15);
    }
}

/// Against central differences of L around w + ε̂, which know nothing of backpropagation.
#[test]
fn equals_finite_differences() {
    let (net, (x, y)) = (Net::new(DType::F64, 11), batch(12, DType::F64, 12));
    let found = gradient(&loss(&net, &x, &y, 0.2, 2.0).unwrap(), &net.vars);

    let there = net.to_f64();
    let w: Vec<_> = there.vars.iter().map(|var| values(var)).collect();
    let g = gradient(&there.loss(&x, &y).unwrap(), &there.vars);
    displace(&there, &equation_2(0.2, 2.0, None, &w, &g));
    let h = 1e-5;
    for (i, found) in found.iter().enumerate() {
        for (j, found) in found.iter().enumerate() {
            let at = |h: f64| {
                let mut e: Vec<Vec<f64>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
                e[i][j] = h;
                let near = there.to_f64();
                displace(&near, &e);
                values(&near.loss(&x, &y).unwrap())[0]
            };
            let expected = (at(h) - at(-h)) / (2.0 * h);
            assert!((found - expected).abs() < 1e-9, "{found} and {expected}");
        }
    }
}

/// Variables and a linear loss g·w / scale, whose gradient is g / scale anywhere.
fn linear(sizes: &[usize], seed: u64) -> (Vec<Var>, Vec<Tensor>) {
    let var = |(i, n): (usize, &usize)| {
        let w = Tensor::from_vec(vec![0f64; *n], *n, device()).unwrap();
        let g = Tensor::from_vec(numbers(*n, seed.wrapping_add(i as u64)), *n, device()).unwrap();
        (Var::from_tensor(&w).unwrap(), g)
    };
    sizes.iter().enumerate().map(var).unzip()
}

/// What a step adds to the weights, seen from inside the second pass.
fn perturbation(sam: &Sam, vars: &[Var], slopes: &[Tensor], scale: f64) -> Vec<f64> {
    let mut seen = Vec::new();
    sam.loss(|| -> Result<Tensor> {
        seen = vars.iter().flat_map(|var| values(var)).collect();
        let mut loss = Tensor::zeros((), vars[0].dtype(), device())?;
        for (var, slope) in vars.iter().zip(slopes) {
            loss = (loss + ((var.as_tensor() * slope)?.sum_all()? * scale)?)?;
        }
        Ok(loss)
    })
    .unwrap();
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// ‖ε̂‖_p = ρ, and ε̂ does not change when the loss is scaled, from 1e-20 to 1e15.
    #[test]
    fn lies_on_the_sphere_whatever_the_scale(
        sizes in prop::collection::vec(1usize..200, 1..6),
        p in prop_oneof![prop::sample::select(ORDERS.to_vec()), 1.0..20.0f64],
        rho in 1e-3..10f64,
        scale in prop::sample::select(vec![1e-20, 1e-10, 1e-3, 3.0, 1e8, 1e15]),
        dtype in prop::sample::select(vec![DType::F32, DType::F64]),
        seed in 0u64..1 << 32,
    ) {
        let (vars, slopes) = linear(&sizes, seed);
        let vars: Vec<_> = vars.iter().map(|v| Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap()).collect();
        let slopes: Vec<_> = slopes.iter().map(|g| g.to_dtype(dtype).unwrap()).collect();
        let sam = Sam::new(rho).p(p);
        let e = perturbation(&sam, &vars, &slopes, 1.0);
        let exact = if dtype == DType::F64 { 1e-12 } else { 1e-6 };
        prop_assert!((norm(p, e.iter().copied()) / rho - 1.0).abs() < exact);
        // In f32 the scaled gradient is itself rounded, and r^(q-1) multiplies its error by q - 1.
        let largest = norm(f64::INFINITY, e.iter().copied());
        let q = p / (p - 1.0);
        let scaled = perturbation(&sam, &vars, &slopes, scale);
        prop_assert!((norm(p, scaled.iter().copied()) / rho - 1.0).abs() < exact);
        if q.is_finite() {
            for (a, b) in e.iter().zip(&scaled) {
                prop_assert!((a - b).abs() <= largest * exact * q.max(2.0), "{a} and {b}");
            }
        }
    }
}
