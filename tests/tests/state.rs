//! State and randomness: what the first pass leaves stays, what it drew the second pass draws again.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::{Cell, RefCell};

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::nn::{self, Dropout, RngStream, ShakeShake};
use sam_runtime::{Context, FunctionalSam, Pass, Sam, plain, sam};
use sam_tests::{Net, batch, bits, device, values};

/// Adds noise, and tells what it drew.
fn noisy(net: &Net, x: &Tensor, y: &Tensor, rng: &mut ChaCha8Rng, drawn: &RefCell<Vec<f64>>) -> Result<Tensor> {
    let noise = rng.random_range(0.9..1.1);
    drawn.borrow_mut().push(noise);
    net.loss(&(x * noise)?, y)
}

#[sam(replay(rng))]
fn replayed(net: &Net, x: &Tensor, y: &Tensor, rng: &mut ChaCha8Rng, drawn: &RefCell<Vec<f64>>) -> Result<Tensor> {
    noisy(net, x, y, rng, drawn)
}

#[sam]
fn not_replayed(net: &Net, x: &Tensor, y: &Tensor, rng: &mut ChaCha8Rng, drawn: &RefCell<Vec<f64>>) -> Result<Tensor> {
    noisy(net, x, y, rng, drawn)
}

#[sam(replay(rng), shards(x, y; m = 3))]
fn in_shards(net: &Net, x: &Tensor, y: &Tensor, rng: &mut ChaCha8Rng, drawn: &RefCell<Vec<f64>>) -> Result<Tensor> {
    noisy(net, x, y, rng, drawn)
}

#[sam(replay(counter))]
fn counted(net: &Net, x: &Tensor, y: &Tensor, counter: &Cell<u32>, seen: &RefCell<Vec<u32>>) -> Result<Tensor> {
    seen.borrow_mut().push(counter.replace(counter.get() + 1));
    net.loss(x, y)
}

#[test]
fn replay_gives_both_passes_the_same_numbers() {
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let fresh = || ChaCha8Rng::seed_from_u64(5);
    let mut twin = fresh();
    let mut next = || twin.random_range(0.9..1.1);
    let (a, b, c): (f64, f64, f64) = (next(), next(), next());

    let (mut rng, drawn) = (fresh(), RefCell::default());
    for _ in 0..2 {
        replayed(&net, &x, &y, &mut rng, &drawn).unwrap();
    }
    assert_eq!(drawn.take(), [a, a, b, b], "one step draws once");
    not_replayed(&net, &x, &y, &mut fresh(), &drawn).unwrap();
    assert_eq!(drawn.take(), [a, b]);
    in_shards(&net, &x, &y, &mut fresh(), &drawn).unwrap();
    assert_eq!(drawn.take(), [a, a, b, b, c, c]);
    plain(|| replayed(&net, &x, &y, &mut fresh(), &drawn)).unwrap();
    assert_eq!(drawn.take(), [a]);

    let (counter, seen) = (Cell::new(3), RefCell::default());
    counted(&net, &x, &y, &counter, &seen).unwrap();
    assert_eq!((counter.get(), seen.take()), (4, vec![3, 3]));
}

/// The batch normalization of this crate needs no `vars`.
#[test]
fn batch_normalization_keeps_the_statistics_of_the_first_pass() {
    let build = || {
        let vars = VarMap::new();
        let bn = nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, device())).unwrap();
        (vars, bn)
    };
    let ((vars, bn), (_, twin)) = (build(), build());
    let (x, _) = batch(9, DType::F32, 3);
    let loss = |bn: &nn::BatchNorm| bn.forward_t(&x, true)?.sqr()?.sqr()?.mean_all();
    let statistics = |bn: &nn::BatchNorm| (bits(bn.running_mean()), bits(bn.running_var()));
    let sam = Sam::new(0.5);
    let flat = plain(|| sam.loss(|| loss(&twin))).unwrap();
    let sharp = sam.loss(|| loss(&bn)).unwrap();
    assert_eq!(statistics(&bn), statistics(&twin));
    // The second pass normalizes by its batch all the same: it sees the moved weight, and gives another gradient.
    let weight = |bn: &nn::BatchNorm, loss: &Tensor| {
        values(loss.backward().unwrap().get(bn.weight_and_bias().unwrap().0).unwrap())
    };
    assert_ne!(weight(&bn, &sharp), weight(&twin, &flat));
    // Stock layers of candle move twice without `vars`.
    let stock = VarMap::new();
    let stock = candle_nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&stock, DType::F32, device())).unwrap();
    sam.loss(|| -> Result<Tensor> { stock.forward_t(&x, true)?.sqr()?.sqr()?.mean_all() }).unwrap();
    assert_ne!(bits(stock.running_mean()), bits(bn.running_mean()));

    let outside = bn.forward_t(&x, false).unwrap();
    assert_eq!(bits(&outside), bits(&twin.forward_t(&x, false).unwrap()));
    assert_eq!(vars.all_vars().len(), 4);
}

