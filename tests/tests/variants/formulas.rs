//! Some steps of each variant, compared with its formula.

use std::cell::RefCell;

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::variants::{Combination, Direction, Mask, Metric, Radius, Schedule, Scope, named};
use sam_runtime::{FunctionalSam, Sam, sam};
use sam_tests::{Net, device, gradient, values};

use crate::reference::*;

const STEPS: u64 = 7;

/// Our steps, on the same batches and from the same weights.
fn ours(sam: &Sam) -> Vector {
    ours_with(sam, &net())
}

fn ours_with(sam: &Sam, net: &Net) -> Vector {
    for step in 0..STEPS {
        let (x, y) = batch_of(step);
        move_by(net, &sam.loss(|| net.loss(&x, &y)).unwrap());
    }
    weights(net)
}

fn move_by(net: &Net, loss: &Tensor) {
    let update = gradient(loss, &net.vars).concat();
    set_weights(net, &mix(1.0, &weights(net), -LR, &update));
}

#[track_caller]
fn assert_is(sam: &Sam, formula: impl FnMut(&[f64], &Step) -> Vector) {
    let expected = descend(STEPS, formula);
    assert_close(&ours(sam), &expected, 1e-11);
    // and it is not the plain step by another name
    let plain = descend(STEPS, |w, step| step.g(w));
    assert!(length(&mix(1.0, &plain, -1.0, &expected)) > 1e-3, "the formula does nothing");
}

#[test]
fn sam_itself() {
    assert_is(&Sam::new(0.3), |w, step| step.g(&add(w, &along(0.3, &step.g(w)))));
}

#[test]
fn asam() {
    let t = |w: &[f64]| -> Vector { w.iter().map(|w| w.abs() + 0.01).collect() };
    assert_is(&Sam::new(0.5).adaptive(0.01), |w, step| {
        let tg = product(&t(w), &step.g(w));
        step.g(&add(w, &product(&t(w), &along(0.5, &tg))))
    });
    // As its authors have it: T = 1 for biases.
    let net = net();
    let expected = descend(STEPS, |w, step| {
        let mut t = t(w);
        t[PARTS[1].clone()].fill(1.0);
        t[PARTS[3].clone()].fill(1.0);
        let tg = product(&t, &step.g(w));
        step.g(&add(w, &product(&t, &along(0.5, &tg))))
    });
    assert_close(&ours_with(&Sam::asam(&crate::reference::named(&net)), &net), &expected, 1e-11);
}

#[test]
fn gsam_with_a_radius_that_goes_with_the_learning_rate() {
    let sam = Sam::gsam(0.01..=0.1);
    let rate = |step: u64| 0.1 - 0.01 * step as f64;
    let net = net();
    for step in 0..STEPS {
        sam.set_learning_rate(rate(step));
        let (x, y) = batch_of(step);
        move_by(&net, &sam.loss(|| net.loss(&x, &y)).unwrap());
    }
    let expected = descend(STEPS, |w, step| {
        let rho = 0.1 + (0.6 - 0.1) * (rate(step.number) - 0.01) / (0.1 - 0.01);
        let g = step.g(w);
        let gp = step.g(&add(w, &along(rho, &g)));
        let across = mix(1.0, &g, -dot(&g, &gp) / dot(&gp, &gp), &gp);
        mix(1.0, &gp, -0.6, &across)
    });
    assert_close(&weights(&net), &expected, 1e-11);
}

