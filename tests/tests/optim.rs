//! `optim` is PyTorch's, group by group, on the disk and back.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};
use proptest::prelude::*;
use sam_runtime::Sam;
use sam_runtime::optim::{
    AdamW, Ema, GradScaler, LrSchedule, LrScheduler, OneCycle, ParamGroup, ParamsSgd, Sgd, clip_grad_norm,
    clip_grad_value, decay_groups,
};
use sam_tests::{bits, device, is_for_the_cpu, values};

const SHAPES: [&[usize]; 3] = [&[48], &[4, 16], &[16]];

/// What torch has made of the same, see `fixtures/torch_optim.py`.
fn torch() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_optim.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Numbers that every type holds exactly, as in `torch_optim.py`.
fn numbers(shape: &[usize], seed: usize, dtype: DType, divisor: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let whole = (0..n).map(|i| ((i * 37 + seed * 101) % 127) as f64 - 63.0);
    let values: Vec<f64> = whole.map(|x| x / divisor).collect();
    // Converted on the CPU: see `values`.
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap().to_device(device()).unwrap()
}

fn variables(dtype: DType) -> Vec<Var> {
    let shapes = SHAPES.iter().enumerate();
    shapes.map(|(k, shape)| Var::from_tensor(&numbers(shape, k, dtype, 64.0)).unwrap()).collect()
}

fn store<'a>(gradients: impl IntoIterator<Item = (&'a Var, Tensor)>) -> GradStore {
    let mut store = GradStore::default();
    for (var, grad) in gradients {
        store.insert(var, grad);
    }
    store
}

fn map<'a>(vars: impl IntoIterator<Item = (&'a str, &'a Var)>) -> VarMap {
    let map = VarMap::new();
    for (name, var) in vars {
        map.data().lock().unwrap().insert(name.to_owned(), var.clone());
    }
    map
}

/// How far apart, in units of the last place of the type.
fn ulps(a: f64, b: f64, dtype: DType) -> f64 {
    let epsilon = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    if a == b { 0.0 } else { (a - b).abs() / (epsilon * a.abs().max(b.abs()) / 2.0) }
}

#[track_caller]
fn assert_torch(found: &Tensor, expected: &Tensor, ulps_allowed: f64, what: &str) {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()), "{what}");
    for (a, b) in values(found).into_iter().zip(values(expected)) {
        let distance = ulps(a, b, found.dtype());
        assert!(distance <= ulps_allowed, "{what}: {a} and {b}, {distance} ulps");
    }
}

/// The step of `torch_optim.py` in which the variable `k` gets a gradient.
fn seven_steps(adamw: &mut AdamW, vars: &[Var], dtype: DType) {
    for step in 0..7 {
        let with_gradient = vars.iter().enumerate().filter(|(k, _)| *k != 2 || step >= 2);
        let gradients = with_gradient.map(|(k, var)| (var, numbers(var.dims(), 7 * step + k, dtype, 512.0)));
        adamw.step(&store(gradients)).unwrap();
    }
}

#[test]
fn adamw_is_that_of_pytorch() {
    let torch = torch();
    for dtype in [DType::F32, DType::F64] {
        for name in ["default", "other", "groups"] {
            let vars = variables(dtype);
            let mut adamw = match name {
                "default" => AdamW::new_lr(vars.clone(), 1e-2).unwrap(),
                "other" => {
                    let params = ParamsAdamW { lr: 0.1, beta1: 0.3, beta2: 0.9, eps: 1e-3, weight_decay: 0.0 };
                    AdamW::new(vars.clone(), params).unwrap()
                }
                _ => {
                    let params = ParamsAdamW { lr: 0.03, beta2: 0.95, weight_decay: 0.1, ..Default::default() };
                    let first = ParamGroup::new(vars[..1].to_vec()).lr_scale(0.5).weight_decay(0.0);
                    AdamW::with_groups([first, ParamGroup::new(vars[1..].to_vec())], params).unwrap()
                }
            };
            seven_steps(&mut adamw, &vars, dtype);
            let names = map(["0", "1", "2"].into_iter().zip(&vars));
            let state = candle_core::safetensors::load_buffer(&adamw.to_bytes(&names).unwrap(), &Device::Cpu).unwrap();
            for (k, var) in vars.iter().enumerate() {
                let key = format!("adamw.{name}.{dtype:?}.{k}");
                // Other processors may divide and take roots otherwise.
                let ulps = if device().is_cpu() { 0.0 } else { 4.0 };
                assert_torch(var.as_tensor(), &torch[&format!("{key}.w")], ulps, &key);
                assert_torch(&state[&format!("first.{k}")], &torch[&format!("{key}.m")], ulps, &key);
                assert_torch(&state[&format!("second.{k}")], &torch[&format!("{key}.v")], ulps, &key);
            }
        }
    }
}

