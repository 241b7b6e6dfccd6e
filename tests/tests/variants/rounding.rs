//! Where numbers are as small, as large or as equal as they can be.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, SGD};
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::variants::{Combination, Direction, Mask, Metric, Scope};
use sam_tests::{copy, device, gradient, is_for_the_cpu, values};

fn square_of(w: &Var) -> impl Fn() -> Result<Tensor> {
    let w = w.clone();
    move || w.sqr()?.sum_all()
}

fn gradient_of(sam: &Sam, w: &Var) -> Vec<f64> {
    gradient(&sam.loss(square_of(w)).unwrap(), std::slice::from_ref(w)).concat()
}

/// The weights in the last pass, less those before.
fn perturbation(sam: &Sam, vars: &[Var], loss: impl Fn() -> Result<Tensor>) -> Vec<Vec<f64>> {
    let all = || vars.iter().map(|var| values(var)).collect::<Vec<_>>();
    let (home, there) = (all(), RefCell::new(Vec::new()));
    let outcome = sam.loss(|| {
        there.replace(all());
        loss()
    });
    outcome.unwrap();
    let there = there.into_inner();
    there.iter().zip(&home).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect()).collect()
}

/// ∇L(w) twice at the same w: m is the gradient, so that nothing is left to follow.
#[test]
fn f_sam_of_a_gradient_that_does_not_change_is_the_plain_step() {
    let w = Var::new(&[3f64, 4.], device()).unwrap();
    let sam = Sam::f_sam();
    let first = gradient_of(&sam, &w);
    assert!((first[0] - 2. * 3.12).abs() < 1e-12 && (first[1] - 2. * 4.16).abs() < 1e-12, "{first:?}");
    assert_eq!(gradient_of(&sam, &w), [6., 8.]);
    // Nor later, when the mean has been rounded many times: at numbers that are not round, in each norm.
    for dtype in [DType::F32, DType::F64] {
        let w = copy(&sam_tests::tensor(&[50], dtype, 4));
        let plain = gradient(&square_of(&w)().unwrap(), std::slice::from_ref(&w)).concat();
        for p in [1., 2., f64::INFINITY] {
            for lambda in [0.6, 0.9, 0.99] {
                let sam = Sam::new(0.2).p(p).direction(Direction::MinusEma { sigma: 1., lambda });
                gradient_of(&sam, &w);
                for _ in 0..200 {
                    assert_eq!(gradient_of(&sam, &w), plain, "{dtype:?}, p = {p}, lambda = {lambda}");
                }
            }
        }
    }
}

/// g and g₂ are parallel: what is left of g₂ is rounding.
#[test]
fn look_sam_of_parallel_gradients_is_the_plain_step() {
    let w = Var::new(&[3f64], device()).unwrap();
    let sam = Sam::look_sam();
    assert!((gradient_of(&sam, &w)[0] - 6.2).abs() < 1e-12);
    assert_eq!(gradient_of(&sam, &w), [6.]);
    for dtype in [DType::F32, DType::F64] {
        for seed in 0..20 {
            let w = copy(&sam_tests::tensor(&[300], dtype, seed));
            let plain = gradient(&square_of(&w)().unwrap(), std::slice::from_ref(&w)).concat();
            let sam = Sam::look_sam();
            gradient_of(&sam, &w);
            assert_eq!(gradient_of(&sam, &w), plain, "{dtype:?}, seed {seed}");
        }
    }
}

/// A part that is small, but larger than rounding, counts: L = ½ (x² + (1 + 1e-6) y²) in f64.
#[test]
fn look_sam_keeps_small_parts() {
    let w = Var::new(&[3f64, 4.], device()).unwrap();
    let curvature = Tensor::new(&[1., 1. + 1e-6], device()).unwrap();
    let loss = || -> Result<Tensor> { (w.sqr()? * &curvature)?.sum_all()? * 0.5 };
    let sam = Sam::look_sam();
    let of = || gradient(&sam.loss(loss).unwrap(), std::slice::from_ref(&w)).concat();
    let second = of();
    let g = [3., 4. * (1. + 1e-6)];
    let found = of();
    let c = (g[0] * second[0] + g[1] * second[1]) / (g[0] * g[0] + g[1] * g[1]);
    let across = [second[0] - c * g[0], second[1] - c * g[1]];
    let scale = 0.7 * f64::hypot(g[0], g[1]) / f64::hypot(across[0], across[1]);
    for i in 0..2 {
        assert!((found[i] - (g[i] + scale * across[i])).abs() < 1e-5, "{found:?}");
    }
}

