//! What `sharpness` measures: against dense Hessians, closed forms and the formula of SAM; the weights are what they were.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use nalgebra::{DMatrix, SymmetricEigen};
use sam_runtime::sharpness::{HessianMethod, Landscape, Spectrum, WeightVector, Worst};
use sam_runtime::{Error, Sam, nn, plain, sam};
use sam_tests::{Net, batch, bits, copy, device, equation_2, gradient, numbers, values};

/// Every column by central differences of f64 gradients.
fn dense(net: &Net, x: &Tensor, y: &Tensor) -> DMatrix<f64> {
    const STEP: f64 = 1e-5;
    let n = net.vars.iter().map(|var| var.elem_count()).sum();
    let mut columns = Vec::new();
    for var in &net.vars {
        for i in 0..var.elem_count() {
            let there = |by: f64| {
                let mut moved = values(var);
                moved[i] += by;
                let before = var.as_detached_tensor().copy().unwrap();
                var.set(&Tensor::from_vec(moved, var.shape(), device()).unwrap()).unwrap();
                let found = gradient(&net.loss(x, y).unwrap(), &net.vars).concat();
                var.set(&before).unwrap();
                found
            };
            columns.extend(there(STEP).iter().zip(there(-STEP)).map(|(a, b)| (a - b) / (2.0 * STEP)));
        }
    }
    let found = DMatrix::from_vec(n, n, columns);
    (&found + found.transpose()) / 2.0
}

fn eigenvalues(matrix: &DMatrix<f64>) -> Vec<f64> {
    let mut found: Vec<f64> = SymmetricEigen::new(matrix.clone()).eigenvalues.iter().copied().collect();
    found.sort_by(|a, b| b.total_cmp(a));
    found
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// A network whose Hessian is known, in two batches of unequal size.
struct Known {
    net: Net,
    batches: [(Tensor, Tensor); 2],
    hessian: DMatrix<f64>,
}

impl Known {
    fn new() -> Self {
        let net = Net::new(DType::F64, 5);
        let (x, y) = batch(12, DType::F64, 7);
        let hessian = dense(&net, &x, &y);
        let part = |start, len| (x.narrow(0, start, len).unwrap(), y.narrow(0, start, len).unwrap());
        Self { net, batches: [part(0, 8), part(8, 4)], hessian }
    }

    fn landscape(&self) -> Landscape<'_> {
        let loss = |i: usize| self.net.loss(&self.batches[i].0, &self.batches[i].1);
        Landscape::over_batches(self.net.vars.to_vec(), [8, 4], loss)
    }
}