const PARAMS: ParamsAdamW = ParamsAdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.05 };

/// The formula, in f64.
fn reference(params: &ParamsAdamW, w: &mut [f64], steps: &[Vec<f64>]) {
    let (mut m, mut v) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    for (t, g) in (1..).zip(steps) {
        for (((w, m), v), g) in w.iter_mut().zip(&mut m).zip(&mut v).zip(g) {
            *m = params.beta1 * *m + (1.0 - params.beta1) * g;
            *v = params.beta2 * *v + (1.0 - params.beta2) * g * g;
            let m_hat = *m / (1.0 - params.beta1.powi(t));
            let v_hat = *v / (1.0 - params.beta2.powi(t));
            *w = *w * (1.0 - params.lr * params.weight_decay) - params.lr * m_hat / (v_hat.sqrt() + params.eps);
        }
    }
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        DType::F32 => 2e-6,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn adamw_is_the_formula(
        sizes in prop::collection::vec(0usize..70, 1..4),
        dtype in prop::sample::select(vec![DType::F32, DType::F64, DType::BF16, DType::F16]),
        lr in 1e-4..0.1f64, beta1 in 0.0..0.95f64, beta2 in 0.1..0.999f64, decay in 0.0..0.5f64,
        seed in 0usize..1000,
    ) {
        let params = ParamsAdamW { lr, beta1, beta2, eps: 1e-3, weight_decay: decay };
        let vars: Vec<_> = sizes.iter().map(|n| Var::from_tensor(&numbers(&[*n], seed, dtype, 64.0)).unwrap()).collect();
        let mut adamw = AdamW::new(vars.clone(), params.clone()).unwrap();
        let mut expected: Vec<_> = vars.iter().map(|var| values(var)).collect();
        let mut gradients = vec![Vec::new(); vars.len()];
        for step in 0..4 {
            let all: Vec<_> = vars.iter().map(|var| numbers(var.dims(), seed + step, dtype, 64.0)).collect();
            for (past, grad) in gradients.iter_mut().zip(&all) {
                past.push(values(grad));
            }
            adamw.step(&store(vars.iter().zip(all))).unwrap();
        }
        for ((var, w), gradients) in vars.iter().zip(&mut expected).zip(&gradients) {
            reference(&params, w, gradients);
            for (a, b) in values(var).iter().zip(w) {
                prop_assert!((a - *b).abs() <= tolerance(dtype) * (1.0 + b.abs()), "{dtype:?}: {a} and {b}");
            }
        }
    }
}

/// Candle's, which counts the steps of the optimizer, where each variable has a gradient in each.
#[test]
fn adamw_takes_the_place_of_candles() {
    let run = |vars: &[Var], optimizer: &mut dyn FnMut(&GradStore)| {
        for step in 0..5 {
            optimizer(&store(vars.iter().map(|var| (var, numbers(var.dims(), step, DType::F64, 512.0)))));
        }
    };
    let (ours, theirs) = (variables(DType::F64), variables(DType::F64));
    let mut adamw = AdamW::new(ours.clone(), PARAMS.clone()).unwrap();
    run(&ours, &mut |grads| adamw.step(grads).unwrap());
    let mut adamw = candle_nn::AdamW::new(theirs.clone(), PARAMS.clone()).unwrap();
    run(&theirs, &mut |grads| adamw.step(grads).unwrap());
    for (a, b) in ours.iter().zip(&theirs) {
        values(a).iter().zip(values(b)).for_each(|(a, b)| assert!((a - b).abs() < 1e-13, "{a} and {b}"));
    }

    let (ours, theirs) = (variables(DType::F64), variables(DType::F64));
    let mut sgd = sam_runtime::nn::SGD::new(ours[..2].to_vec(), 0.1).unwrap();
    sgd.push(&ours[2]);
    run(&ours, &mut |grads| sgd.step(grads).unwrap());
    assert_eq!(sgd.into_inner().len(), 3);
    let mut sgd = candle_nn::SGD::new(theirs.clone(), 0.1).unwrap();
    run(&theirs, &mut |grads| sgd.step(grads).unwrap());
    for (a, b) in ours.iter().zip(&theirs) {
        values(a).iter().zip(values(b)).for_each(|(a, b)| assert!((a - b).abs() < 1e-14, "{a} and {b}"));
    }
}

