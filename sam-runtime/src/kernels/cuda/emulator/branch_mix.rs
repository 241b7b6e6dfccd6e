//! Sums of branches with a factor for each sample.

use super::super::launch::branch_mix;
use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, tolerance};
use crate::core::dtype::wide;

#[test]
fn mixtures_of_samples() {
    for (dtype, [samples, sample]) in FLOATS.into_iter().flat_map(|dtype| [[5, 1600], [7, 33]].map(|s| (dtype, s))) {
        let n = samples * sample;
        let [a, b] = [1, 2].map(|seed| Buffer::new(dtype, &numbers(n, seed)));
        let [f, g] = [3, 4].map(|seed| Buffer::new(wide(dtype), &numbers(samples, seed)));
        let Some(found) = in_both_orders(|launcher| {
            let (both, one) = (Buffer::empty(dtype, n), Buffer::empty(dtype, n));
            let (type_code, factors) = (dtype_code(dtype)?, [f.address(), g.address()]);
            let [two, single] = [[a.address(), b.address(), both.address()], [a.address(), 0, one.address()]];
            branch_mix::branch_mix(launcher, type_code, two, [n, sample], factors)?;
            branch_mix::branch_mix(launcher, type_code, single, [n, sample], [factors[0], 0])?;
            Ok(vec![both, one])
        }) else {
            return;
        };
        let (a, b, f, g) = (a.values(), b.values(), f.values(), g.values());
        let scaled = |x: &[f64], f: &[f64]| x.iter().enumerate().map(|(i, x)| x * f[i / sample]).collect::<Vec<_>>();
        let (fa, gb) = (scaled(&a, &f), scaled(&b, &g));
        let sum: Vec<_> = fa.iter().zip(&gb).map(|(a, b)| a + b).collect();
        assert_close(&found[0], &sum, tolerance(dtype), &format!("{dtype:?}"));
        assert_close(&found[1], &fa, tolerance(dtype), &format!("{dtype:?}"));
    }
}
