//! The kernels of `optim.cu`.

use super::super::launch::dtype_code;
use super::super::launch::optim::{adamw, clamp, ema};
use super::super::launch::params::{Entry, Metric};
use super::{Buffer, FLOATS, assert_close, emulators, in_both_orders, numbers, tolerance};
use crate::core::dtype::wide;
use crate::kernels::operands::AdamWStep;

const SIZES: [usize; 4] = [1, 7, 700, 16384 + 5];

fn entry(buffers: &[&Buffer]) -> Entry {
    let pointers = buffers.iter().map(|buffer| buffer.address()).collect();
    Entry { dtype: dtype_code(buffers[0].dtype).unwrap(), size: buffers[0].len, metric: Metric::One, pointers }
}

#[test]
fn steps_of_adamw() {
    for dtype in FLOATS {
        for from_gradient in [false, true] {
            let (keep, lerp) = (0.999, if from_gradient { -0.3 } else { 0.1 });
            let (beta2, rate2, bias2_root, eps, minus_rate) = (0.99, 0.01, 0.25, 1e-3, -0.02);
            let step = AdamWStep { keep, lerp, from_gradient, beta2, rate2, bias2_root, eps, minus_rate };
            let cases = || {
                SIZES.into_iter().zip(0..).map(|(n, seed)| {
                    let before = usize::from(seed % 3 == 2);
                    let [w, g, m, v] = [0, 1, 2, 3].map(|k| numbers(n, 4 * seed + k));
                    let v: Vec<_> = v.into_iter().map(f64::abs).collect();
                    let [w, g] = [w, g].map(|x| Buffer::shifted(dtype, &x, before));
                    [w, g, Buffer::shifted(wide(dtype), &m, before), Buffer::new(wide(dtype), &v)]
                })
            };
            let Some(found) = in_both_orders(|launcher| {
                let cases: Vec<_> = cases().collect();
                let entries: Vec<_> = cases.iter().map(|case| entry(&case.each_ref())).collect();
                adamw(launcher, step, &entries)?;
                Ok(cases.into_iter().flat_map(|[w, _, m, v]| [w, m, v]).collect())
            }) else {
                return;
            };
            for (case, found) in cases().zip(found.chunks(3)) {
                let [mut w, g, mut m, mut v] = case.each_ref().map(Buffer::values);
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(&mut m).zip(&mut v) {
                    *m = if from_gradient { g } else { *m } + lerp * (g - *m);
                    *v = beta2 * *v + rate2 * g * g;
                    *w = *w * keep + minus_rate * *m / (v.sqrt() / bias2_root + eps);
                }
                let what = format!("{dtype:?}, {from_gradient}");
                assert_close(&found[0], &w, tolerance(dtype), &what);
                assert_close(&found[1], &m, tolerance(wide(dtype)), &what);
                assert_close(&found[2], &v, tolerance(wide(dtype)), &what);
            }
        }
    }
}

#[test]
fn averages() {
    for dtype in FLOATS {
        for mut launcher in emulators() {
            let pairs: Vec<_> = SIZES
                .into_iter()
                .zip(0..)
                .map(|(n, seed)| {
                    let before = usize::from(seed % 3 == 2);
                    let w = Buffer::shifted(dtype, &numbers(n, 2 * seed), before);
                    (w, Buffer::shifted(wide(dtype), &numbers(n, 2 * seed + 1), before))
                })
                .collect();
            let before: Vec<_> = pairs.iter().map(|(_, average)| average.values()).collect();
            let entries: Vec<_> = pairs.iter().map(|(w, average)| entry(&[w, average])).collect();
            ema(&mut launcher, 0.75, &entries).unwrap();
            for ((w, average), before) in pairs.iter().zip(before) {
                let expected: Vec<_> = before.iter().zip(w.values()).map(|(a, w)| 0.75 * a + 0.25 * w).collect();
                assert_close(&average.values(), &expected, tolerance(wide(dtype)), &format!("{dtype:?}"));
            }
        }
    }
}

#[test]
fn clamped_gradients() {
    for dtype in FLOATS {
        for mut launcher in emulators() {
            let mut values = numbers(SIZES[3], 1);
            values[..3].copy_from_slice(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
            let all = [0, 1].map(|before| Buffer::shifted(dtype, &values, before));
            let before = all[0].values();
            clamp(&mut launcher, 0.25, &all.each_ref().map(|buffer| entry(&[buffer]))).unwrap();
            for found in all.map(|buffer| buffer.values()) {
                assert!(found[0].is_nan());
                let expected: Vec<_> = before[1..].iter().map(|x| x.clamp(-0.25, 0.25)).collect();
                assert_eq!(found[1..], expected, "{dtype:?}");
            }
        }
    }
}
