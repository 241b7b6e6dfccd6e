//! The kernels of `params.cu`.

use candle_core::{DType, Device, Tensor, Var};

use super::super::launch::params::{Entry, Metric, NOT_FINITE, dot, mix, perturb, sgd};
use super::super::launch::{Scratch, dtype_code};
use super::{Buffer, FLOATS, assert_close, emulators, numbers, tolerance};
use crate::core::dtype::wide;
use crate::core::norm_ball::Ball;
use crate::kernels::dispatch::perturbed;
use crate::kernels::operands::SgdStep;
use crate::kernels::operands::{PerturbTarget, Scale};
use crate::kernels::portable::params as portable;

/// A variable in the emulator, and the same in f64.
struct Case {
    w: Buffer,
    g: Buffer,
    metric: Option<Buffer>,
    mask: Option<Buffer>,
    eta: Option<f64>,
}

impl Case {
    fn new(dtype: DType, n: usize, seed: u64) -> Self {
        let before = usize::from(seed % 3 == 2);
        let tensor = |seed| Buffer::shifted(dtype, &numbers(n, seed), before);
        Self { w: tensor(2 * seed), g: tensor(2 * seed + 1), metric: None, mask: None, eta: None }
    }

    fn entry(&self) -> Entry {
        let metric = match (&self.metric, self.eta) {
            (Some(metric), _) if metric.len == 1 => Metric::Number(metric.address()),
            (Some(metric), _) => Metric::Given(metric.address()),
            (None, Some(eta)) => Metric::Weights(eta),
            (None, None) => Metric::One,
        };
        let mask = self.mask.as_ref().map_or(0, Buffer::address);
        let pointers = vec![self.w.address(), self.g.address(), mask];
        Entry { dtype: dtype_code(self.w.dtype).unwrap(), size: self.w.len, metric, pointers }
    }

    fn target(&self) -> PerturbTarget {
        let tensor = |buffer: &Buffer| Tensor::new(buffer.values(), &Device::Cpu).unwrap();
        let number = |buffer: &Buffer| match buffer.len {
            1 => Tensor::new(buffer.values()[0], &Device::Cpu).unwrap(),
            _ => tensor(buffer),
        };
        let metric = match (&self.metric, self.eta) {
            (Some(metric), _) => Scale::Given(number(metric)),
            (None, Some(eta)) => Scale::Weights(eta),
            (None, None) => Scale::One,
        };
        let mask = self.mask.as_ref().map(tensor);
        PerturbTarget { var: Var::from_tensor(&tensor(&self.w)).unwrap(), grad: tensor(&self.g), metric, mask }
    }
}

fn bits(buffer: &Buffer) -> Vec<u64> {
    buffer.values().into_iter().map(f64::to_bits).collect()
}

/// Runs `perturb` in both orders, which must agree bitwise. Returns w + ε̂ and the number of gradients that were not
/// finite.
fn run(ball: Ball, cases: impl Fn() -> Vec<Case>) -> Option<(Vec<Vec<f64>>, u64)> {
    let mut results = emulators().into_iter().map(|mut launcher| {
        let cases = cases();
        perturb(&mut launcher, ball, cases.iter().map(Case::entry).collect()).unwrap();
        assert!(cases.iter().zip(self::cases(&cases)).all(|(case, w)| bits(&case.w) == w), "w has been written to");
        let not_finite = launcher.scratch[&Scratch::Outcome][NOT_FINITE];
        (cases.iter().map(|case| case.g.values()).collect::<Vec<_>>(), not_finite)
    });
    let first = results.next()?;
    let second = results.next()?;
    let bits = |x: &[Vec<f64>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first.0), bits(&second.0), "the order of threads shows: a barrier is missing");
    Some(first)
}

fn cases(cases: &[Case]) -> Vec<Vec<u64>> {
    cases.iter().map(|case| bits(&case.w)).collect()
}

const SIZES: [usize; 5] = [1, 7, 16384, 700, 2 * 16384 + 5];

#[test]
fn perturbation_for_every_norm_and_type() {
    for dtype in FLOATS {
        for p in [1.0, 1.25, 1.5, 2.0, 3.0, 7.0, f64::INFINITY] {
            let ball = Ball { rho: 0.3, p, normalized: true };
            let all = || SIZES.iter().zip(1..).map(|(&n, seed)| Case::new(dtype, n, seed)).collect::<Vec<_>>();
            let Some((found, _)) = run(ball, all) else { return };
            let expected = perturbed(ball, all().iter().map(Case::target).collect()).unwrap();
            for (found, (_, expected)) in found.iter().zip(&expected) {
                assert_close(found, &expected.to_vec1().unwrap(), tolerance(dtype), &format!("{dtype:?}, p = {p}"));
            }
        }
    }
}

