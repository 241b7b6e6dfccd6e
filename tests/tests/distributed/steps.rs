//! What a step on several ranks computes, and what it sends.

use std::sync::atomic::Ordering;

use candle_core::{DType, Result, Tensor};
use candle_nn::{Optimizer, ParamsAdamW};
use sam_runtime::distributed::Comm;
use sam_runtime::optim::{AdamW, ParamsSgd, Sgd, clip_grad_norm};
use sam_runtime::variants::{Combination, Schedule};
use sam_runtime::{Sam, plain, sam};
use sam_tests::{Net, batch, values};

use crate::ranks::{Sent, on_ranks};

/// Samples of a shard.
const M: usize = 4;
const STEPS: u64 = 200;

#[sam(rho = 0.1, all_reduce = world)]
fn on_a_rank(net: &Net, x: &Tensor, y: &Tensor, world: &Comm) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.1, all_reduce = world, shards(x, y; m = M))]
fn on_a_rank_in_shards(net: &Net, x: &Tensor, y: &Tensor, world: &Comm) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.1, all_reduce = world, ascent = synchronized)]
fn synchronized(net: &Net, x: &Tensor, y: &Tensor, world: &Comm) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.1, shards(x, y; m = M))]
fn in_shards(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.1)]
fn whole(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

fn sgd(net: &Net) -> Box<dyn FnMut(&Tensor)> {
    let params = ParamsSgd { lr: 0.05, momentum: 0.9, ..ParamsSgd::default() };
    stepping(net, Sgd::new(net.vars.to_vec(), params).unwrap())
}

fn adamw(net: &Net) -> Box<dyn FnMut(&Tensor)> {
    let params = ParamsAdamW { lr: 0.003, ..ParamsAdamW::default() };
    stepping(net, AdamW::new(net.vars.to_vec(), params).unwrap())
}

/// With clipping, which sees the mean of the gradients.
fn stepping(net: &Net, mut optimizer: impl Optimizer + 'static) -> Box<dyn FnMut(&Tensor)> {
    let vars = net.vars.clone();
    Box::new(move |loss| {
        let mut grads = loss.backward().unwrap();
        clip_grad_norm(&mut grads, &vars, 0.5).unwrap();
        optimizer.step(&grads).unwrap();
    })
}

type Make = fn(&Net) -> Box<dyn FnMut(&Tensor)>;

/// The weights after all steps with these losses, on this rank's share of the batches.
fn trained(
    world: &Comm,
    (dtype, make, share): (DType, Make, usize),
    loss: impl Fn(&Net, &Tensor, &Tensor) -> Result<Tensor>,
) -> Vec<f64> {
    let net = Net::new(dtype, 3);
    let mut step = make(&net);
    for number in 0..STEPS {
        let (x, y) = batch(share * world.size(), dtype, 10 + 2 * number);
        let start = share * world.rank();
        let (x, y) = (x.narrow(0, start, share).unwrap(), y.narrow(0, start, share).unwrap());
        step(&loss(&net, &x, &y).unwrap());
    }
    net.vars.iter().flat_map(|var| values(var)).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn ranks_of_m_samples_are_shards_of_m_samples() {
    for (dtype, make) in [(DType::F32, sgd as Make), (DType::F32, adamw), (DType::F64, sgd), (DType::F64, adamw)] {
        for size in [2, 3, 4] {
            let ranks =
                on_ranks(size, |world, _| trained(world, (dtype, make, M), |n, x, y| on_a_rank(n, x, y, world)));
            let alone = trained(&Comm::solo(), (dtype, make, M * size), in_shards);
            assert!(ranks.iter().all(|weights| *weights == ranks[0]), "{size} {dtype:?}");
            let error = distance(&ranks[0], &alone);
            assert!(error < 1e-6, "{size} {dtype:?}: {error}");
        }
    }
}

/// m is fixed whatever the number of ranks: two ranks with two shards each are four ranks, and one with four shards.
#[test]
fn shards_on_ranks_are_shards() {
    let setup = (DType::F64, adamw as Make, 2 * M);
    let two = on_ranks(2, |world, _| trained(world, setup, |n, x, y| on_a_rank_in_shards(n, x, y, world)));
    let four = on_ranks(4, |world, _| trained(world, (DType::F64, adamw, M), |n, x, y| on_a_rank(n, x, y, world)));
    let alone = trained(&Comm::solo(), (DType::F64, adamw, 4 * M), in_shards);
    assert_eq!(two[0], two[1]);
    assert!(distance(&two[0], &alone) < 1e-12 && distance(&four[0], &alone) < 1e-12);
}

#[test]
fn a_synchronized_ascent_is_that_of_the_whole_batch() {
    for make in [sgd as Make, adamw] {
        let ranks =
            on_ranks(3, |world, _| trained(world, (DType::F64, make, M), |n, x, y| synchronized(n, x, y, world)));
        let alone = trained(&Comm::solo(), (DType::F64, make, 3 * M), whole);
        assert!(ranks.iter().all(|weights| *weights == ranks[0]));
        assert!(distance(&ranks[0], &alone) < 1e-10);
        let per_rank =
            on_ranks(3, |world, _| trained(world, (DType::F64, make, M), |n, x, y| on_a_rank(n, x, y, world)));
        assert!(distance(&per_rank[0], &alone) > 1e-4, "each rank its own perturbation");
    }
}

#[test]
fn one_rank_is_the_step_itself() {
    let alone = Comm::solo();
    let with = trained(&alone, (DType::F32, sgd, M), |n, x, y| on_a_rank(n, x, y, &alone));
    assert_eq!(with, trained(&alone, (DType::F32, sgd, M), whole));
    let with = trained(&alone, (DType::F32, sgd, M), |n, x, y| synchronized(n, x, y, &alone));
    assert_eq!(with, trained(&alone, (DType::F32, sgd, M), whole));
}

/// The reductions and gradients' worth of bytes that a step of a `Sam` sends.
fn volume(
    sam: impl Fn(&Comm) -> Sam + Sync,
    step: impl Fn(&Sam, &Net, &Tensor, &Tensor) -> Result<Tensor> + Sync,
) -> Vec<(usize, f64)> {
    let of_a_step = |world: &Comm, sent: &Sent| {
        let (net, sam) = (Net::new(DType::F32, 3), sam(world));
        let bytes: usize = net.vars.iter().map(|var| var.elem_count() * 4).sum();
        let mut found = Vec::new();
        for number in 0..4 {
            let (x, y) = batch(2 * M, DType::F32, 7 + number * 10 + world.rank() as u64);
            step(&sam, &net, &x, &y).unwrap();
            let [reductions, sent] = [&sent.reductions, &sent.bytes].map(|count| count.swap(0, Ordering::Relaxed));
            found.push((reductions, sent as f64 / bytes as f64));
        }
        found
    };
    let mut ranks = on_ranks(2, of_a_step);
    assert_eq!(ranks[0], ranks[1]);
    ranks.remove(0)
}

fn of_a_step(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    sam.loss(|| net.loss(x, y))
}

#[test]
fn one_gradient_is_sent_for_a_step_and_not_two() {
    let one = vec![(1, 1.0); 4];
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world), of_a_step), one);
    assert_eq!(volume(|world| Sam::new(0.0).all_reduce(world), of_a_step), one);
    assert_eq!(volume(|world| Sam::new(0.1).ascent_steps(3, 0.5).all_reduce(world), of_a_step), one);
    assert_eq!(volume(|world| Sam::second_order().all_reduce(world), of_a_step), one);
    assert_eq!(volume(|world| Sam::look_sam().all_reduce(world), of_a_step), one);
    // Each rank takes its own decision on a second pass.
    let by_rank = |world: &Comm| {
        let sam = Sam::new(0.1).all_reduce(world).schedule(Schedule::Every(2));
        if world.rank() == 0 { sam } else { sam.schedule(Schedule::FromStep(3)) }
    };
    assert_eq!(volume(by_rank, of_a_step), one);
    let in_shards = |sam: &Sam, net: &Net, x: &Tensor, y: &Tensor| {
        let mut shards = sam.shards(3)?.split(x)?.split(y)?;
        while let Some(shard) = shards.next_shard() {
            let (x, y) = (shard.of(x)?, shard.of(y)?);
            let mut loss = |_| net.loss(&x, &y);
            sam.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore_into(&mut shards)?;
        }
        shards.loss()
    };
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world), in_shards), one);
    let in_parts = |sam: &Sam, net: &Net, x: &Tensor, y: &Tensor| {
        let parts = sam.micro_batches(3)?.split(x)?.split(y)?;
        let mut loss = |_| net.loss(&parts.of(x)?, &parts.of(y)?);
        parts.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore()
    };
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world), in_parts), one);

    let two = vec![(2, 2.0); 4];
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world).synchronized_ascent(), of_a_step), two);
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world).synchronized_ascent(), in_parts), two);
    // What is left to do after the optimizer's step goes with the gradient.
    let decoupled = |sam: &Sam, net: &Net, x: &Tensor, y: &Tensor| {
        let loss = of_a_step(sam, net, x, y)?;
        sam.apply_decoupled(0.0)?;
        Ok(loss)
    };
    assert_eq!(volume(|world| Sam::wsam().all_reduce(world), decoupled), vec![(1, 2.0); 4]);
    let nothing = |sam: &Sam, net: &Net, x: &Tensor, y: &Tensor| plain(|| of_a_step(sam, net, x, y));
    assert_eq!(volume(|world| Sam::new(0.1).all_reduce(world), nothing), vec![(0, 0.0); 4]);
}

/// The value is the rank's own, and a clone of a `Sam` sends as well.
#[test]
fn the_value_stays_the_ranks_own() {
    let ranks = on_ranks(3, |world, _| {
        let (net, (x, y)) = (Net::new(DType::F64, 3), batch(M, DType::F64, world.rank() as u64));
        let sam = Sam::new(0.1).combination(Combination::Gsam { alpha: 0.4 }).all_reduce(world).clone();
        let loss = values(&sam.loss(|| net.loss(&x, &y)).unwrap())[0];
        assert_eq!(loss, values(&net.loss(&x, &y).unwrap())[0]);
        (loss, world.mean(loss).unwrap())
    });
    let mean = ranks.iter().map(|(loss, _)| loss).sum::<f64>() / 3.0;
    assert!(ranks.iter().all(|(loss, found)| *found == mean && *loss != mean));
}