/// Long variables are shared out among threads.
#[test]
fn the_same_bits_for_any_number_of_threads() {
    if is_for_the_cpu("it has no threads to choose") {
        return;
    }
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let w = Var::from_tensor(&numbers(&[100_003], 1, DType::F32, 64.0)).unwrap();
            let mut adamw = AdamW::new(vec![w.clone()], PARAMS.clone()).unwrap();
            let mut ema = Ema::new(vec![w.clone()], 0.9).unwrap();
            let mut norms = Vec::new();
            for step in 0..3 {
                let mut grads = store([(&w, numbers(&[100_003], step, DType::F32, 64.0))]);
                norms.push(values(&clip_grad_norm(&mut grads, std::slice::from_ref(&w), 1.0).unwrap())[0].to_bits());
                adamw.step(&grads).unwrap();
                ema.update().unwrap();
            }
            let average = ema.averages().next().unwrap().1.clone();
            (bits(&w), bits(&average), norms)
        })
    };
    assert_eq!(run(1), run(4));
}

/// The gradient of xy by x is y: nothing is copied on the way if it is given by hand.
#[test]
fn a_gradient_may_be_a_variable() {
    let (x, y) = (Var::new(&[2f64, 3.], device()).unwrap(), Var::new(&[5f64, 7.], device()).unwrap());
    let mut expected = [values(&x), values(&y)];
    let gradients = [values(&y), values(&x)];
    let mut adamw = AdamW::new(vec![x.clone(), y.clone()], PARAMS.clone()).unwrap();
    let itself = |var: &Var| var.as_detached_tensor();
    let mut grads = store([(&x, itself(&y)), (&y, itself(&x))]);
    adamw.step(&grads).unwrap();
    for (w, gradient) in expected.iter_mut().zip(gradients) {
        reference(&PARAMS, w, &[gradient]);
    }
    for (var, expected) in [&x, &y].into_iter().zip(&expected) {
        values(var).iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} and {b}"));
    }
    // Nor are variables clipped.
    let before = [values(&x), values(&y)];
    clip_grad_norm(&mut grads, &[x.clone(), y.clone()], 0.1).unwrap();
    clip_grad_value(&mut grads, &[x.clone(), y.clone()], 0.1).unwrap();
    assert_eq!([values(&x), values(&y)], before);
}

#[test]
fn a_wrong_gradient_moves_nothing() {
    let vars = variables(DType::F32);
    let mut adamw = AdamW::new(vars.clone(), PARAMS.clone()).unwrap();
    let before: Vec<_> = vars.iter().map(|var| bits(var)).collect();
    let good = numbers(&[48], 0, DType::F32, 64.0);
    for wrong in [numbers(&[16, 4], 1, DType::F32, 64.0), numbers(&[4, 16], 1, DType::F64, 64.0)] {
        let error = adamw.step(&store([(&vars[0], good.clone()), (&vars[1], wrong)])).unwrap_err().to_string();
        assert!(error.contains("no variable has moved"), "{error}");
        assert!(vars.iter().map(|var| bits(var)).eq(before.iter().cloned()));
    }
}

/// With the gradient of a sharpness-aware loss, and of a plain one.
#[test]
fn backward_step_is_backward_and_step() {
    let sam = Sam::new(0.1);
    for sharp in [false, true] {
        let run = |at_once: bool| {
            let vars = variables(DType::F64);
            let mut adamw = AdamW::new(vars.clone(), PARAMS.clone()).unwrap();
            for _ in 0..3 {
                let loss =
                    || vars.iter().try_fold(Tensor::new(0f64, device())?, |sum, var| sum + var.sqr()?.sum_all()?);
                let loss = if sharp { sam.loss(loss).unwrap() } else { loss().unwrap() };
                if at_once {
                    adamw.backward_step(&loss).unwrap();
                } else {
                    adamw.step(&loss.backward().unwrap()).unwrap();
                }
            }
            vars.iter().map(|var| bits(var)).collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false));
    }
}