/// Variables of all dtypes in one call, with every metric, some with a mask, with a norm and without.
#[test]
fn perturbation_in_every_metric() {
    let all = || {
        let mut all = Vec::new();
        for (i, dtype) in FLOATS.into_iter().cycle().take(12).enumerate() {
            let n = SIZES[i % SIZES.len()];
            let mut case = Case::new(dtype, n, i as u64);
            let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
            let positive = |n, seed| numbers(n, seed).into_iter().map(|x| x + 1.5).collect::<Vec<_>>();
            match i / 3 {
                0 => case.eta = Some(0.1),
                1 => case.metric = Some(Buffer::new(wide, &positive(n.max(2), 50))),
                2 => case.metric = Some(Buffer::new(wide, &positive(1, 51))),
                _ => {}
            }
            if let Some(metric) = case.metric.as_mut().filter(|_| i / 3 == 1) {
                *metric = Buffer::new(wide, &positive(n, 50));
            }
            if i % 2 == 0 {
                let mask: Vec<f64> = numbers(n, 52).into_iter().map(|x| if x > 0.0 { 2.0 } else { 0.0 }).collect();
                case.mask = Some(Buffer::new(dtype, &mask));
            }
            all.push(case);
        }
        all
    };
    for (p, normalized) in [(2.0, true), (1.5, true), (2.0, false)] {
        let ball = Ball { rho: if normalized { 0.3 } else { 1e-2 }, p, normalized };
        let Some((found, _)) = run(ball, all) else { return };
        let expected = portable::perturbed(ball, all().iter().map(Case::target).collect()).unwrap();
        for ((found, (_, expected)), case) in found.iter().zip(&expected).zip(all()) {
            let what = format!("{:?}, p = {p}, {normalized}, {:?}", case.w.dtype, case.entry().metric);
            // The scale depends on the f32 variables as well.
            assert_close(found, &expected.to_vec1().unwrap(), tolerance(case.w.dtype).max(1e-7), &what);
        }
    }
}

#[test]
fn zero_and_non_finite_gradients() {
    for p in [1.0, 1.5, 2.0, f64::INFINITY] {
        for dtype in FLOATS {
            let with = |bad: f64| {
                move || {
                    let mut case = Case::new(dtype, 40, 1);
                    let mut g = vec![0.0; 40];
                    g[33] = bad;
                    case.g = Buffer::new(dtype, &g);
                    vec![Case::new(dtype, 0, 2), case]
                }
            };
            let ball = Ball { rho: 0.3, p, normalized: true };
            for (bad, count) in [(0.0, 0), (-0.0, 0), (f64::NAN, 1), (f64::INFINITY, 1), (f64::NEG_INFINITY, 1)] {
                let Some((found, not_finite)) = run(ball, with(bad)) else { return };
                assert_eq!(found[1], with(bad)()[1].w.values(), "{dtype:?}, p = {p}, {bad}");
                assert_eq!(not_finite, count, "{dtype:?}, p = {p}, {bad}");
            }
        }
    }
}

/// Gradients whose squares overflow or underflow in their dtype, or whose 1/M overflows.
#[test]
fn extreme_gradients() {
    for (dtype, scales) in [(DType::F32, [1e-44, 1e-39, 1e30]), (DType::F64, [1e-310, 1e-200, 1e200])] {
        for p in [1.0, 1.5, 2.0, 3.0, f64::INFINITY] {
            for scale in scales {
                let all = || {
                    let mut case = Case::new(dtype, 2, 1);
                    case.w = Buffer::new(dtype, &[0.0; 2]);
                    case.g = Buffer::new(dtype, &[30.0 * scale, 40.0 * scale]);
                    vec![case]
                };
                let ball = Ball { rho: 0.3, p, normalized: true };
                let Some((found, _)) = run(ball, all) else { return };
                let expected = perturbed(ball, all().iter().map(Case::target).collect()).unwrap();
                let what = format!("{dtype:?}, p = {p}, {scale}");
                assert_close(&found[0], &expected[0].1.to_vec1().unwrap(), tolerance(dtype), &what);
            }
        }
    }
}

