//! What is remembered when variables take no part in some steps, and when losses take turns with one `Sam`.

use std::cell::RefCell;

use candle_core::{Result, Tensor, Var};
use sam_runtime::Sam;
use sam_runtime::variants::{Combination, Direction, Mask};
use sam_tests::{device, values};

fn scalar(x: f64) -> Var {
    Var::new(x, device()).unwrap()
}

/// The gradient of a step whose loss is Σ c x² over some variables.
fn step(sam: &Sam, terms: &[(f64, &Var)]) -> Vec<f64> {
    let loss = sam.loss(|| -> Result<Tensor> {
        let mut sum = Tensor::new(0f64, device())?;
        for (factor, var) in terms {
            sum = (sum + (var.sqr()?.sum_all()? * *factor)?)?;
        }
        Ok(sum)
    });
    let grads = loss.unwrap().backward().unwrap();
    terms.iter().flat_map(|(_, var)| values(grads.get(var).unwrap())).collect()
}

#[track_caller]
fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < 1e-9, "{found:?}, expected {expected:?}");
    }
}

/// VaSSO by hand: d = (0.1 (0.1 · 2 + 0.9 · 6) + 0.9 · 2, 0.1 · 2 + 0.9 · 4).
#[test]
fn vasso_keeps_the_mean_of_a_variable_that_takes_no_part() {
    let (a, b, sam) = (scalar(1.), scalar(1.), Sam::vasso());
    step(&sam, &[(1., &a), (1., &b)]);
    step(&sam, &[(3., &a)]);
    let found = step(&sam, &[(1., &a), (2., &b)]);
    let (da, db) = (2.36, 3.8);
    let norm = f64::hypot(da, db);
    assert_near(&found, &[2. * (1. + 0.2 * da / norm), 4. * (1. + 0.2 * db / norm)]);
    assert_near(&found, &[2.211_034_175, 4.679_601_580]);
}

/// F-SAM by hand: m begins as the first gradient of each variable, and stays while it takes no part.
#[test]
fn f_sam_keeps_the_mean_of_a_variable_that_takes_no_part() {
    let (a, b, sam) = (scalar(1.), scalar(1.), Sam::f_sam());
    step(&sam, &[(1., &a), (1., &b)]); // m = (2, 2)
    step(&sam, &[(3., &a)]); // m_a = 0.9 · 2 + 0.1 · 6 = 2.4
    let (da, db) = (2. - 2.4, 4. - 2.);
    let norm = f64::hypot(da, db);
    let found = step(&sam, &[(1., &a), (2., &b)]);
    assert_near(&found, &[2. * (1. + 0.2 * da / norm), 4. * (1. + 0.2 * db / norm)]);
}

/// Two losses of different variables, alternating: each step is that of a `Sam` of its own.
#[test]
fn means_of_losses_that_take_turns() {
    let make: [fn() -> Sam; 2] = [Sam::vasso, Sam::f_sam];
    for make in make {
        let start = || (scalar(1.), Var::new(&[2f64, -1.], device()).unwrap());
        let ((a, b), both) = (start(), make());
        let (own_a, own_b) = (make(), make());
        for i in 0..6 {
            let factor = 1. + f64::from(i % 4);
            a.set(&Tensor::new(f64::from(i) - 2.5, device()).unwrap()).unwrap();
            b.set(&Tensor::new(&[f64::from(i * i) - 7., 0.5], device()).unwrap()).unwrap();
            assert_eq!(step(&both, &[(factor, &a)]), step(&own_a, &[(factor, &a)]));
            assert_eq!(step(&both, &[(1., &b)]), step(&own_b, &[(1., &b)]));
        }
    }
}

/// The last gradient of each variable, in one ball.
#[test]
fn stale_directions() {
    let (a, b, sam) = (scalar(1.), scalar(1.), Sam::previous_gradient());
    step(&sam, &[(1., &a), (1., &b)]); // (2, 2)
    let along = 0.05 / 2f64.sqrt();
    let g = step(&sam, &[(3., &a)]);
    assert_near(&g, &[6. * (1. + along)]);
    let norm = f64::hypot(g[0], 2.);
    let found = step(&sam, &[(1., &a), (2., &b)]);
    assert_near(&found, &[2. * (1. + 0.05 * g[0] / norm), 4. * (1. + 0.05 * 2. / norm)]);
}

/// How many passes each of these steps has.
fn passes(sam: &Sam, steps: &[&[(f64, &Var)]]) -> Vec<f64> {
    let count = |terms: &&[(f64, &Var)]| {
        step(sam, terms);
        sam.last_stats().unwrap().passes()
    };
    steps.iter().map(count).collect()
}