#[test]
fn wsam() {
    let coupled = Sam::new(0.3).combination(Combination::Wsam { gamma: 0.8 });
    let both = |w: &[f64], step: &Step, rho: f64| {
        let g = step.g(w);
        let gp = step.g(&add(w, &along(rho, &g)));
        (g, gp)
    };
    assert_is(&coupled, |w, step| {
        let (g, gp) = both(w, step, 0.3);
        mix(1.0 - 4.0, &g, 4.0, &gp)
    });

    // Decoupled it is the same without momentum, and not with it.
    let (sam, net) = (Sam::wsam(), net());
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut sgd = Sgd::new(net.vars.to_vec(), params).unwrap();
    let (mut w, mut v) = (weights(&net), vec![0.0; 83]);
    for number in 0..STEPS {
        let step = Step::new(number);
        sgd.backward_step(&sam.loss(|| net.loss(&step.x, &step.y)).unwrap()).unwrap();
        sam.apply_decoupled(0.05).unwrap();

        let (g, gp) = both(&w, &step, 0.05);
        v = mix(0.9, &v, 1.0, &g);
        w = mix(1.0, &w, -0.05, &v);
        w = add(&w, &times(-0.05 * 9.0, &mix(1.0, &gp, -1.0, &g)));
    }
    assert_close(&weights(&net), &w, 1e-10);
    sam.loss(|| net.vars[0].sqr()?.sum_all()).unwrap();
    let error = sam.loss(|| net.vars[0].sqr()?.sum_all()).unwrap_err().to_string();
    assert!(error.contains("`Sam::apply_decoupled`"), "{error}");
}

#[test]
fn look_sam() {
    let mut kept = Vec::new();
    assert_is(&Sam::look_sam(), |w, step| {
        let g = step.g(w);
        if step.number % 5 == 0 {
            let gp = step.g(&add(w, &along(0.1, &g)));
            kept = mix(1.0, &gp, -dot(&gp, &g) / dot(&g, &g), &g);
            gp
        } else {
            mix(1.0, &g, 0.7 * length(&g) / length(&kept), &kept)
        }
    });
}

#[test]
fn stable_sam() {
    assert_is(&Sam::stable(), |w, step| {
        let g = step.g(w);
        along(length(&g), &step.g(&add(w, &along(0.05, &g))))
    });
}

#[test]
fn unnormalized_sam() {
    assert_is(&Sam::usam(0.5), |w, step| step.g(&add(w, &times(0.5, &step.g(w)))));
    let scaled = Sam::usam(0.5).metric(Metric::Adaptive { eta: 0.1 });
    assert_is(&scaled, |w, step| {
        let t: Vector = w.iter().map(|w| w.abs() + 0.1).collect();
        step.g(&add(w, &times(0.5, &product(&t, &product(&t, &step.g(w))))))
    });
}

#[test]
fn directions_that_remember() {
    let mut m: Option<Vector> = None;
    assert_is(&Sam::f_sam(), |w, step| {
        let g = step.g(w);
        // The authors' code: the m of the step before, and m = g after the first.
        let residual = m.as_ref().map_or(g.clone(), |m| mix(1.0, &g, -1.0, m));
        m = Some(m.as_ref().map_or(g.clone(), |m| mix(0.9, m, 0.1, &g)));
        step.g(&add(w, &along(0.2, &residual)))
    });
    let mut d: Option<Vector> = None;
    assert_is(&Sam::vasso(), |w, step| {
        let g = step.g(w);
        let average = d.as_ref().map_or(g.clone(), |d| mix(0.1, d, 0.9, &g));
        d = Some(average.clone());
        step.g(&add(w, &along(0.2, &average)))
    });
    let mut last: Option<Vector> = None;
    assert_is(&Sam::previous_gradient(), |w, step| {
        let e = last.as_ref().map_or(vec![0.0; 83], |last| along(0.05, last));
        let g = step.g(&add(w, &e));
        last = Some(g.clone());
        g
    });
}

#[test]
fn m_sam() {
    let net = net();
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 1e-3 };
    let mut sgd = Sgd::new(net.vars.to_vec(), params).unwrap();
    let sam = Sam::momentum_sam(sgd.momentum_buffers());
    let (mut w, mut v) = (weights(&net), vec![0.0; 83]);
    for number in 0..STEPS {
        let step = Step::new(number);
        let loss = sam.loss(|| net.loss(&step.x, &step.y)).unwrap();

        let e = if number == 0 { vec![0.0; 83] } else { along(-3.0, &v) };
        // The value is that of the one pass that there is.
        let there = step.losses(&add(&w, &e));
        assert!((values(&loss)[0] - there.iter().sum::<f64>() / 12.0).abs() < 1e-12);
        sgd.backward_step(&loss).unwrap();
        // w is where it was: weight decay is at w, not at w + ε̂.
        let g = step.g(&add(&w, &e));
        v = mix(0.9, &v, 1.0, &mix(1.0, &g, 1e-3, &w));
        w = mix(1.0, &w, -0.05, &v);
    }
    assert_close(&weights(&net), &w, 1e-11);
}

