//! State and randomness: what the first pass leaves stays, what it drew the second pass draws again.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::{Cell, RefCell};

use candle_core::{DType, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::nn::{self, Dropout};
use sam_runtime::{Pass, Sam, plain, sam};
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

/// The batch normalisation of this crate needs no `vars`.
#[test]
fn batch_normalisation_keeps_the_statistics_of_the_first_pass() {
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
    // The second pass normalises by its batch all the same: it sees the moved weight, and gives another gradient.
    let weight = |bn: &nn::BatchNorm, loss: &Tensor| {
        values(loss.backward().unwrap().get(bn.weight_and_bias().unwrap().0).unwrap())
    };
    assert_ne!(weight(&bn, &sharp), weight(&twin, &flat));
    // Stock layers of candle move twice without `vars`.
    let stock = VarMap::new();
    let stock = candle_nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&stock, DType::F32, device())).unwrap();
    sam.loss(|| -> Result<Tensor> { stock.forward_t(&x, true)?.sqr()?.sqr()?.mean_all() }).unwrap();
    assert_ne!(bits(stock.running_mean()), bits(bn.running_mean()));

    // After a failed second pass too.
    sam.loss(|| {
        let loss = loss(&bn)?;
        if Pass::current() == Pass::Descent {
            candle_core::bail!("on purpose")
        }
        Ok(loss)
    })
    .unwrap_err();
    loss(&twin).unwrap();
    assert_eq!(statistics(&bn), statistics(&twin));
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
        let x = candle_core::Var::ones((50, 40), dtype, device()).unwrap();
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