#[test]
fn groups_have_rates_and_decays_of_their_own() {
    let vars = variables(DType::F64);
    let names = map(["norm.weight", "head.weight", "head.bias"].into_iter().zip(&vars));
    let groups = decay_groups(&names);
    let [matrices, rest] = &groups[..] else { panic!("two groups") };
    assert_eq!((matrices.vars.len(), matrices.weight_decay), (1, None));
    assert_eq!((rest.vars.len(), rest.weight_decay), (2, Some(0.0)));

    // Without a gradient that counts, only the decay moves a weight.
    let mut adamw = AdamW::with_groups(groups.clone(), PARAMS.clone()).unwrap();
    let before: Vec<_> = vars.iter().map(|var| values(var)).collect();
    let zeros = || store(vars.iter().map(|var| (var, var.zeros_like().unwrap())));
    adamw.step(&zeros()).unwrap();
    assert_eq!([values(&vars[0]), values(&vars[2])], [before[0].clone(), before[2].clone()]);
    let decayed: Vec<_> = before[1].iter().map(|w| w * (1.0 - 0.1 * 0.05)).collect();
    assert_eq!(values(&vars[1]), decayed);

    let params = ParamsSgd { lr: 0.5, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let layer = |name: &'static str| ParamGroup::named(&names, move |other| other.starts_with(name));
    let mut sgd = Sgd::with_groups([layer("norm").lr_scale(0.25), layer("head").weight_decay(0.5)], params).unwrap();
    sgd.set_learning_rate(0.1);
    let before: Vec<_> = vars.iter().map(|var| values(var)).collect();
    let ones = store(vars.iter().map(|var| (var, var.ones_like().unwrap())));
    sgd.step(&ones).unwrap();
    let expected: Vec<_> = before[0].iter().map(|w| w - 0.025).collect();
    assert_eq!(values(&vars[0]), expected);
    for (found, w) in values(&vars[1]).iter().zip(&before[1]) {
        assert!((found - (w - 0.1 * (1.0 + 0.5 * w))).abs() < 1e-15);
    }

    let twice = [layer("norm"), ParamGroup::new(vars.clone()).lr_scale(2.0)];
    let error = Sgd::with_groups(twice, params).unwrap_err().to_string();
    assert!(error.contains("`norm.weight`") && error.contains("two groups"), "{error}");
    let alike = [layer("norm"), ParamGroup::new(vars.clone())];
    assert!(AdamW::with_groups(alike, PARAMS.clone()).is_ok());
    assert!(AdamW::with_groups([layer("norm").lr_scale(f64::NAN)], PARAMS.clone()).is_err());
    assert!(AdamW::with_groups([layer("norm").weight_decay(-1.0)], PARAMS.clone()).is_err());
}

#[test]
fn gradients_are_clipped_as_by_pytorch() {
    let torch = torch();
    for dtype in [DType::F32, DType::F64] {
        for most in [0.5, 100.0] {
            let vars = variables(dtype);
            let gradient = |k: usize, var: &Var| numbers(var.dims(), k + 5, dtype, 64.0);
            let mut grads = store(vars.iter().enumerate().map(|(k, var)| (var, gradient(k, var))));
            let norm = clip_grad_norm(&mut grads, &vars, most).unwrap();
            let key = format!("clip.{most:?}.{dtype:?}");
            let expected = values(&torch[&format!("{key}.norm")])[0];
            assert!(ulps(values(&norm)[0], expected, dtype) <= 4.0, "{key}");
            for (k, var) in vars.iter().enumerate() {
                assert_torch(grads.get(var).unwrap(), &torch[&format!("{key}.{k}")], 4.0, &key);
            }
            // In any order, and twice.
            let mut others = store(vars.iter().enumerate().map(|(k, var)| (var, gradient(k, var))));
            let order = [2, 0, 1, 0, 2].map(|k| vars[k].clone());
            assert_eq!(values(&clip_grad_norm(&mut others, &order, most).unwrap()), values(&norm));
            for var in &vars {
                assert_eq!(bits(grads.get(var).unwrap()), bits(others.get(var).unwrap()));
            }
        }
    }
}

#[test]
fn gradients_are_clamped() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let w = Var::zeros(5, dtype, device()).unwrap();
        let grad = Tensor::new(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.25, -3.0], device()).unwrap();
        let mut grads = store([(&w, grad.to_dtype(dtype).unwrap())]);
        clip_grad_value(&mut grads, std::slice::from_ref(&w), 0.5).unwrap();
        let found = values(grads.get(&w).unwrap());
        assert!(found[0].is_nan() && found[1..] == [0.5, -0.5, 0.25, -0.5], "{found:?}");
        for wrong in [-1.0, f64::NAN] {
            assert!(clip_grad_value(&mut grads, std::slice::from_ref(&w), wrong).is_err());
            assert!(clip_grad_norm(&mut grads, std::slice::from_ref(&w), wrong).is_err());
        }
    }
}