fn checks_against_the_dense_hessian(expected: HessianMethod, error: f64) {
    let known = Known::new();
    let mut landscape = known.landscape();
    let mut hessian = landscape.hessian().unwrap();
    match (hessian.method(), expected) {
        (HessianMethod::Differences { step }, HessianMethod::Differences { .. }) => assert!(step > 0.0),
        (found, expected) => assert_eq!(found, expected),
    }
    assert!(hessian.error() < error, "{}", hessian.error());

    let v = WeightVector::gaussian(known.net.vars.to_vec(), 3).unwrap();
    let n = v.values().len();
    let product = &known.hessian * nalgebra::DVector::from_column_slice(v.values());
    let size = product.norm();
    assert!(distance(hessian.product(&v).unwrap().values(), product.as_slice()) < error * size);

    let all = eigenvalues(&known.hessian);
    let found = hessian.spectrum(n, 1).unwrap();
    assert!((found.weights().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(distance(&found.values()[..8], &all[..8]) < error * all[0], "{:?} {:?}", found.values(), all);
    // Few products find the first ones, and say how well.
    let few = hessian.top_eigenpairs(3, 20, 1).unwrap();
    for (pair, expected) in few.iter().zip(&all) {
        assert!((pair.value - expected).abs() <= pair.residual + error * all[0]);
        assert!((pair.vector.norm() - 1.0).abs() < 1e-9);
        let product = hessian.product(&pair.vector).unwrap();
        let residual = product.plus(&pair.vector, -pair.value).unwrap().norm();
        assert!((residual - pair.residual).abs() < error * all[0], "{residual} {}", pair.residual);
    }
    let largest = hessian.power_iteration(1e-3, 200, 2).unwrap();
    assert!(largest.residual <= 1e-3 * largest.value.abs());
    assert!((largest.value - all[0]).abs() <= 2e-3 * all[0], "{} {}", largest.value, all[0]);

    let trace = hessian.trace(400, 4).unwrap();
    assert!((trace.mean - known.hessian.trace()).abs() < 4.0 * trace.standard_error, "{trace:?}");
    // The variance of ⟨v, H v⟩ is twice the sum of the squares beside the diagonal.
    let beside = known.hessian.norm_squared() - known.hessian.diagonal().norm_squared();
    let expected = (2.0 * beside / 400.0).sqrt();
    assert!((trace.standard_error / expected - 1.0).abs() < 0.2, "{} {expected}", trace.standard_error);
}

#[test]
fn by_differences_the_hessian_is_the_dense_one() {
    checks_against_the_dense_hessian(HessianMethod::Differences { step: 0.0 }, 1e-4);
}

/// candle reads the switch when a process starts.
fn in_a_process_that_keeps_the_graph(test: &str, check: impl FnOnce()) {
    if std::env::var_os("CANDLE_GRAD_DO_NOT_DETACH").is_some() {
        return check();
    }
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("CANDLE_GRAD_DO_NOT_DETACH", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn through_candles_graph_the_hessian_is_exact() {
    in_a_process_that_keeps_the_graph("through_candles_graph_the_hessian_is_exact", || {
        checks_against_the_dense_hessian(HessianMethod::Exact, 1e-7);
    });
}

/// The layers of `nn` end the graph of the gradient silently: that is noticed.
#[test]
fn layers_that_cannot_be_gone_through_twice_are_noticed() {
    in_a_process_that_keeps_the_graph("layers_that_cannot_be_gone_through_twice_are_noticed", || {
        let (vars, x) = (VarMap::new(), sam_tests::tensor(&[5, 4], DType::F64, 1));
        let vb = VarBuilder::from_varmap(&vars, DType::F64, device());
        let (first, second) = (nn::linear(4, 6, vb.pp("a")).unwrap(), nn::linear(6, 1, vb.pp("b")).unwrap());
        let loss = || second.forward(&first.forward(&x)?.gelu()?)?.sqr()?.mean_all();
        let mut landscape = Landscape::new(vars.all_vars(), loss);
        let hessian = landscape.hessian().unwrap();
        assert!(matches!(hessian.method(), HessianMethod::Differences { .. }), "{hessian:?}");
    });
}

/// The gradient of a network with ReLU has jumps, and differences with small steps are ruled by the few that they meet.
#[test]
fn differences_over_jumps_of_the_gradient_find_the_large_eigenvalues() {
    in_a_process_that_keeps_the_graph("differences_over_jumps_of_the_gradient_find_the_large_eigenvalues", || {
        let var = |shape: &[usize], seed| copy(&(sam_tests::tensor(shape, DType::F32, seed) * 2.0).unwrap());
        let vars = [var(&[128, 50], 1), var(&[128], 2), var(&[10, 128], 3), var(&[10], 4)];
        let [w1, b1, w2, b2] = &vars;
        let x = (sam_tests::tensor(&[500, 50], DType::F32, 5) * 7.0).unwrap();
        let y = Tensor::from_vec((0..500u32).map(|i| i * i % 10).collect::<Vec<_>>(), 500, device()).unwrap();
        let logits = |hidden: Tensor| hidden.matmul(&w2.t()?)?.broadcast_add(b2);
        let before = || x.matmul(&w1.t()?)?.broadcast_add(b1);
        let of_candle = || candle_nn::loss::cross_entropy(&logits(before()?.relu()?)?, &y);
        let of_nn = || candle_nn::loss::cross_entropy(&logits(nn::relu(&before()?)?)?, &y);
        let largest = |landscape: &mut Landscape<'_>| {
            let mut hessian = landscape.hessian().unwrap();
            (hessian.method(), hessian.spectrum(20, 0).unwrap().values()[0], hessian.trace(20, 0).unwrap())
        };
        let (exact, expected, trace) = largest(&mut Landscape::new(vars.clone(), of_candle));
        assert_eq!(exact, HessianMethod::Exact);
        let (differences, found, other) = largest(&mut Landscape::new(vars.clone(), of_nn));
        assert!(matches!(differences, HessianMethod::Differences { .. }));
        println!("{differences:?}: {found} {expected}, {other:?} {trace:?}");
        assert!((found / expected - 1.0).abs() < 0.1, "{differences:?}: {found} {expected}");
        let scatter = other.standard_error.hypot(trace.standard_error);
        assert!((other.mean - trace.mean).abs() < 3.0 * scatter, "{other:?} {trace:?}");
    });
}

/// L = ½ Σ a (w - c)², with its minimum at c.
struct Quadratic {
    a: Vec<f64>,
    w: Var,
}

impl Quadratic {
    fn new(a: &[f64], w: &[f64]) -> Self {
        Self { a: a.to_vec(), w: Var::new(w, device()).unwrap() }
    }

    fn landscape(&self) -> Landscape<'_> {
        Landscape::new([self.w.clone()], || {
            let a = Tensor::new(&self.a[..], device())?;
            (self.w.sqr()? * a)?.sum_all()? * 0.5
        })
    }

    fn loss(&self, w: &[f64]) -> f64 {
        self.a.iter().zip(w).map(|(a, w)| 0.5 * a * w * w).sum()
    }
}

#[test]
fn one_step_is_the_papers_sharpness() {
    let (net, (x, y)) = (Net::new(DType::F64, 5), batch(12, DType::F64, 7));
    let weights: Vec<Vec<f64>> = net.vars.iter().map(|var| values(var)).collect();
    let g = gradient(&net.loss(&x, &y).unwrap(), &net.vars);
    let here = values(&net.loss(&x, &y).unwrap())[0];
    for (p, eta) in [(2.0, None), (1.0, None), (1.5, None), (f64::INFINITY, None), (2.0, Some(0.01))] {
        let sam = Sam::new(0.1).p(p);
        let sam = if let Some(eta) = eta { sam.adaptive(eta) } else { sam };
        let mut landscape = Landscape::new(net.vars.to_vec(), || net.loss(&x, &y));
        let found = landscape.sharpness(&sam, 1).unwrap();
        let epsilon = equation_2(0.1, p, eta, &weights, &g).concat();
        assert!(distance(landscape.ascent(&sam).unwrap().values(), &epsilon) < 1e-12);
        let there = Net::new(DType::F64, 5);
        let mut moved = weights.concat().iter().zip(&epsilon).map(|(w, e)| w + e).collect::<Vec<_>>().into_iter();
        for var in &there.vars {
            let part: Vec<f64> = moved.by_ref().take(var.elem_count()).collect();
            var.set(&Tensor::from_vec(part, var.shape(), device()).unwrap()).unwrap();
        }
        let there = values(&there.loss(&x, &y).unwrap())[0];
        assert!((found.at_w - here).abs() < 1e-12 && (found.highest - there).abs() < 1e-12, "{p} {eta:?} {found:?}");
        // More steps find more.
        let more = landscape.sharpness(&sam, 10).unwrap();
        assert!(more.highest >= found.highest, "{p} {eta:?}");
    }
}

/// max ½ Σ a ε² over ‖ε‖ₚ ≤ ρ, near the minimum.
#[test]
fn many_steps_find_the_maximum_of_a_quadratic() {
    let (a, w) = ([5.0, 3.0, 1.0], [1e-6, 1e-6, 1e-6]);
    let quadratic = Quadratic::new(&a, &w);
    for (p, expected) in [(2.0, 0.5 * 0.04 * 5.0), (1.0, 0.5 * 0.04 * 5.0), (f64::INFINITY, 0.5 * 0.04 * 9.0)] {
        let found = quadratic.landscape().sharpness(&Sam::new(0.2).p(p), 50).unwrap();
        assert!((found.rise() - expected).abs() < 1e-5, "{p}: {} {expected}", found.rise());
    }
}

#[test]
fn m_sharpness_is_the_mean_over_the_batches() {
    let known = Known::new();
    let sam = Sam::new(0.1);
    let of = |i: usize| {
        let (x, y) = &known.batches[i];
        Landscape::new(known.net.vars.to_vec(), || known.net.loss(x, y)).sharpness(&sam, 3).unwrap()
    };
    let found = known.landscape().m_sharpness(&sam, 3).unwrap();
    let expected = [of(0), of(1)].map(Worst::rise);
    assert!((found.rise() - (2.0 * expected[0] + expected[1]) / 3.0).abs() < 1e-12);
    assert!(found.rise() >= known.landscape().sharpness(&sam, 3).unwrap().rise());
}

/// E ½ Σ a (ρ c z)² = ½ ρ² Σ a c².
#[test]
fn the_average_of_a_quadratic_is_its_trace() {
    let quadratic = Quadratic::new(&[5.0, 3.0, 1.0], &[0.1, -0.2, 0.4]);
    let near = |sam: &Sam, expected: f64| {
        let found = quadratic.landscape().average_sharpness(sam, 2000, 1).unwrap();
        assert!((found.mean - expected).abs() < 4.0 * found.standard_error, "{found:?} {expected}");
        assert!(found.standard_error < 0.1 * expected);
    };
    near(&Sam::new(0.3), 0.5 * 0.09 * 9.0);
    near(&Sam::new(0.3).adaptive(0.0), 0.5 * 0.09 * (5.0 * 0.01 + 3.0 * 0.04 + 0.16));
    let fisher = Sam::fisher();
    assert!(quadratic.landscape().average_sharpness(&fisher, 2, 1).unwrap_err().to_string().contains("metric"));
}

#[test]
fn slices_are_values_of_the_loss() {
    let quadratic = Quadratic::new(&[5.0, 3.0], &[1.0, 2.0]);
    let mut landscape = quadratic.landscape();
    let u = WeightVector::gaussian([quadratic.w.clone()], 1).unwrap();
    let v = WeightVector::gaussian([quadratic.w.clone()], 2).unwrap();
    let (x, y) = ([-1.0, 0.0, 0.5], [0.0, 2.0]);
    let plane = landscape.plane([&u, &v], &x, &y).unwrap();
    for (row, y) in plane.iter().zip(y) {
        for (found, x) in row.iter().zip(x) {
            let w: Vec<f64> = (0..2).map(|i| [1.0, 2.0][i] + x * u.values()[i] + y * v.values()[i]).collect();
            assert!((found - quadratic.loss(&w)).abs() < 1e-12);
        }
    }
    assert_eq!(landscape.line(&u, &x).unwrap(), plane[0]);
    assert_eq!(landscape.loss().unwrap().to_bits(), plane[0][1].to_bits());
    // From one checkpoint to another.
    let here = WeightVector::of_weights([quadratic.w.clone()]).unwrap();
    quadratic.w.set(&Tensor::new(&[3.0, -2.0], device()).unwrap()).unwrap();
    let there = WeightVector::of_weights([quadratic.w.clone()]).unwrap();
    let way = here.plus(&there, -1.0).unwrap();
    let ends = landscape.line(&way, &[0.0, 1.0]).unwrap();
    assert!(distance(&ends, &[quadratic.loss(&[3.0, -2.0]), quadratic.loss(&[1.0, 2.0])]) < 1e-12);
}

#[sam(rho = 0.5)]
fn annotated(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

/// An annotated function is the plain loss, and its weights are restored.
#[test]
fn of_an_annotated_function() {
    let (net, (x, y)) = (Net::new(DType::F64, 5), batch(12, DType::F64, 7));
    let before = net.bits();
    let passes = Cell::new(0);
    let mut landscape = Landscape::new(net.vars.to_vec(), || {
        passes.set(passes.get() + 1);
        annotated(&net, &x, &y)
    });
    let found = landscape.gradient().unwrap();
    assert_eq!(passes.get(), 1);
    let expected = gradient(&plain(|| annotated(&net, &x, &y)).unwrap(), &net.vars).concat();
    assert!(distance(found.values(), &expected) < 1e-14);
    assert!(landscape.sharpness(&Sam::new(0.1), 3).unwrap().rise() > 0.0);
    drop(landscape.hessian().unwrap().spectrum(5, 0).unwrap());
    assert_eq!(net.bits(), before);
}

/// After an error and a panic in any pass.
#[test]
fn the_weights_are_what_they_were() {
    let (net, (x, y)) = (Net::new(DType::F32, 5), batch(12, DType::F32, 7));
    let before = net.bits();
    for fatal in 0..6 {
        for panics in [false, true] {
            let mut passes = 0;
            let mut landscape = Landscape::new(net.vars.to_vec(), || {
                passes += 1;
                assert!(!(panics && passes > fatal), "this is a test");
                if passes > fatal {
                    candle_core::bail!("this is a test")
                }
                net.loss(&x, &y)
            });
            let run = catch_unwind(AssertUnwindSafe(|| landscape.hessian().map(drop)));
            assert_eq!(run.is_err(), panics);
            assert!(run.is_err() || run.unwrap().unwrap_err().to_string().contains("this is a test"));
            assert_eq!(net.bits(), before, "{fatal} {panics}");
        }
    }
}

/// Every pass sees the same masks; running statistics are those of before.
#[test]
fn the_state_of_layers_is_what_it_was() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, device());
    let norm = nn::batch_norm(6, 1e-5, vb.pp("norm")).unwrap();
    let dropout = nn::Dropout::seeded(0.5, 1);
    let x = sam_tests::tensor(&[8, 6], DType::F32, 2);
    let loss = || dropout.forward(&norm.forward_t(&x, true)?, true)?.sqr()?.mean_all();
    let state = || -> Vec<_> {
        let vars = vars.data().lock().unwrap();
        ["norm.running_mean", "norm.running_var"].iter().map(|name| bits(&vars[*name])).collect()
    };
    let before = state();
    let trained = ["norm.weight", "norm.bias"].map(|name| vars.data().lock().unwrap()[name].clone());
    let mut landscape = Landscape::new(trained, loss);
    let zero = WeightVector::of_weights(landscape.vars().to_vec()).unwrap().scaled(0.0);
    let values = landscape.line(&zero, &[0.0, 1.0, 2.0]).unwrap();
    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
    assert_eq!(state(), before);
}

#[test]
fn mistakes_are_errors() {
    let (w, unused) = (Var::new(&[1f64, 2.], device()).unwrap(), Var::new(&[1f64], device()).unwrap());
    let text = |result: Result<()>| result.unwrap_err().to_string();
    let unreached = |w: &Var| Landscape::new([w.clone(), unused.clone()], || w.sqr()?.sum_all()).gradient().map(drop);
    let error = unreached(&w).unwrap_err();
    assert!(matches!(Error::of(&error), Some(Error::NoGradient { .. })), "{error}");
    let vector = text(Landscape::new([w.clone()], || w.sqr()).loss().map(drop));
    assert!(vector.contains("[2]"), "{vector}");
    let nothing = text(Landscape::new([], || w.sqr()?.sum_all()).loss().map(drop));
    assert!(!nothing.is_empty());
    let sum = || w.sqr()?.sum_all();
    let v = WeightVector::of_weights([unused.clone()]).unwrap();
    assert!(text(Landscape::new([w.clone()], sum).loss_at(&v).map(drop)).contains("other variables"));
    let inside = Sam::new(0.1).loss(|| {
        Landscape::new([w.clone()], sum).loss()?;
        sum()
    });
    assert!(text(inside.map(drop)).contains("inside a loss function"));
    assert!(text(Landscape::new([w.clone()], sum).sharpness(&Sam::new(0.1), 0).map(drop)).contains("0 steps"));
    let root = || w.affine(1.0, -1.0)?.sqrt()?.sum_all();
    assert!(text(Landscape::new([w.clone()], root).hessian().map(drop)).contains("not finite"));
    // A slice shows where the loss is not finite.
    let way = WeightVector::of_weights([w.clone()]).unwrap();
    assert!(Landscape::new([w.clone()], root).line(&way, &[-1.0]).unwrap()[0].is_nan());
}

/// Its numbers are those that are measured by themselves.
#[test]
fn a_report_has_a_stated_cost() {
    let known = Known::new();
    let (sam, all) = (Sam::new(0.01), eigenvalues(&known.hessian));
    let mut landscape = known.landscape();
    let report = landscape.report(&sam, 30).unwrap();
    assert!((report.passes - 62.0).abs() < 1e-9, "{report:?}");
    assert!((report.loss - landscape.loss().unwrap()).abs() < 1e-14);
    assert!((report.sharpness - landscape.sharpness(&sam, 1).unwrap().rise()).abs() < 1e-14);
    assert!((report.largest_eigenvalue - all[0]).abs() < report.residual + 1e-2 * all[0], "{report:?} {}", all[0]);
    let (x, y) = batch(12, DType::F64, 7);
    let stats = Sam::new(0.01).with_diagnostics();
    drop(stats.loss(|| known.net.loss(&x, &y)).unwrap());
    let cosine = stats.last_stats().unwrap().cosine().unwrap().unwrap();
    assert!((report.cosine - cosine).abs() < 1e-9, "{} {cosine}", report.cosine);
}

#[test]
fn work_can_be_watched_and_ended() {
    let quadratic = Quadratic::new(&[5.0, 3.0, 2.0, 1.0], &[1.0, 2.0, 3.0, 4.0]);
    let mut products = 0;
    let mut landscape = quadratic.landscape();
    let mut hessian = landscape.hessian().unwrap().after_each(|| {
        products += 1;
        if products == 3 {
            candle_core::bail!("stopped")
        }
        Ok(())
    });
    assert!(hessian.spectrum(4, 0).unwrap_err().to_string().contains("stopped"));
    drop(hessian);
    assert_eq!(products, 3);
}

#[test]
fn the_density_of_several_draws_is_their_mean() {
    let quadratic = Quadratic::new(&[4.0, 1.0], &[1.0, 2.0]);
    let mut landscape = quadratic.landscape();
    let mut hessian = landscape.hessian().unwrap();
    let draws: Vec<Spectrum> = (0..4).map(|seed| hessian.spectrum(2, seed).unwrap()).collect();
    let mean = Spectrum::mean(&draws);
    let expected = draws.iter().map(|spectrum| spectrum.density(2.0, 0.7)).sum::<f64>() / 4.0;
    assert!((mean.density(2.0, 0.7) - expected).abs() < 1e-12);
    assert!((mean.weights().iter().sum::<f64>() - 1.0).abs() < 1e-9);
}

/// For any number of threads.
#[test]
fn the_numbers_are_always_the_same() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let w = Var::from_vec(numbers(40_000, 1), 40_000, &Device::Cpu).unwrap();
            let mut landscape = Landscape::new([w.clone()], || w.sqr()?.sqr()?.sum_all());
            let sharpness = landscape.sharpness(&Sam::new(0.1), 3).unwrap().highest;
            let spectrum = landscape.hessian().unwrap().spectrum(4, 0).unwrap();
            (sharpness.to_bits(), spectrum.values().iter().map(|value| value.to_bits()).collect::<Vec<_>>())
        })
    };
    assert_eq!(run(1), run(3));
}
