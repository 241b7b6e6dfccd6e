//! Where the answer is known on paper.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer, SGD};
use sam_runtime::{Sam, sam};
use sam_tests::{device, gradient, values};

#[sam(rho = rho, p = p)]
fn quadratic(w: &Var, curvature: &Tensor, rho: f64, p: f64) -> Result<Tensor> {
    (w.sqr()? * curvature)?.sum_all()? * 0.5
}

/// L = ½ Σ a w²: ∇L = a w, and ∇L(w + ε̂) = a (w + ε̂).
#[test]
fn quadratics() {
    let w = Var::new(&[3f64, -4., 0.], device()).unwrap();
    let a = Tensor::new(&[1f64, 1., 5.], device()).unwrap();
    let expected = |e: [f64; 3]| vec![vec![3. + e[0], -4. + e[1], 5. * e[2]]];
    let found = |p: f64| gradient(&quadratic(&w, &a, 0.5, p).unwrap(), std::slice::from_ref(&w));
    let close = |a: Vec<Vec<f64>>, b: Vec<Vec<f64>>| a[0].iter().zip(&b[0]).all(|(a, b)| (a - b).abs() < 1e-14);
    assert!(close(found(2.), expected([0.3, -0.4, 0.])));
    assert!(close(found(f64::INFINITY), expected([0.5, -0.5, 0.])));
    assert!(close(found(1.), expected([0., -0.5, 0.])));
    // q = 3: |g|^2 = 9, 16 over (27 + 64)^(2/3)
    let scale = 0.5 / 91f64.powf(2. / 3.);
    assert!(close(found(1.5), expected([9. * scale, -16. * scale, 0.])));
}

/// On L = ½w² a step is w ← w - lr (w + ρ sign w): it ends in a cycle at w = ± lr ρ / (2 - lr), at a distance from the
/// minimum that is proportional to ρ, where plain descent goes all the way.
#[test]
fn constant_rho_stalls_at_a_distance_proportional_to_rho() {
    let one = Tensor::new(&[1f64], device()).unwrap();
    let end = |rho: f64| {
        let w = Var::new(&[1.234f64], device()).unwrap();
        let mut sgd = SGD::new(vec![w.clone()], 0.1).unwrap();
        for _ in 0..2000 {
            sgd.backward_step(&quadratic(&w, &one, rho, 2.).unwrap()).unwrap();
        }
        values(&w)[0].abs()
    };
    assert!(end(0.) < 1e-15);
    for rho in [0.01, 0.1, 1.] {
        assert!((end(rho) - 0.1 * rho / 1.9).abs() < 1e-9 * rho, "{}", end(rho));
    }
}

/// One ball for all variables together: each is perturbed in proportion to its share of the gradient.
#[test]
fn the_ball_is_joint() {
    let (v, w) = (Var::new(&[3f64], device()).unwrap(), Var::new(&[4f64], device()).unwrap());
    let loss = Sam::new(1.).loss(|| -> Result<Tensor> { (v.sqr()? + w.sqr()?)?.sum_all() }).unwrap();
    let g = gradient(&loss, &[v, w]);
    assert!((g[0][0] - 2. * 3.6).abs() < 1e-14 && (g[1][0] - 2. * 4.8).abs() < 1e-14);
}

/// ASAM does not notice that a layer is scaled up and the next one down by the same factor.
#[test]
fn the_adaptive_ball_is_invariant_to_rescaling() {
    let sharpness = |k: f64| {
        let (v, w) = (Var::new(&[2. * k], device()).unwrap(), Var::new(&[0.7 / k], device()).unwrap());
        let mut losses = Vec::new();
        Sam::new(0.3)
            .adaptive(0.)
            .loss(|| -> Result<Tensor> {
                let loss = ((v.as_tensor() * w.as_tensor())? - 5.)?.sqr()?.sum_all()?;
                losses.push(values(&loss)[0]);
                Ok(loss)
            })
            .unwrap();
        losses[1]
    };
    assert!((sharpness(1.) - sharpness(100.)).abs() < 1e-12);
}
