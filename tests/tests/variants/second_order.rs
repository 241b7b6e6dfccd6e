//! The term that the paper drops, against the differences of L(w + ε̂(w)) itself.

use sam_runtime::Sam;
use sam_runtime::variants::Radius;
use sam_tests::gradient;

use crate::reference::*;

#[test]
fn is_the_gradient_of_the_whole() {
    let rho = 0.3;
    let step = Step::new(0);
    let whole = |w: &[f64]| {
        let losses = step.losses(&add(w, &along(rho, &step.g(w))));
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let w = weights(&net());
    let h = 1e-5;
    let differences: Vector = (0..w.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut w = w.clone();
                w[i] += by;
                whole(&w)
            };
            (moved(h) - moved(-h)) / (2.0 * h)
        })
        .collect();
    let of = |sam: &Sam| {
        let net = net();
        gradient(&sam.loss(|| net.loss(&step.x, &step.y)).unwrap(), &net.vars).concat()
    };
    let second = of(&Sam::second_order().radius(Radius::Constant(rho)));
    assert_close(&second, &differences, 1e-6);
    // and the first-order gradient is another
    let first = of(&Sam::new(rho));
    assert!(length(&mix(1.0, &first, -1.0, &differences)) > 1e-2 * length(&differences));
}

/// Where only some variables are perturbed, the others' gradient has the term too.
#[test]
fn of_some_variables() {
    let rho = 0.3;
    let step = Step::new(0);
    let whole = |w: &[f64]| {
        let mut g = step.g(w);
        g[56..].fill(0.0);
        let losses = step.losses(&add(w, &along(rho, &g)));
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let net = net();
    let w = weights(&net);
    let h = 1e-5;
    let sam = Sam::second_order().radius(Radius::Constant(rho)).vars(net.vars[..2].to_vec());
    let found = gradient(&sam.loss(|| net.loss(&step.x, &step.y)).unwrap(), &net.vars).concat();
    for i in [0, 17, 50, 60, 82] {
        let moved = |by: f64| {
            let mut w = w.clone();
            w[i] += by;
            whole(&w)
        };
        let difference = (moved(h) - moved(-h)) / (2.0 * h);
        assert!((found[i] - difference).abs() < 1e-6, "{i}: {}, expected {difference}", found[i]);
    }
}