#[test]
fn metrics() {
    assert_is(&Sam::fisher(), |w, step| {
        let g = step.g(w);
        // F⁻¹ g / sqrt(gᵀ F⁻¹ g), F = 1 + η g²
        let inverse: Vector = g.iter().map(|g| g / (1.0 + g * g)).collect();
        step.g(&add(w, &times(0.1 / dot(&g, &inverse).sqrt(), &inverse)))
    });
    assert_is(&Sam::layer_sam(), |w, step| {
        let g = step.g(w);
        let mut e = Vec::new();
        for part in PARTS {
            e.extend(along(0.1 * length(&w[part.clone()]), &g[part]));
        }
        step.g(&add(w, &e))
    });
}

#[test]
fn scopes() {
    let net = net();
    let groups = vec![vec![net.vars[0].clone(), net.vars[1].clone()]];
    let expected = descend(STEPS, |w, step| {
        let g = step.g(w);
        step.g(&add(w, &[along(0.2, &g[..56]), along(0.2, &g[56..])].concat()))
    });
    assert_close(&ours_with(&Sam::new(0.2).scope(Scope::Groups(groups)), &net), &expected, 1e-11);
}

#[test]
fn masks() {
    let mut mask = Vec::new();
    assert_is(&Sam::sparse_sam(3), |w, step| {
        let g = step.g(w);
        if step.number % 3 == 0 {
            let mut sizes: Vec<f64> = g.iter().map(|g| g.abs()).collect();
            sizes.sort_by(f64::total_cmp);
            let least = sizes[41]; // half of 83 stay out
            mask = g.iter().map(|g| if g.abs() >= least { 1.0 } else { 0.0 }).collect();
        }
        step.g(&add(w, &product(&mask, &along(0.1, &g))))
    });
}

/// Stochastic weight perturbation draws, so what it draws is looked at.
#[test]
fn random_masks() {
    let net = net();
    let sam = Sam::new(0.4).mask(Mask::Random { keep: 0.6 }).seed(3);
    let mut kept = Vec::new();
    for step in 0..20 {
        let (x, y) = batch_of(step);
        let home = weights(&net);
        let there = RefCell::new(home.clone());
        let loss = sam.loss(|| -> Result<Tensor> {
            there.replace(weights(&net));
            net.loss(&x, &y)
        });
        let e = mix(1.0, &there.borrow(), -1.0, &home);
        let full = along(0.4 / 0.6, &Step::new(step).g(&home));
        for (e, full) in e.iter().zip(&full) {
            assert!(*e == 0.0 || (e - full).abs() < 1e-12, "{e} of {full}");
        }
        kept.push(e.iter().filter(|e| **e != 0.0).count());
        move_by(&net, &loss.unwrap());
    }
    let share = kept.iter().sum::<usize>() as f64 / (20.0 * 83.0);
    assert!((share - 0.6).abs() < 0.05, "{share}");
    assert!(kept.iter().any(|n| *n != kept[0]), "one mask for all steps");
}

#[test]
fn random_directions() {
    let net = net();
    let sam = Sam::random_direction(0.4, net.vars.to_vec()).seed(3);
    let mut seen = Vec::new();
    for step in 0..200 {
        let (x, y) = batch_of(step);
        let home = weights(&net);
        let there = RefCell::new(Vec::new());
        let loss = sam.loss(|| -> Result<Tensor> {
            there.replace(weights(&net));
            net.loss(&x, &y)
        });
        loss.unwrap();
        let e = mix(1.0, &there.borrow(), -1.0, &home);
        assert!((length(&e) - 0.4).abs() < 1e-12);
        seen.push(e);
    }
    let mean = seen.iter().fold(vec![0.0; 83], |sum, e| add(&sum, &times(1.0 / 200.0, e)));
    assert!(length(&mean) < 0.06, "{}", length(&mean));
}