#[test]
fn dropout_draws_the_same_masks_in_both_passes() {
    let net = Net::new(DType::F32, 1);
    let (x, y) = batch(40, DType::F32, 2);
    let dropout = Dropout::seeded(0.4, 3);
    let masks = RefCell::new(Vec::new());
    let draw = |times: usize| -> Result<Tensor> {
        let mut x = x.clone();
        for _ in 0..times {
            x = dropout.forward(&x, true)?;
            masks.borrow_mut().push(bits(&x).iter().map(|x| *x != 0).collect::<Vec<_>>());
        }
        net.loss(&x, &y)
    };
    let sam = Sam::new(0.1);
    // Twice in each pass, three steps: two masks a step, the same in both passes, all different otherwise.
    for _ in 0..3 {
        sam.loss(|| draw(2)).unwrap();
    }
    draw(1).unwrap();
    let masks = masks.take();
    let distinct = [&masks[0], &masks[1], &masks[4], &masks[5], &masks[8], &masks[9], &masks[12]];
    for step in masks.chunks(4).filter(|step| step.len() == 4) {
        assert_eq!(step[..2], step[2..]);
    }
    for (i, a) in distinct.iter().enumerate() {
        assert!(distinct[..i].iter().all(|b| a != b));
    }
    let kept = masks[0].iter().filter(|kept| **kept).count() as f64 / masks[0].len() as f64;
    assert!((kept - 0.6).abs() < 0.1, "{kept}");
}

#[test]
fn dropout_is_a_mask_and_a_scale() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let x = Var::ones((50, 40), dtype, device()).unwrap();
        let dropout = Dropout::seeded(0.25, 9);
        let y = dropout.forward(&x, true).unwrap();
        let g = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(&y), values(g.get(&x).unwrap()), "the gradient meets the same mask");
        let kept = values(&y).iter().filter(|y| **y != 0.).count() as f64 / 2000.;
        assert!((kept - 0.75).abs() < 0.04, "{kept}");
        assert!(values(&y).iter().all(|y| *y == 0. || (y - 4. / 3.).abs() < 6e-3));
        assert_eq!(bits(&dropout.forward(&x, false).unwrap()), bits(&x));
        // A view has the mask of its own places.
        assert_eq!(Dropout::seeded(0.25, 9).forward(&x.t().unwrap(), true).unwrap().dims(), [40, 50]);
    }
    assert!(Dropout::seeded(1.0, 0).forward(&Tensor::ones(3, DType::F32, device()).unwrap(), true).is_err());
}

fn ones() -> Tensor {
    Tensor::ones(64, DType::F32, device()).unwrap()
}

fn mask(dropout: &Dropout) -> Vec<u64> {
    bits(&dropout.forward(&ones(), true).unwrap())
}

/// The masks of each pass of a step.
fn masks(sam: &Sam, mut mask: impl FnMut() -> Vec<u64>) -> Vec<Vec<u64>> {
    let w = Var::ones(3, DType::F32, device()).unwrap();
    let mut masks = Vec::new();
    sam.loss(|| -> Result<Tensor> {
        masks.push(mask());
        w.sqr()?.sum_all()
    })
    .unwrap();
    masks
}