/// What `Sam` remembers of a gradient is not clipped with it.
#[test]
fn clipping_leaves_the_memory_of_a_sam_alone() {
    let w = Var::new(&[3f64, 4.], device()).unwrap();
    let sam = Sam::new(0.5).direction(sam_runtime::variants::Direction::PreviousGradient);
    let names = map([("w", &w)]);
    let loss = sam.loss(|| w.sqr()?.sum_all()).unwrap();
    let before = sam.to_bytes(&names).unwrap();
    let mut grads = sam_runtime::nn::backward(&loss).unwrap();
    clip_grad_norm(&mut grads, std::slice::from_ref(&w), 1e-3).unwrap();
    clip_grad_value(&mut grads, &[w], 1e-6).unwrap();
    assert_eq!(sam.to_bytes(&names).unwrap(), before);
}

#[test]
fn schedules_are_those_of_pytorch() {
    let torch = torch();
    let cycle = OneCycle { steps: 61, ..OneCycle::default() };
    let linear = OneCycle { linear: true, pct_start: 0.4, div_factor: 10.0, final_div_factor: 100.0, ..cycle };
    for (name, schedule) in [
        ("constant", LrSchedule::constant(0.2)),
        ("linear", LrSchedule::linear(0.2, 40, 0.25)),
        ("cosine", LrSchedule::cosine(0.2, 60, 0.1)),
        ("step", LrSchedule::step(0.2, 7, 0.5)),
        ("multi-step", LrSchedule::milestones(0.2, [10, 30, 31], 0.1)),
        ("warm-step", LrSchedule::step(0.2, 7, 0.5).warm_up(5)),
        ("warm-cosine", LrSchedule::cosine(0.2, 50, 0.0).warm_up(10)),
        ("one-cycle", LrSchedule::one_cycle(0.2, cycle)),
        ("one-cycle-linear", LrSchedule::one_cycle(0.2, linear)),
        ("one-cycle-three", LrSchedule::one_cycle(0.2, OneCycle { three_phase: true, ..cycle })),
    ] {
        for (step, expected) in (0..).zip(values(&torch[&format!("lr.{name}")])) {
            let found = schedule.lr(step);
            assert!((found - expected).abs() <= 1e-12 * 0.2, "{name}, step {step}: {found} and {expected}");
        }
        // Beyond the end it stays there.
        assert_eq!(schedule.lr(u64::MAX), schedule.lr(u64::MAX - 1), "{name}");
    }
    let inverse = LrSchedule::inverse_sqrt(0.2, 16).warm_up(16);
    for step in 16..80u64 {
        assert!((inverse.lr(step) - 0.2 * (16.0 / step as f64).sqrt()).abs() < 1e-15);
    }
    let ramp = LrSchedule::linear(0.2, 10, 0.0).ramp_up(4.0);
    assert!((ramp.lr(1) - 0.2 * 0.9 * 0.4).abs() < 1e-15 && (ramp.lr(5) - 0.1).abs() < 1e-15);
    for nothing in [LrSchedule::cosine(0.2, 0, 0.5), LrSchedule::linear(0.2, 0, 0.5)] {
        assert!((nothing.lr(0) - 0.1).abs() < 1e-15);
    }
    assert_eq!(LrSchedule::step(0.2, 0, 0.5).lr(9), 0.2);
}

#[test]
fn averages_follow_and_give_back() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let w = Var::from_tensor(&numbers(&[40], 1, dtype, 64.0)).unwrap();
        let mut ema = Ema::new(vec![w.clone(), w.clone()], 0.75).unwrap().warm_up();
        let mut expected = values(&w);
        for step in 0..12 {
            w.set(&numbers(&[40], step, dtype, 64.0)).unwrap();
            ema.update().unwrap();
            let decay = 0.75f64.min((1.0 + step as f64) / (10.0 + step as f64));
            for (a, w) in expected.iter_mut().zip(values(&w)) {
                *a = decay * *a + (1.0 - decay) * w;
            }
        }
        let (own, tolerance) = (bits(&w), tolerance(dtype));
        let close = |found: Vec<f64>| found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < tolerance);
        let wide = if dtype == DType::F64 { dtype } else { DType::F32 };
        assert_eq!(ema.averages().map(|(_, average)| average.dtype()).collect::<Vec<_>>(), [wide]);
        assert!(ema.apply(|| Ok::<_, candle_core::Error>(close(values(&w)))).unwrap());
        assert_eq!(bits(&w), own);
        assert!(ema.apply(|| w.to_vec2::<f32>()).is_err());
        let panicking = std::panic::AssertUnwindSafe(|| ema.apply(|| -> candle_core::Result<()> { panic!("inside") }));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(bits(&w), own);
        ema.copy_to_vars().unwrap();
        assert!(close(values(&w)) && ema.steps() == 12);
        ema.update().unwrap();
    }
    assert!(Ema::new(vec![], 1.5).is_err() && Ema::new(vec![], f64::NAN).is_err());
}