#[test]
fn radii() {
    assert_is(&Sam::default().rho_schedule(|step| 0.1 * step as f64), |w, step| {
        step.g(&add(w, &along(0.1 * step.number as f64, &step.g(w))))
    });
    assert_is(&Sam::le_sam(0.05, 0.2), |w, step| {
        let g = step.g(w);
        step.g(&add(w, &along((0.05 / length(&g)).min(0.2), &g)))
    });
}

#[test]
fn when() {
    let sam = |w: &[f64], step: &Step| step.g(&add(w, &along(0.4, &step.g(w))));
    assert_is(
        &Sam::new(0.4).schedule(Schedule::Every(3)),
        |w, step| if step.number % 3 == 0 { sam(w, step) } else { step.g(w) },
    );
    assert_is(
        &Sam::new(0.4).schedule(Schedule::FromStep(4)),
        |w, step| if step.number >= 4 { sam(w, step) } else { step.g(w) },
    );

    let (mut mean, mut variance) = (None, 0.0);
    let (mut sharp, mut flat) = (0, 0);
    let sam = |w: &[f64], step: &Step| step.g(&add(w, &along(0.05, &step.g(w))));
    assert_is(&Sam::ae_sam(STEPS), |w, step| {
        let g = step.g(w);
        let square = dot(&g, &g);
        mean = Some(mean.map_or(square, |mean| 0.9 * mean + 0.1 * square));
        let mu = mean.unwrap();
        variance = 0.9 * variance + 0.1 * (square - mu) * (square - mu);
        let done = step.number as f64 / STEPS as f64;
        if square >= mu + ((1.0 - done) - done) * f64::sqrt(variance) {
            sharp += 1;
            sam(w, step)
        } else {
            flat += 1;
            g
        }
    });
    assert!(sharp > 0 && flat > 0, "{sharp} and {flat}");
}

#[test]
fn several_ascents() {
    assert_is(&Sam::new(0.4).ascent_steps(3, 0.5), |w, step| {
        let mut e = vec![0.0; 83];
        for _ in 0..3 {
            e = add(&e, &along(0.2, &step.g(&add(w, &e))));
            if length(&e) > 0.4 {
                e = along(0.4, &e);
            }
        }
        step.g(&add(w, &e))
    });
}

#[sam(with = sam, hardest(x, y; k = 4))]
fn hardest(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    losses(net, x, y)
}

#[sam(with = sam, sharpest(x, y; k = 6))]
fn sharpest(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    losses(net, x, y)
}

#[sam(with = sam, micro_batches(x, y; m = 5))]
fn in_parts(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

type Loss = fn(&Sam, &Net, &Tensor, &Tensor) -> Result<Tensor>;

fn ours_through(loss: Loss, sam: &Sam) -> Vector {
    let net = net();
    for number in 0..STEPS {
        let step = Step::new(number);
        let loss = loss(sam, &net, &step.x, &step.y).unwrap();
        // The value is that of the whole batch at w.
        let mean = step.losses(&weights(&net)).iter().sum::<f64>() / 12.0;
        assert!((values(&loss)[0] - mean).abs() < 1e-12);
        move_by(&net, &loss);
    }
    weights(&net)
}

fn largest(sizes: &[f64], k: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..sizes.len()).collect();
    rows.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
    rows.truncate(k);
    rows
}