/// Eight threads train with one layer at once, so that its calls are interleaved in every way.
#[test]
fn threads_that_share_a_dropout_have_masks_of_their_own_steps() {
    let dropout = Dropout::seeded(0.5, 1);
    let steps: Vec<Vec<Vec<u64>>> = std::thread::scope(|scope| {
        let train = || {
            let sam = Sam::new(0.05);
            (0..50).map(|_| masks(&sam, || mask(&dropout))).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(train)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(steps.len(), 400);
    assert_eq!(steps.iter().filter(|step| step[0] == step[1]).count(), 400);
    let mut first: Vec<_> = steps.iter().map(|step| &step[0]).collect();
    first.sort();
    first.dedup();
    assert_eq!(first.len(), 400, "each step has other masks");
}

/// Evaluation between the passes, another step inside a pass of this one, and two steps at once.
#[test]
fn calls_between_the_passes_do_not_move_the_masks() {
    let dropout = Dropout::seeded(0.5, 1);
    let sam = Sam::new(0.05);
    let found = masks(&sam, || {
        let drawn = mask(&dropout);
        // Another training, which is none of this step's.
        std::thread::scope(|scope| scope.spawn(|| (mask(&dropout), masks(&sam, || mask(&dropout)))).join().unwrap());
        drawn
    });
    assert_eq!(found[0], found[1]);
    assert_ne!(mask(&dropout), found[0]);
}

/// Two steps under way on one thread, each with its own masks.
#[test]
fn steps_that_are_interleaved_keep_their_masks() {
    let dropout = Dropout::seeded(0.5, 1);
    let vars = [(); 2].map(|()| Var::new(&[3f32, 4.], device()).unwrap());
    let drawn = RefCell::new([Vec::new(), Vec::new()]);
    let sams = [Sam::new(0.05), Sam::new(0.05)];
    let draw = |i: usize| -> Result<Tensor> {
        drawn.borrow_mut()[i].push(mask(&dropout));
        vars[i].sqr()?.sum_all()
    };
    let (mut one, mut other) = (|_: Pass| draw(0), |_: Pass| draw(1));
    let (a, b) = (sams[0].ascend(&mut one).unwrap(), sams[1].ascend(&mut other).unwrap());
    let (a, b) = (a.perturb().unwrap().descend(&mut one).unwrap(), b.perturb().unwrap().descend(&mut other).unwrap());
    drop((a, b));
    for masks in drawn.take() {
        assert_eq!(masks[0], masks[1]);
    }
}

/// A call that the first pass does not have draws anew; several ascent steps draw the same.
#[test]
fn passes_beyond_the_first_replay_its_masks() {
    let dropout = Dropout::seeded(0.5, 1);
    let four = masks(&Sam::new(0.05).ascent_steps(3, 1.0), || mask(&dropout));
    assert_eq!(four.len(), 4);
    assert!(four.iter().all(|mask| *mask == four[0]));
    let more = masks(&Sam::new(0.05), || {
        let mut drawn = mask(&dropout);
        if Pass::current() == Pass::Descent {
            drawn.extend(mask(&dropout));
        }
        drawn
    });
    assert_eq!(more[0], more[1][..64]);
    assert!(more[0] != more[1][64..] && four[0] != more[0] && four[0] != more[1][64..]);
    assert!(mask(&dropout) != more[1][64..], "what it drew is not drawn again");
}

#[test]
fn clones_of_a_dropout_draw_masks_of_their_own() {
    let layers = || {
        let layer = Dropout::seeded(0.5, 7);
        let clones = [layer.clone(), layer.clone()];
        let grandchild = clones[0].clone();
        let [a, b] = clones;
        [layer, a, b, grandchild]
    };
    let drawn = layers().each_ref().map(mask);
    for (i, mask) in drawn.iter().enumerate() {
        assert!(drawn[..i].iter().all(|other| other != mask), "clone {i}");
    }
    assert_eq!(layers().each_ref().map(mask), drawn, "a function of the seed and the number of clones");

    // Made in a pass, they draw the same in all passes of the step.
    let layer = Dropout::seeded(0.5, 7);
    let [first, second] = [(); 2].map(|()| masks(&Sam::new(0.05), || mask(&layer.clone())));
    assert_eq!(first[0], first[1]);
    assert_eq!(second[0], second[1]);
    assert_ne!(first[0], second[0]);

    // Of a stream that can be sought in, all use that.
    let draws = RngStream::new(7);
    let (a, b) = (Dropout::with_rng(0.5, draws.clone()), Dropout::with_rng(0.5, draws.clone()).clone());
    let drawn = [mask(&a), mask(&b)];
    assert_ne!(drawn[0], drawn[1]);
    draws.set_position(0);
    assert_eq!([mask(&a), mask(&b)], drawn);
}

/// A random number of another kind: a stream shared by several layers and by threads.
#[test]
fn shake_shake_replays_its_step() {
    let shake = ShakeShake::new(RngStream::new(3));
    let (a, b) = (ones().reshape((8, 8)).unwrap(), ones().zeros_like().unwrap().reshape((8, 8)).unwrap());
    let drawn = masks(&Sam::new(0.05), || {
        let drawn = bits(&shake.forward(&a, &b, true).unwrap());
        std::thread::scope(|scope| scope.spawn(|| shake.forward(&a, &b, true).map(drop)).join().unwrap()).unwrap();
        drawn
    });
    assert_eq!(drawn[0], drawn[1]);
}

fn norm() -> nn::BatchNorm {
    nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&VarMap::new(), DType::F32, device())).unwrap()
}

fn statistics(bn: &nn::BatchNorm) -> [Vec<u64>; 2] {
    [bits(bn.running_mean()), bits(bn.running_var())]
}

/// What rayon does with a thread that waits inside the second pass of a step: it runs a plain forward pass of another training.
#[test]
fn a_plain_forward_inside_the_second_pass_of_another_step_moves_its_statistics() {
    let ([mine, other, twin], (x, _)) = ([norm(), norm(), norm()], batch(9, DType::F32, 3));
    Sam::new(0.05)
        .loss(|| -> Result<Tensor> {
            let y = mine.forward_train(&x)?;
            if Pass::current() == Pass::Descent {
                other.forward_train(&x)?;
                other.clone().forward_train(&x)?;
            }
            y.sqr()?.sum_all()
        })
        .unwrap();
    twin.forward_train(&x).unwrap();
    assert_eq!(statistics(&mine), statistics(&twin));
    twin.forward_train(&x).unwrap();
    assert_eq!(statistics(&other), statistics(&twin));
}

/// A step that fails leaves the running statistics as they were: whether the second pass fails, a loss is not finite, or a
/// later shard is refused.
#[test]
fn statistics_go_back_with_a_step_that_fails() {
    let (bn, (x, _)) = (norm(), batch(9, DType::F32, 3));
    bn.forward_train(&x).unwrap();
    let before = statistics(&bn);
    let nan = (&x * f64::NAN).unwrap();
    let square = |x: &Tensor| bn.forward_train(x)?.sqr()?.sum_all();
    let sam = Sam::new(0.5);
    let mut failed = vec![
        sam.loss(|| {
            let loss = square(&x)?;
            if Pass::current() == Pass::Descent {
                candle_core::bail!("on purpose")
            }
            Ok(loss)
        }),
        in_parts(&x.narrow(0, 0, 8).unwrap(), &square),
    ];
    // On other devices values are not checked.
    if device().is_cpu() {
        failed.extend([
            sam.loss(|| square(&nan)),
            sam.loss(|| if Pass::current() == Pass::Descent { square(&nan) } else { square(&x) }),
            // Without a perturbation too.
            Sam::new(0.0).loss(|| square(&nan)),
            Sam::new(0.0).loss(|| square(&x)? * f64::INFINITY),
        ]);
    }
    for (i, failed) in failed.into_iter().enumerate() {
        assert!(failed.is_err(), "{i}");
    }
    assert_eq!(statistics(&bn), before);
    let twin = norm();
    twin.forward_train(&x).unwrap();
    for _ in 0..2 {
        sam.loss(|| square(&x)).unwrap();
        twin.forward_train(&x).unwrap();
    }
    assert_eq!(statistics(&bn), statistics(&twin));
    // As in PyTorch, a plain pass moves them to whatever the batch has.
    bn.forward_train(&nan).unwrap();
    assert!(values(bn.running_mean()).iter().all(|x| x.is_nan()));
}

/// Fails in the last part, of two rows, when those before have moved statistics.
#[sam(rho = 0.5, micro_batches(x; m = 3))]
fn in_parts(x: &Tensor, square: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if x.dim(0)? == 2 {
        candle_core::bail!("on purpose")
    }
    square(x)
}

/// A clone has the statistics of the layer, and knows that the layer has moved them.
#[test]
fn a_clone_does_not_move_the_statistics_again() {
    let ([bn, twin], (x, _)) = ([norm(), norm()], batch(9, DType::F32, 3));
    let sam = Sam::new(0.05);
    for _ in 0..3 {
        sam.loss(|| bn.clone().forward_train(&x)?.sqr()?.sum_all()).unwrap();
        twin.forward_train(&x).unwrap();
    }
    assert_eq!(statistics(&bn), statistics(&twin));
}

/// Threads that the loss function uses itself, with its context.
#[test]
fn workers_know_the_pass() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (x, _) = batch(8, DType::F32, 3);
    let (bns, twins) = ([norm(), norm()], [norm(), norm()]);
    let dropouts = [Dropout::seeded(0.5, 1), Dropout::seeded(0.5, 2)];
    let sam = Sam::new(0.05);
    for step in 0..20 {
        let seen = RefCell::new(Vec::new());
        sam.loss(|| -> Result<Tensor> {
            let context = Context::current();
            let half = |i: usize| {
                context.enter(|| -> Result<_> {
                    let y = dropouts[i].forward(&bns[i].forward_train(&x)?, true)?;
                    Ok((mask(&dropouts[i]), y.sqr()?.sum_all()?))
                })
            };
            let (a, b) = pool.install(|| rayon::join(|| half(0), || half(1)));
            let (a, b) = (a?, b?);
            seen.borrow_mut().push([a.0, b.0]);
            a.1 + b.1
        })
        .unwrap();
        let seen = seen.take();
        assert_eq!(seen[0], seen[1], "step {step}");
        for twin in &twins {
            twin.forward_train(&x).unwrap();
        }
        for (bn, twin) in bns.iter().zip(&twins) {
            assert_eq!(statistics(bn), statistics(twin), "step {step}");
        }
    }
}