/// A table that does not fit into one launch argument.
#[test]
fn three_hundred_variables() {
    let all = || (0..300).map(|i| Case::new(DType::F32, 1 + i as usize % 9, i)).collect::<Vec<_>>();
    let ball = Ball { rho: 0.3, p: 2.0, normalized: true };
    let Some((found, _)) = run(ball, all) else { return };
    let expected = perturbed(ball, all().iter().map(Case::target).collect()).unwrap();
    for (found, (_, expected)) in found.iter().zip(&expected) {
        assert_close(found, &expected.to_vec1().unwrap(), 1e-6, "three hundred variables");
    }
}

#[test]
fn descent_with_momentum() {
    for dtype in FLOATS {
        let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
        for (momentum, nesterov, moving) in [(0.9, true, true), (0.9, false, true), (0.0, false, false)] {
            let params = SgdStep { lr: 0.1, momentum, nesterov, weight_decay: 0.01 };
            for mut launcher in emulators() {
                let cases: Vec<_> = SIZES.iter().zip(1..).map(|(&n, seed)| Case::new(dtype, n, seed)).collect();
                let v: Vec<_> = SIZES.iter().zip(90..).map(|(&n, s)| Buffer::new(wide, &numbers(n, s))).collect();
                let before: Vec<_> = cases.iter().zip(&v).map(|(c, v)| [c.w.values(), v.values()]).collect();
                let entry = |(case, v): (&Case, &Buffer)| {
                    let velocity = if moving { v.address() } else { 0 };
                    Entry { pointers: vec![case.w.address(), case.g.address(), velocity], ..case.entry() }
                };
                let entries: Vec<_> = cases.iter().zip(&v).map(entry).collect();
                sgd(&mut launcher, params, &entries).unwrap();
                for ((case, v), [w_before, v_before]) in cases.iter().zip(&v).zip(before) {
                    let (mut w, mut velocity) = (w_before, v_before);
                    for ((w, v), g) in w.iter_mut().zip(&mut velocity).zip(case.g.values()) {
                        let g = g + params.weight_decay * *w;
                        if moving {
                            *v = momentum * *v + g;
                        }
                        *w -= params.lr
                            * if !moving || nesterov { g + if moving { momentum * *v } else { 0.0 } } else { *v };
                    }
                    let what = format!("{dtype:?}, momentum {momentum}, {nesterov}");
                    assert_close(&case.w.values(), &w, tolerance(dtype), &what);
                    assert_close(&v.values(), &velocity, tolerance(wide), &what);
                }
            }
        }
    }
}

#[test]
fn products_and_mixtures_of_pairs() {
    for dtype in FLOATS {
        let mut products = Vec::new();
        for mut launcher in emulators() {
            let cases: Vec<_> = SIZES.iter().zip(1..).map(|(&n, seed)| Case::new(dtype, n, seed)).collect();
            let pair = |case: &Case| Entry { pointers: vec![case.w.address(), case.g.address()], ..case.entry() };
            let (entries, total) = (cases.iter().map(pair).collect::<Vec<_>>(), Buffer::empty(wide(dtype), 1));
            let number = dtype_code(wide(dtype)).unwrap();
            dot(&mut launcher, &entries, 0.5, number, total.address()).unwrap();
            let product = |c: &Case| c.w.values().iter().zip(c.g.values()).map(|(a, b)| a * b).sum::<f64>();
            let expected = 0.5 * cases.iter().map(product).sum::<f64>();
            assert_close(&total.values(), &[expected], if dtype == DType::F64 { 1e-14 } else { 1e-6 }, "product");
            products.push(bits(&total));

            let [alpha, beta] = [0.75, -1.5].map(|x| Buffer::new(wide(dtype), &[x]));
            let before: Vec<_> = cases.iter().map(|case| case.w.values()).collect();
            mix(&mut launcher, &entries, number, [alpha.address(), beta.address()]).unwrap();
            for (case, before) in cases.iter().zip(before) {
                let mixed: Vec<_> = before.iter().zip(case.g.values()).map(|(a, b)| 0.75 * a - 1.5 * b).collect();
                assert_close(&case.w.values(), &mixed, tolerance(dtype), &format!("mixture, {dtype:?}"));
            }
        }
        products.dedup();
        assert!(products.len() <= 1, "the order of threads shows: a barrier is missing");
    }
}