/// All that a run has besides its weights.
struct Run {
    names: VarMap,
    vars: Vec<Var>,
    adamw: AdamW,
    sgd: Sgd,
    ema: Ema,
    scheduler: LrScheduler,
    scaler: GradScaler,
}

impl Run {
    fn new(dtype: DType) -> Self {
        let vars = variables(dtype);
        let names = map(["a", "b", "c"].into_iter().zip(&vars));
        let adamw = AdamW::with_groups(decay_groups(&map([("a", &vars[0]), ("b", &vars[1])])), PARAMS.clone()).unwrap();
        let sgd = Sgd::new(vars[2..].to_vec(), ParamsSgd { lr: 0.1, ..Default::default() }).unwrap();
        let ema = Ema::new(vars.clone(), 0.9).unwrap().warm_up();
        let scheduler = LrScheduler::new(LrSchedule::cosine(0.1, 10, 0.0).warm_up(2));
        Self { names, vars, adamw, sgd, ema, scheduler, scaler: GradScaler::new(8.0, 2).unwrap() }
    }

    fn step(&mut self) {
        let loss = || {
            let square = |var: &Var| var.to_dtype(DType::F32)?.sqr()?.sum_all();
            self.vars.iter().try_fold(Tensor::new(0f32, device())?, |sum, var| sum + square(var)?)
        };
        let (_, mut grads) = self.scaler.backward(loss).unwrap().unwrap();
        clip_grad_norm(&mut grads, &self.vars, 1.0).unwrap();
        self.scheduler.set_next(&mut self.adamw);
        self.adamw.step(&grads).unwrap();
        self.sgd.step(&grads).unwrap();
        self.ema.update().unwrap();
    }

    fn bytes(&self) -> [Vec<u8>; 5] {
        let names = &self.names;
        [
            self.adamw.to_bytes(names).unwrap(),
            self.sgd.to_bytes(names).unwrap(),
            self.ema.to_bytes(names).unwrap(),
            self.scheduler.to_bytes().unwrap(),
            self.scaler.to_bytes().unwrap(),
        ]
    }

    fn load(&mut self, kind: usize, bytes: &[u8]) -> candle_core::Result<()> {
        match kind {
            0 => self.adamw.load_bytes(&self.names, bytes),
            1 => self.sgd.load_bytes(&self.names, bytes),
            2 => self.ema.load_bytes(&self.names, bytes),
            3 => self.scheduler.load_bytes(bytes),
            _ => self.scaler.load_bytes(bytes),
        }
    }
}

#[test]
fn a_resumed_run_has_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let mut whole = Run::new(dtype);
        (0..7).for_each(|_| whole.step());

        let mut first = Run::new(dtype);
        (0..4).for_each(|_| first.step());
        first.names.save(file("weights")).unwrap();
        first.adamw.save(&first.names, file("adamw")).unwrap();
        first.sgd.save(&first.names, file("sgd")).unwrap();
        first.ema.save(&first.names, file("ema")).unwrap();
        first.scheduler.save(file("lr")).unwrap();
        first.scaler.save(file("scaler")).unwrap();

        let mut second = Run::new(dtype);
        second.names.load(file("weights")).unwrap();
        second.adamw.load(&second.names, file("adamw")).unwrap();
        second.sgd.load(&second.names, file("sgd")).unwrap();
        second.ema.load(&second.names, file("ema")).unwrap();
        second.scheduler.load(file("lr")).unwrap();
        second.scaler.load(file("scaler")).unwrap();
        (0..3).for_each(|_| second.step());
        for (a, b) in whole.vars.iter().zip(&second.vars) {
            assert_eq!(bits(a), bits(b), "{dtype:?}");
        }
        assert_eq!(whole.bytes(), second.bytes());
    }
}