#[test]
fn chosen_examples() {
    let k_sam = descend(STEPS, |w, step| {
        let rows = largest(&step.losses(w), 4);
        step.g_of(&add(w, &along(0.3, &step.g_of(w, &rows))), &rows)
    });
    assert_close(&ours_through(hardest, &Sam::new(0.3)), &k_sam, 1e-11);

    let e_sam = descend(STEPS, |w, step| {
        let there = add(w, &along(0.3, &step.g(w)));
        let rises = mix(1.0, &step.losses(&there), -1.0, &step.losses(w));
        step.g_of(&there, &largest(&rises, 6))
    });
    assert_close(&ours_through(sharpest, &Sam::new(0.3)), &e_sam, 1e-11);
}

#[test]
fn parts_are_one_step() {
    let whole = descend(STEPS, |w, step| step.g(&add(w, &along(0.3, &step.g(w)))));
    assert_close(&ours_through(in_parts, &Sam::new(0.3)), &whole, 1e-11);
}

#[test]
fn functional_sam() {
    let functional = FunctionalSam::default();
    let net = net();
    let expected = descend(STEPS, |w, step| {
        let there = add(w, &along(0.3, &step.g(w)));
        // ∂L/∂z of the mean cross-entropy: (softmax - one-hot) / n
        let here = net_at(w);
        let p = candle_nn::ops::softmax(&here.forward(&step.x).unwrap(), 1).unwrap();
        let hot = candle_nn::encoding::one_hot(step.y.clone(), 3, 1f64, 0.0).unwrap();
        let slope = ((p - hot).unwrap() / 12.0).unwrap().detach();
        gradient_at(&there, |net| (net.forward(&step.x)? * &slope)?.sum_all())
    });
    let sam = Sam::new(0.3);
    for number in 0..STEPS {
        let step = Step::new(number);
        let loss = sam.loss(|| -> Result<Tensor> {
            let logits = functional.apply(&net.forward(&step.x)?)?;
            let hit = logits.gather(&step.y.unsqueeze(1)?, 1)?.squeeze(1)?;
            (logits.exp()?.sum(1)?.log()? - hit)?.mean_all()
        });
        move_by(&net, &loss.unwrap());
    }
    assert_close(&weights(&net), &expected, 1e-11);
}

fn net_at(w: &[f64]) -> Net {
    let net = net();
    set_weights(&net, w);
    net
}

#[test]
fn sam_on() {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, device());
    let scale = vb.pp("norm").get_with_hints(6, "weight", candle_nn::Init::Const(1.0)).unwrap();
    let shift = vb.pp("norm").get_with_hints(6, "bias", candle_nn::Init::Const(0.0)).unwrap();
    let head = candle_nn::linear(6, 2, vb.pp("head")).unwrap();
    let on = named(&vars, |name| name.contains("norm"));
    assert_eq!(on.len(), 2);
    let x = sam_tests::tensor(&[5, 6], DType::F32, 3);
    // Weights that are not all alike, and a bias that begins at 0.
    scale_var(&on, 6);
    let loss = || head.forward(&x.broadcast_mul(&scale)?.broadcast_add(&shift)?)?.sqr()?.mean_all();
    let (w, g) = {
        let grads = loss().unwrap().backward().unwrap();
        let flat = |of: &dyn Fn(&Var) -> Vector| on.iter().flat_map(of).collect::<Vector>();
        (flat(&|var| values(var)), flat(&|var| values(grads.get(var).unwrap())))
    };
    let moved = RefCell::new(Vec::new());
    let outcome = Sam::sam_on(&vars).loss(|| -> Result<Tensor> {
        moved.replace([values(&on[0]), values(&on[1]), values(head.weight())].concat());
        loss()
    });
    assert!(outcome.unwrap().backward().unwrap().get(head.weight()).is_some());
    let t: Vector = w.iter().map(|w| w.abs()).collect();
    let there = add(&w, &product(&t, &along(10.0, &product(&t, &g))));
    assert_close(&moved.borrow(), &[there, values(head.weight())].concat(), 1e-5);
}

fn scale_var(on: &[Var], n: usize) {
    for var in on {
        let slope = (Tensor::arange(0f32, n as f32, device()).unwrap() * 0.1).unwrap();
        var.set(&(var.as_detached_tensor() + slope).unwrap()).unwrap();
    }
}