/// ‖ε̂‖ = ρ with every piece, for gradients that f32 cannot hold, beside variables in f32.
#[test]
fn small_gradients_in_f64_beside_f32() {
    if is_for_the_cpu("f64 beside f32 is for the CPU") {
        return;
    }
    for scale in [1e-200, 1e-60, 1e-50, 1e-30, 1., 1e30] {
        let vars = [
            Var::new(&[1f32, 2.], device()).unwrap(),
            Var::new(&[3f64, -4., 5.], device()).unwrap(),
            Var::new(&[0.5f32], device()).unwrap(),
        ];
        let slope = Tensor::new(&[3f64, 4., -5.], device()).unwrap();
        // f32 variables have a gradient of 0, where theirs is too small.
        let loss = || -> Result<Tensor> {
            let [a, b, c] = &vars;
            let f32s = (a.sum_all()?.to_dtype(DType::F64)? + c.sum_all()?.to_dtype(DType::F64)?)?;
            ((b.as_tensor() * &slope)?.sum_all()? + f32s)? * scale
        };
        for p in [1., 1.5, 2., 3., f64::INFINITY] {
            for (name, sam) in [
                ("plain", Sam::new(0.3).p(p)),
                ("mask", Sam::new(0.3).p(p).mask(Mask::Random { keep: 1. })),
                ("largest", Sam::new(0.3).p(p).mask(Mask::TopK { sparsity: 0., every: 3 })),
                ("Fisher", Sam::new(0.3).p(p).metric(Metric::Fisher { eta: 0. })),
            ] {
                let e = perturbation(&sam, &vars, loss);
                let norm = sam_tests::norm(p, e.into_iter().flatten());
                assert!((norm - 0.3).abs() < 1e-6, "{name}, p = {p}, scale {scale}: {norm}");
            }
        }
        // T = ‖w‖ for each variable
        let e = perturbation(&Sam::new(0.3).metric(Metric::LayerNormalized).scope(Scope::PerVariable), &vars, loss);
        let b = e[1].iter().map(|e| e * e).sum::<f64>().sqrt();
        assert!((b - 0.3 * 50f64.sqrt()).abs() < 1e-6, "scale {scale}: {b}");
    }
}

/// F⁻¹g / √(gᵀF⁻¹g) where η g² overflows: F⁻¹g = 1 / (η g), so that ε̂ = ρ / (√n η g) √η.
#[test]
fn fisher_of_large_gradients() {
    for (dtype, scale) in [(DType::F32, 1e25), (DType::F64, 1e200)] {
        let w = Var::zeros(2, dtype, device()).unwrap();
        let slope = Tensor::new(&[3f64, 4.], device()).unwrap().affine(scale, 0.).unwrap().to_dtype(dtype).unwrap();
        let loss = || -> Result<Tensor> { (w.as_tensor() * &slope)?.sum_all() };
        let e = perturbation(&Sam::new(1e20).metric(Metric::Fisher { eta: 4. }), std::slice::from_ref(&w), loss);
        for (e, g) in e[0].iter().zip([3., 4.]) {
            let expected = 1e20 / (2f64.sqrt() * 2. * g * scale);
            assert!((e / expected - 1.).abs() < 1e-5, "{dtype:?}: {e}, expected {expected}");
        }
    }
}

/// Sums over many elements are in f64: ‖ε̂‖ = ρ ‖w‖.
#[test]
fn layer_metric_over_ten_million_elements() {
    if is_for_the_cpu("a sum on the CPU") {
        return;
    }
    let n = 10_000_000;
    let w = Var::from_tensor(&(Tensor::ones(n, DType::F32, device()).unwrap() * 0.1).unwrap()).unwrap();
    let (home, there) = (values(&w), RefCell::new(Vec::new()));
    let sam = Sam::new(0.5).metric(Metric::LayerNormalized);
    let outcome = sam.loss(|| -> Result<Tensor> {
        there.replace(values(&w));
        w.sum_all()
    });
    outcome.unwrap();
    let norm = there.borrow().iter().zip(&home).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let expected = 0.5 * home.iter().map(|w| w * w).sum::<f64>().sqrt();
    // f32 variables hold w + ε̂ to 6e-8 of w.
    assert!((norm / expected - 1.).abs() < 1e-6, "{norm}, expected {expected}");
}

