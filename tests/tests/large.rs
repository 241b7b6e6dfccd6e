//! Variables that are shared out among threads: the formula again, on sizes around those of a chunk.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor};
use sam_runtime::Sam;
use sam_tests::{copy, device, equation_2, tensor, values};

#[test]
fn equals_the_formula() {
    let sizes = [1usize, 32_767, 32_768, 32_769, 100_003];
    for (p, eta) in [(1.0, None), (1.5, Some(0.1)), (2.0, None), (2.0, Some(0.01)), (2.7, None), (f64::INFINITY, None)]
    {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
            let vars: Vec<_> = sizes.iter().map(|&n| copy(&tensor(&[n], dtype, n as u64))).collect();
            let slopes: Vec<_> = sizes.iter().map(|&n| tensor(&[n], dtype, 7 + n as u64)).collect();
            let w: Vec<_> = vars.iter().map(|var| values(var)).collect();
            let mut sam = Sam::new(0.7).p(p);
            if let Some(eta) = eta {
                sam = sam.adaptive(eta);
            }
            let mut seen = Vec::new();
            sam.loss(|| -> Result<Tensor> {
                seen = vars.iter().map(|var| values(var)).collect();
                let mut loss = Tensor::zeros((), dtype, device())?;
                for (var, slope) in vars.iter().zip(&slopes) {
                    loss = (loss + (var.as_tensor() * slope)?.sum_all()?)?;
                }
                Ok(loss)
            })
            .unwrap();
            let g: Vec<_> = slopes.iter().map(values).collect();
            let e = equation_2(0.7, p, eta, &w, &g);
            let largest = w.iter().flatten().fold(0f64, |m, w| m.max(w.abs()));
            for ((w, e), seen) in w.iter().flatten().zip(e.iter().flatten()).zip(seen.iter().flatten()) {
                assert!(
                    (w + e - seen).abs() < tolerance * (largest + e.abs()),
                    "{dtype:?}, p = {p}: {} and {seen}",
                    w + e
                );
            }
        }
    }
}