#[test]
fn look_sam_looks_where_there_is_something_to_look_at() {
    let vector = |x: [f64; 2]| Var::new(&x, device()).unwrap();
    let look = |every| Sam::new(0.1).combination(Combination::LookSam { every, alpha: 0.7 });
    let (a, b) = (vector([1., 2.]), vector([3., -1.]));
    let (a, b) = ([(1., &a)], [(1., &b)]);
    // By turns: each has its own second pass, and no part is older than k steps.
    let turns: [&[(f64, &Var)]; 8] = [&a, &b, &a, &b, &a, &b, &a, &b];
    assert_eq!(passes(&look(4), &turns), [2., 2., 1., 1., 2., 2., 1., 1.]);
    assert_eq!(passes(&look(2), &turns), [2.; 8]);
    // A variable that was left out when the others were looked at.
    let both = [a[0], b[0]];
    let steps: [&[(f64, &Var)]; 7] = [&both, &a, &both, &a, &a, &both, &both];
    assert_eq!(passes(&look(4), &steps), [2., 1., 1., 1., 2., 2., 1.]);
}

/// Sparse SAM, k = 2, alternating losses: both are perturbed in half of their coordinates.
#[test]
fn masks_of_losses_that_take_turns() {
    let start = |x: [f64; 4]| Var::new(&x, device()).unwrap();
    let (a, b) = (start([1., 2., 3., 4.]), start([4., 3., 2., 1.]));
    let sam = Sam::new(0.1).mask(Mask::TopK { sparsity: 0.5, every: 2 });
    for _ in 0..3 {
        let moved = |var: &Var| -> Vec<bool> {
            let (home, there) = (values(var), RefCell::new(Vec::new()));
            let outcome = sam.loss(|| -> Result<Tensor> {
                there.replace(values(var));
                var.sqr()?.sum_all()
            });
            outcome.unwrap();
            there.borrow().iter().zip(&home).map(|(there, home)| there != home).collect()
        };
        assert_eq!(moved(&a), [false, false, true, true]);
        assert_eq!(moved(&b), [true, true, false, false]);
    }
}

/// A variable listed twice, as a map has a tied weight under two names, counts once.
#[test]
fn a_variable_listed_twice() {
    let w = Var::new(&[3f64, 4.], device()).unwrap();
    let v = Var::new(&[1f64, 2., 2.], device()).unwrap();
    let perturbation = |sam: &Sam| {
        let home = [values(&w), values(&v)].concat();
        let there = RefCell::new(Vec::new());
        let outcome = sam.loss(|| -> Result<Tensor> {
            there.replace([values(&w), values(&v)].concat());
            w.sqr()?.sum_all()? + v.sqr()?.sum_all()?
        });
        outcome.unwrap();
        there.into_inner().iter().zip(home).map(|(there, home)| there - home).collect::<Vec<f64>>()
    };
    let norm = |e: Vec<f64>| e.iter().map(|e| e * e).sum::<f64>().sqrt();
    let twice = || [w.clone(), v.clone(), w.clone()];
    let random = perturbation(&Sam::random_direction(0.5, twice()));
    assert_eq!(random, perturbation(&Sam::random_direction(0.5, [w.clone(), v.clone()])));
    assert!((norm(random) - 0.5).abs() < 1e-12);

    let velocities = sam_runtime::variants::MomentumBuffers::default();
    velocities.set(twice().map(|var| (var.clone(), var.as_detached_tensor())));
    let momentum = perturbation(&Sam::momentum_sam(velocities));
    assert!((norm(momentum) - 3.).abs() < 1e-12);

    let e = perturbation(&Sam::new(0.5).vars(twice()));
    assert!((norm(e) - 0.5).abs() < 1e-12);
    let groups = vec![vec![w.clone(), w.clone()], vec![v.clone(), w.clone()]];
    let e = perturbation(&Sam::new(0.5).scope(sam_runtime::variants::Scope::Groups(groups)));
    assert!((norm(e[..2].to_vec()) - 0.5).abs() < 1e-12 && (norm(e[2..].to_vec()) - 0.5).abs() < 1e-12);
    let e = perturbation(&Sam::new(0.5).adaptive(0.1).metric_for(twice()));
    assert_eq!(e, perturbation(&Sam::new(0.5).adaptive(0.1)));
}

/// A clone goes its own way, with what the original remembers.
#[test]
fn a_clone_remembers() {
    let (a, sam) = (scalar(1.), Sam::new(0.2).direction(Direction::Ema { theta: 0.5 }));
    step(&sam, &[(1., &a)]);
    let clone = sam.clone();
    step(&sam, &[(-8., &a)]);
    // d = ½ · 2 - ½ · 2 = 0
    assert_near(&step(&clone, &[(-1., &a)]), &[-2.]);
}