/// A variable without elements is nothing to perturb, whatever the piece.
#[test]
fn empty_variables() {
    if is_for_the_cpu("candle launches kernels without blocks for empty tensors") {
        return;
    }
    for shape in [vec![0usize], vec![2, 0]] {
        for variant in crate::promises::all() {
            let run = |empty: bool| {
                let net = crate::reference::net();
                let nothing = Var::zeros(shape.clone(), DType::F64, device()).unwrap();
                let sam = (variant.make)(&net);
                let mut found = Vec::new();
                for number in 0..6 {
                    let (x, y) = crate::reference::batch_of(number);
                    let loss = sam.loss(|| {
                        let loss = net.loss(&x, &y)?;
                        if empty { loss + nothing.sqr()?.sum_all()? } else { Ok(loss) }
                    });
                    let loss = loss.unwrap_or_else(|error| panic!("{}: {error}", variant.name));
                    if empty {
                        let grads = loss.backward().unwrap();
                        assert!(grads.get(&nothing).is_none_or(|grad| grad.elem_count() == 0));
                    }
                    found.push(gradient(&loss, &net.vars));
                    sam.apply_decoupled(0.).unwrap();
                }
                found
            };
            // Which coordinates a random mask keeps depends on how many variables there are.
            if variant.name == "esam" {
                run(true);
                continue;
            }
            for (a, b) in run(true).concat().concat().iter().zip(run(false).concat().concat()) {
                assert!((a - b).abs() < 1e-9, "{}", variant.name);
            }
        }
        // and alone
        let nothing = Var::zeros(shape.clone(), DType::F32, device()).unwrap();
        let all = [Sam::new(0.1), Sam::fisher(), Sam::layer_sam(), Sam::sparse_sam(2), Sam::esam(), Sam::look_sam()];
        for sam in all.into_iter().chain([Sam::random_direction(0.1, [nothing.clone()]), Sam::f_sam(), Sam::vasso()]) {
            sam.loss(square_of(&nothing)).unwrap();
            sam.loss(square_of(&nothing)).unwrap();
        }
    }
}

/// 10⁶ ones in bf16, ρ = 0.05: no coordinate would move. An error that says so, and what to do.
#[test]
fn a_perturbation_that_bf16_cannot_hold() {
    if is_for_the_cpu("values are not compared on other devices") {
        return;
    }
    let ones = |dtype| Var::ones(1_000_000, dtype, &Device::Cpu).unwrap();
    for sam in [Sam::new(0.05), Sam::new(0.05).mask(Mask::Random { keep: 0.5 }), Sam::fisher()] {
        let w = ones(DType::BF16);
        let wide = || -> Result<Tensor> { w.to_dtype(DType::F32)?.sqr()?.mean_all() };
        let error = sam.loss(wide).unwrap_err().to_string();
        assert!(error.contains("BF16") && error.contains("100 %") && error.contains("f32"), "{error}");
        assert!(values(&w).iter().all(|w| *w == 1.));
        // The way out.
        let w = ones(DType::F32);
        let narrow = || -> Result<Tensor> { w.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.sqr()?.mean_all() };
        sam.loss(narrow).unwrap();
    }
    // Gaussian weights as He draws them for a layer of 1000 inputs, with a gradient of the usual size in each coordinate.
    let w = Tensor::randn(0f32, (2f32 / 1000.).sqrt(), (1000, 1000), &Device::Cpu).unwrap();
    let g = Tensor::randn(0f32, 1., (1000, 1000), &Device::Cpu).unwrap();
    let w = Var::from_tensor(&w.to_dtype(DType::BF16).unwrap()).unwrap();
    let loss = || -> Result<Tensor> { (w.to_dtype(DType::F32)? * &g)?.mean_all() };
    assert!(Sam::new(0.05).loss(loss).unwrap_err().to_string().contains("cannot hold"));
    // A perturbation of the weights' own size is held.
    let loss = Sam::new(20.).loss(loss).unwrap();
    assert!(loss.backward().unwrap().get(&w).is_some());
}