/// Each step is the one or the other, as a coin says that is the same in every run.
#[test]
fn rst() {
    let net = net();
    let w = weights(&net);
    let sam = Sam::rst();
    let coin = |sam: &Sam| -> Vec<bool> {
        let toss = |number| {
            let step = Step::new(number);
            let g = gradient(&sam.loss(|| net.loss(&step.x, &step.y)).unwrap(), &net.vars).concat();
            let (flat, sharp) = (step.g(&w), step.g(&add(&w, &along(0.05, &step.g(&w)))));
            let is = |expected: &[f64]| length(&mix(1.0, &g, -1.0, expected)) < 1e-11;
            assert!(is(&flat) != is(&sharp), "step {number} is neither");
            is(&sharp)
        };
        (0..100).map(toss).collect()
    };
    let first = coin(&sam);
    assert!((35..=65).contains(&first.iter().filter(|sharp| **sharp).count()));
    assert_eq!(coin(&Sam::rst()), first);
    assert_ne!(coin(&Sam::rst().seed(1)), first);
}

#[test]
fn what_does_not_go_together() {
    let check = |sam: Sam, what: &str| {
        let error = sam.loss(|| net().vars[0].sqr()?.sum_all()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    check(Sam::new(0.1).unnormalized().p(3), "`unnormalized`");
    check(Sam::second_order().adaptive(0.1), "`second_order`");
    check(Sam::new(0.1).ascent_steps(2, 0.5).p(1), "`ascent_steps`");
    check(Sam::new(0.1).ascent_steps(0, 0.5), "`ascent_steps` is 0");
    check(Sam::new(0.1).ascent_steps(1, 2.0).p(1), "`ascent_steps`");
    check(Sam::second_order().ascent_steps(1, 0.5), "`second_order`");
    check(Sam::second_order().radius(Radius::LossBudget { sigma: 0.1, largest: 1.0 }), "`second_order`");
    check(Sam::vasso().metric(Metric::Fisher { eta: 1.0 }), "`direction`");
    check(
        Sam::new(0.1).schedule(Schedule::GradNormAdaptive { steps: 9, from: f64::NAN, to: 0.0, memory: 0.9 }),
        "`from and to` is NaN",
    );
    check(Sam::new(0.1).rho_schedule(|_| f64::NAN), "`rho` is NaN");
    check(Sam::previous_gradient().combination(Combination::Rescaled), "`combination`");
    check(
        Sam::previous_gradient().schedule(Schedule::GradNormAdaptive { steps: 9, from: 1.0, to: -1.0, memory: 0.9 }),
        "`direction`",
    );
    check(Sam::new(0.1).direction(Direction::Random), "`vars`");
    check(Sam::new(0.1).combination(Combination::Gsam { alpha: -1.0 }), "`alpha` is -1");
    check(Sam::new(0.1).combination(Combination::Wsam { gamma: 1.0 }), "`gamma` is 1");
    check(Sam::new(0.1).mask(Mask::Random { keep: 0.0 }), "`keep` is 0");
    check(Sam::new(0.1).mask(Mask::TopK { sparsity: 1.0, every: 1 }), "`sparsity` is 1");
    check(Sam::new(0.1).schedule(Schedule::Every(0)), "`every` is 0");
    check(Sam::new(0.1).schedule(Schedule::Random(1.5)), "`chance` is 1.5");
    check(Sam::new(0.1).loss_scale(0.0), "`loss_scale` is 0");
    check(Sam::gsam(0.1..=0.1), "`rate` is 0.1");
    check(Sam::le_sam(f64::NAN, 0.1), "`sigma` is NaN");
    assert!(Sam::look_sam().shards::<Tensor>(3).unwrap_err().to_string().contains("`micro_batches`"));
    assert!(sharpest(&Sam::previous_gradient(), &net(), &batch_of(0).0, &batch_of(0).1).is_err());
}