#[test]
fn what_is_wrong_is_refused_and_changes_nothing() {
    let mut run = Run::new(DType::F32);
    (0..2).for_each(|_| run.step());
    let bytes = run.bytes();
    for kind in 0..5 {
        for (other, bytes) in bytes.iter().enumerate().filter(|(other, _)| *other != kind) {
            let error = run.load(kind, bytes).unwrap_err().to_string();
            assert!(
                error.contains("expected the") && error.contains("found a file of kind"),
                "{kind}, {other}: {error}"
            );
        }
        assert!(run.load(kind, &bytes[kind][..bytes[kind].len() - 1]).is_err());
    }
    assert_eq!(run.bytes(), bytes);

    let labels =
        |kind: &str| HashMap::from([("kind".to_owned(), kind.to_owned()), ("version".to_owned(), "1".to_owned())]);
    let file = |kind: &str, tensors: Vec<(&str, Tensor)>| {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(&Device::Cpu).unwrap()));
        safetensors::serialize(tensors, Some(labels(kind))).unwrap()
    };
    let of = |dtype| numbers(&[48], 3, dtype, 64.0);
    let one = |n: i64| Tensor::new(n, device()).unwrap();
    let squares = of(DType::F32).sqr().unwrap();
    let moments = |first: Tensor, second: Tensor, steps: Tensor| {
        vec![("first.a", first), ("second.a", second), ("steps.a", steps)]
    };
    let adamw = "sam-runtime adamw moments";
    for (tensors, words) in [
        (moments(of(DType::F64), squares.clone(), one(1)), "moment of `a` is F64"),
        (moments(numbers(&[4, 12], 3, DType::F32, 64.0), squares.clone(), one(1)), "moment of `a` has shape [4, 12]"),
        (moments((of(DType::F32) * f64::NAN).unwrap(), squares.clone(), one(1)), "moment of `a` is not finite"),
        (moments(of(DType::F32), of(DType::F32), one(1)), "second moment of `a` has -"),
        (moments(of(DType::F32), squares.clone(), one(-1)), "steps of `a`"),
        (moments(of(DType::F32), squares.clone(), of(DType::F32)), "steps of `a`"),
        (vec![("first.a", of(DType::F32))], "moments of `a` are incomplete"),
        (vec![("first.c", numbers(&[16], 3, DType::F32, 64.0))], "`c` belongs to no variable"),
        (vec![("first.d", of(DType::F32))], "`d` belongs to no variable"),
        (vec![("third.a", of(DType::F32))], "found `third.a`"),
        (vec![("a", of(DType::F32))], "found `a`"),
    ] {
        let error = run.load(0, &file(adamw, tensors)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}, expected {words}");
    }
    let ema = "sam-runtime ema";
    for (tensors, words) in [
        (vec![("average.a", of(DType::F32))], "no `steps`"),
        (vec![("steps", one(1)), ("average.a", of(DType::F32))], "there is no average of `"),
        (vec![("steps", one(1)), ("average.a", of(DType::F64))], "average of `a` is F64"),
        (vec![("steps", one(1)), ("average.d", of(DType::F32))], "`d` belongs to no variable"),
    ] {
        let error = run.load(2, &file(ema, tensors)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}, expected {words}");
    }
    let mut other = LrScheduler::new(LrSchedule::constant(0.1));
    let error = other.load_bytes(&bytes[3]).unwrap_err().to_string();
    assert!(error.contains("another schedule"), "{error}");
    let scaler = "sam-runtime grad scaler";
    let scale = |scale: f64| vec![("scale", Tensor::new(scale, device()).unwrap()), ("good steps", one(0))];
    for wrong in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
        assert!(run.load(4, &file(scaler, scale(wrong))).is_err());
    }
    assert!(run.load(4, &file(scaler, vec![("scale", of(DType::F32))])).is_err());
    assert_eq!(run.bytes(), bytes);
}