/// WSAM's second step, w = 3, L = w²: g = 6, g₂ = 6.1, lr = 0.1.
#[test]
fn a_scaled_loss_scales_the_whole_of_decoupled_wsam() {
    type Step = fn(&Var, &Tensor);
    let stock: Step = |w, loss| SGD::new(vec![w.clone()], 0.1).unwrap().backward_step(loss).unwrap();
    let own: Step = |w, loss| {
        let params = ParamsSgd { lr: 0.1, momentum: 0., nesterov: false, weight_decay: 0. };
        Sgd::new(vec![w.clone()], params).unwrap().backward_step(loss).unwrap();
    };
    for (name, step) in [("candle's", stock), ("ours", own)] {
        for factor in [None, Some(1.), Some(0.5), Some(0.), Some(-2.)] {
            for dtype in [DType::F32, DType::F64] {
                let w = Var::from_tensor(&Tensor::new(3f64, device()).unwrap().to_dtype(dtype).unwrap()).unwrap();
                let sam = Sam::wsam();
                let loss = sam.loss(|| w.sqr()).unwrap();
                step(&w, &factor.map_or(Ok(loss.clone()), |factor| &loss * factor).unwrap());
                sam.apply_decoupled(0.1).unwrap();
                let expected = 3. - 0.1 * factor.unwrap_or(1.) * (6. + 9. * 0.1);
                assert!((values(&w)[0] - expected).abs() < 1e-5, "{name}, {factor:?}: {w}, expected {expected}");
            }
        }
    }
    // A step that was left out.
    let w = Var::new(3f64, device()).unwrap();
    let sam = Sam::wsam();
    drop(sam.loss(|| w.sqr()).unwrap());
    sam.apply_decoupled(0.1).unwrap();
    assert_eq!(values(&w), [3.]);
    // Scaled for the log, then stepped as it is: the last backward pass counts.
    let w = Var::new(3f64, device()).unwrap();
    let sam = Sam::wsam();
    let loss = sam.loss(|| w.sqr()).unwrap();
    (&loss * 7.).unwrap().backward().unwrap();
    stock(&w, &loss);
    sam.apply_decoupled(0.1).unwrap();
    assert!((values(&w)[0] - 2.31).abs() < 1e-12, "{w}");
    // Adam takes the first step of length lr, the rest goes with the loss.
    let w = Var::new(3f64, device()).unwrap();
    let sam = Sam::wsam();
    let config = ParamsAdamW { lr: 0.1, weight_decay: 0., ..Default::default() };
    let loss = (sam.loss(|| w.sqr()).unwrap() * 0.5).unwrap();
    AdamW::new(vec![w.clone()], config).unwrap().backward_step(&loss).unwrap();
    sam.apply_decoupled(0.1).unwrap();
    assert!((values(&w)[0] - (2.9 - 0.045)).abs() < 1e-6, "{w}");
    // and the factor of one step is not that of the next
    let loss = sam.loss(|| w.sqr()).unwrap();
    let before = values(&w)[0];
    stock(&w, &loss);
    sam.apply_decoupled(0.1).unwrap();
    assert!((values(&w)[0] - (before - 0.1 * (2. * before + 9. * 0.1))).abs() < 1e-12);
}

/// A step that is saved before it is finished has the factor in it.
#[test]
fn an_unfinished_step_of_wsam_is_saved_with_its_factor() {
    let file = std::env::temp_dir().join(format!("sam-factor-{}.safetensors", std::process::id()));
    let vars = candle_nn::VarMap::new();
    let w = vars.get((), "w", candle_nn::Init::Const(3.), DType::F64, device()).unwrap();
    let w = Var::from_tensor(&w).unwrap();
    let sam = Sam::wsam();
    let loss = sam.loss(|| w.sqr()).unwrap();
    (loss * 0.5).unwrap().backward().unwrap();
    sam.save(&vars, &file).unwrap();
    let resumed = Sam::wsam();
    resumed.load(&vars, &file).unwrap();
    std::fs::remove_file(file).unwrap();
    resumed.apply_decoupled(0.1).unwrap();
    assert!((values(&w)[0] - (3. - 0.045)).abs() < 1e-12, "{w}");
}

/// GSAM, WSAM and the others with a radius that is a schedule: it is asked once a step, and may ask back.
#[test]
fn a_schedule_runs_once_a_step() {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, OnceLock};

    let (calls, own) = (Arc::new(AtomicU64::new(0)), Arc::new(OnceLock::<Sam>::new()));
    let (counted, asked) = (Arc::clone(&calls), Arc::clone(&own));
    let sam = Sam::default().combination(Combination::Gsam { alpha: 0.4 }).rho_schedule(move |step| {
        counted.fetch_add(1, Ordering::Relaxed);
        // ρ = 0.5, and 0.25 once the loss has been seen to be above 20.
        let last = asked.get().and_then(Sam::last_stats);
        assert_eq!(last.is_some(), step > 0);
        if last.is_some_and(|last| last.loss().unwrap().unwrap() > 20.) { 0.25 } else { 0.5 }
    });
    own.set(sam).unwrap();
    let sam = own.get().unwrap();
    let w = sam_tests::three_four();
    // The same for a loss inside another one, and inside `plain`: no step, no call.
    sam_runtime::plain(|| sam.loss(square_of(&w)).unwrap());
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    let first = gradient_of(sam, &w);
    assert!((first[0] - 6.6).abs() < 1e-12, "{first:?}");
    let second = gradient_of(sam, &w);
    assert!((second[0] - 6.3).abs() < 1e-12, "{second:?}");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    sam.validate().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}