/// The gradient of Functional-SAM for z = w², L = Σ z²: J(w + ε̂)ᵀ 2 z(w).
fn functional_gradient(w: &[f64], rho: f64) -> Vec<f64> {
    let g: Vec<f64> = w.iter().map(|w| 4. * w.powi(3)).collect();
    let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
    w.iter().zip(&g).map(|(w, g)| 2. * (w + rho * g / norm) * 2. * w * w).collect()
}

/// Other steps between the passes, and outputs that are a view.
#[test]
fn functional_sam_knows_its_step() {
    let functional = FunctionalSam::default();
    let train = |w: &[f64], inner: &dyn Fn()| {
        let padded = [&[7.], w].concat();
        let var = Var::new(&padded[..], device()).unwrap();
        let loss = Sam::new(0.1)
            .loss(|| -> Result<Tensor> {
                let z = functional.apply(&var.sqr()?.narrow(0, 1, w.len())?)?;
                let loss = z.sqr()?.sum_all()?;
                inner();
                Ok(loss)
            })
            .unwrap();
        let found = values(loss.backward().unwrap().get(&var).unwrap());
        for (found, expected) in found[1..].iter().zip(functional_gradient(w, 0.1)) {
            assert!((found - expected).abs() < 1e-10 * expected.abs(), "{found} and {expected}");
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|i| {
                scope.spawn(move || {
                    let w = [1. + f64::from(i), 2.];
                    for _ in 0..50 {
                        // Another step on another thread, with outputs of another shape.
                        train(&w, &|| ());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    train(&[1., 2.], &|| {
        std::thread::scope(|scope| scope.spawn(|| train(&[1., 2., 3.], &|| ())).join().unwrap());
    });
}