#[test]
fn the_scale_is_halved_and_doubled() {
    let w = Var::new(&[1f32, 2.], device()).unwrap();
    let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd { lr: 0.0, momentum: 0.0, ..Default::default() }).unwrap();
    let scaler = GradScaler::new(1024.0, 3).unwrap();
    // In f16 the gradient of the loss is the scale, and its product with 100 has to be below 65520.
    let loss = || (w.to_dtype(DType::F16)? * 100.0)?.sum_all()?.to_dtype(DType::F32);
    assert!(scaler.step(&mut sgd, loss).unwrap().is_none());
    assert_eq!(scaler.scale(), 512.0);
    let mut scales = Vec::new();
    for _ in 0..5 {
        scales.push(scaler.step(&mut sgd, loss).unwrap().map(|_| scaler.scale()));
    }
    assert_eq!(scales, [Some(512.0), Some(512.0), Some(1024.0), None, Some(512.0)]);

    // Whatever the scale: that is told in the end, not skipped forever.
    let error = (0..100).find_map(|_| scaler.step(&mut sgd, || w.sum_all()? * f64::NAN).err()).unwrap().to_string();
    assert!(error.contains("diverged"), "{error}");
    assert!(GradScaler::new(0.0, 1).is_err() && GradScaler::new(2.0, 0).is_err());
}

/// Gradients that f16 would round to zero, in both passes, and with an ε̂ that has no norm to hide the scale.
#[test]
fn a_scaled_step_is_the_step_of_the_loss_itself() {
    // A gradient of 2⁻²⁶ or so, below what f16 has.
    let body = |w: &Var, dtype: DType| -> candle_core::Result<Tensor> {
        let x = (w.to_dtype(dtype)? * 2f64.powi(-10))?;
        (x.sqr()?.sum_all()?.to_dtype(DType::F32)? * 2f64.powi(-6))?.to_dtype(DType::F32)
    };
    for unnormalized in [false, true] {
        let sam = || if unnormalized { Sam::new(2f64.powi(20)).unnormalized() } else { Sam::new(0.5) };
        let gradient = |sam: &Sam, dtype: DType, scaler: &GradScaler| {
            let w = Var::new(&[1f32, -2., 0.5], device()).unwrap();
            let (_, grads) = scaler.backward(|| sam.loss(|| body(&w, dtype))).unwrap().unwrap();
            values(grads.get(&w).unwrap())
        };
        let expected = gradient(&sam(), DType::F32, &GradScaler::default());
        let scaler = GradScaler::new(2f64.powi(14), 1000).unwrap();
        let found = gradient(&sam().grad_scaler(&scaler), DType::F16, &scaler);
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= 4e-3 * b.abs(), "{unnormalized}: {found:?}, expected {expected:?}");
        }
        assert_eq!(scaler.scale(), 2f64.powi(14));
        let lost = gradient(&sam(), DType::F16, &scaler);
        assert!(lost.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.1 * b.abs()), "{lost:?}");
    }
}

/// With variables in f16 as well, whose gradients overflow in the first pass, and in the second.
#[test]
fn an_overflow_in_either_pass_leaves_the_step_out() {
    if is_for_the_cpu("gradients are not checked between the passes") {
        return;
    }
    for dtype in [DType::F32, DType::F16] {
        for at in [1, 2] {
            let w =
                Var::from_tensor(&Tensor::new(&[1f32, -2., 0.5], device()).unwrap().to_dtype(dtype).unwrap()).unwrap();
            let mut adamw = AdamW::new_lr(vec![w.clone()], 0.1).unwrap();
            let scaler = GradScaler::new(64.0, 1000).unwrap();
            let sam = Sam::f_sam().grad_scaler(&scaler);
            let names = map([("w", &w)]);
            let calls = std::cell::Cell::new(0);
            let step = |adamw: &mut AdamW, overflows: bool| {
                let body = || {
                    calls.set(calls.get() + 1);
                    // The backward pass multiplies by 2^12 in f16: 2^18 in all.
                    let factor = if overflows && calls.get() == at { 4096.0 } else { 1.0 };
                    let x = (w.to_dtype(DType::F16)? * factor)?.to_dtype(DType::F32)?;
                    x.sum_all()? + w.to_dtype(DType::F32)?.sqr()?.sum_all()?
                };
                scaler.step(adamw, || sam.loss(body)).unwrap()
            };
            let before = (bits(&w), format!("{adamw:?}"), sam.to_bytes(&names).unwrap());
            assert!(step(&mut adamw, true).is_none(), "{dtype:?}, pass {at}");
            assert_eq!((calls.get(), scaler.scale()), (at, 32.0));
            assert_eq!((bits(&w), format!("{adamw:?}"), sam.to_bytes(&names).unwrap()), before);
            let loss = step(&mut adamw, false).unwrap();
            assert!(values(&loss)[0].is_finite() && bits(&w) != before.0);
            assert_eq!(scaler.scale(), 32.0);
        }
    }
}
