//! A step that fails on one rank fails on all, and the next one can succeed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Optimizer;
use sam_runtime::distributed::Comm;
use sam_runtime::optim::{GradScaler, ParamsSgd, Sgd};
use sam_runtime::{Error, Sam};
use sam_tests::{Net, batch};

use crate::ranks::on_ranks;

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Err,
    Panic,
    NanLoss,
    NanGradient,
}

/// The error of a step, where rank 1 ends in this way in the run of the loss function with this number.
fn failing(world: &Comm, sam: &Sam, end: End, failing: usize, in_shards: bool) -> Option<candle_core::Error> {
    let net = Net::new(DType::F32, 3);
    let before = net.bits();
    let (x, y) = batch(8, DType::F32, 10 + world.rank() as u64);
    let mut runs = 0;
    let mut loss = |x: &Tensor, y: &Tensor| -> Result<Tensor> {
        runs += 1;
        if world.rank() != 1 || runs != failing + 1 {
            return net.loss(x, y);
        }
        match end {
            End::Err => candle_core::bail!("out of data"),
            End::Panic => panic!("this is a test"),
            End::NanLoss => net.loss(x, y)? * f64::NAN,
            // 0 · (1 / 0)
            End::NanGradient => net.loss(x, y)? + net.vars[1].zeros_like()?.mul(&net.vars[1])?.sqrt()?.sum_all()?,
        }
    };
    let step = || -> Result<Tensor> {
        if !in_shards {
            return sam.loss(|| loss(&x, &y));
        }
        let mut shards = sam.shards(4)?.split(&x)?.split(&y)?;
        while let Some(shard) = shards.next_shard() {
            let (x, y) = (shard.of(&x)?, shard.of(&y)?);
            let mut loss = |_| loss(&x, &y);
            sam.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore_into(&mut shards)?;
        }
        shards.loss()
    };
    let outcome = catch_unwind(AssertUnwindSafe(step));
    assert_eq!(net.bits(), before, "{end:?} in run {failing}");
    assert_eq!(outcome.is_err(), end == End::Panic && world.rank() == 1);
    let error = outcome.ok().map(|outcome| outcome.unwrap_err());
    // All ranks are at the same step again.
    assert!(sam.loss(|| net.loss(&x, &y)).is_ok());
    error
}

#[test]
fn a_step_that_fails_on_one_rank_fails_on_all() {
    for end in [End::Err, End::Panic, End::NanLoss, End::NanGradient] {
        for (passes, synchronized, in_shards) in [(2, false, false), (2, true, false), (4, false, true)] {
            for pass in 0..passes {
                let errors = on_ranks(3, |world, _| {
                    let sam = Sam::new(0.1).all_reduce(world);
                    let sam = if synchronized { sam.synchronized_ascent() } else { sam };
                    failing(world, &sam, end, pass, in_shards)
                });
                let why = match end {
                    End::Err => "its loss function returned an error",
                    End::Panic => "it panicked",
                    End::NanLoss => "the loss is NaN",
                    End::NanGradient => "is not finite in variable",
                };
                for rank in [0, 2] {
                    let error = errors[rank].as_ref().unwrap();
                    let Some(Error::OtherRank { rank: 1, why: found, .. }) = Error::of(error) else {
                        panic!("{end:?}: {error}")
                    };
                    assert!(found.contains(why), "{end:?}: {found}");
                    let text = error.to_string();
                    assert!(text.contains("rank 1 failed in this step"), "{text}");
                }
                let own = errors[1].as_ref().map(ToString::to_string).unwrap_or_default();
                let expected = match end {
                    End::Err => "out of data",
                    End::Panic => "",
                    End::NanLoss | End::NanGradient => why,
                };
                assert!(own.contains(expected), "{end:?}: {own}");
            }
        }
    }
}

/// The scale is halved on all ranks where one gradient overflows.
#[test]
fn a_loss_scale_is_that_of_all_ranks() {
    let ranks = on_ranks(3, |world, _| {
        let net = Net::new(DType::F32, 3);
        let scaler = GradScaler::new(8.0, 100).unwrap();
        let sam = Sam::new(0.1).grad_scaler(&scaler).all_reduce(world);
        let mut sgd = Sgd::new(net.vars.to_vec(), ParamsSgd { lr: 0.1, ..ParamsSgd::default() }).unwrap();
        let mut taken = Vec::new();
        for number in 0..4 {
            let (x, y) = batch(8, DType::F32, 100 * number + world.rank() as u64);
            let factor = if (number, world.rank()) == (2, 1) { f64::INFINITY } else { 1.0 };
            let loss = scaler.step(&mut sgd, || sam.loss(|| -> Result<Tensor> { net.loss(&x, &y)? * factor })).unwrap();
            taken.push(loss.is_some());
        }
        world.check_replicas(net.vars.to_vec()).unwrap();
        (taken, scaler.scale())
    });
    assert!(ranks.iter().all(|rank| *rank == (vec![true, true, false, true], 4.0)), "{ranks:?}");
}

fn messages<T>(results: Vec<Result<T>>) -> Vec<String> {
    results.into_iter().map(|result| result.err().map(|error| error.to_string()).unwrap_or_default()).collect()
}

#[test]
fn ranks_with_other_variables_are_refused() {
    let errors = messages(on_ranks(3, |world, _| {
        let w = Var::ones(2 + usize::from(world.rank() == 2), DType::F32, &Device::Cpu)?;
        Sam::new(0.1).all_reduce(world).loss(|| -> Result<Tensor> { w.sqr()?.sum_all() })
    }));
    let expected = "rank 0 is at the all-reduce of a step's gradient with 1 tensors, 2 elements, rank 2 at the all-reduce of a \
                    step's gradient with 1 tensors, 3 elements: every rank needs the same tensors";
    assert!(errors.iter().all(|error| error.starts_with(expected)), "{errors:?}");
    // Of the same size, but another shape.
    let errors = messages(on_ranks(2, |world, _| {
        let shape = if world.rank() == 0 { (2, 3) } else { (3, 2) };
        let w = Var::ones(shape, DType::F32, &Device::Cpu)?;
        Sam::new(0.1).all_reduce(world).loss(|| -> Result<Tensor> { w.sqr()?.sum_all() })
    }));
    assert!(errors.iter().all(|error| error.contains("of the same shapes and dtypes")), "{errors:?}");
    // One whose loss depends on nothing has no gradient to send.
    let errors = messages(on_ranks(2, |world, _| {
        let w = Var::ones(3, DType::F32, &Device::Cpu)?;
        let x = if world.rank() == 0 { w.as_tensor().clone() } else { w.as_detached_tensor() };
        Sam::new(0.1).all_reduce(world).loss(|| -> Result<Tensor> { x.sqr()?.sum_all() })
    }));
    assert!(errors.iter().all(|error| error.contains("rank 1 at")), "{errors:?}");
}

#[test]
fn ranks_at_other_calls_are_refused() {
    let errors = messages(on_ranks(2, |world, _| {
        let w = Var::ones(2, DType::F32, &Device::Cpu)?;
        if world.rank() == 1 {
            return world.mean(1.0).map(|_| ());
        }
        Sam::new(0.1).all_reduce(world).loss(|| -> Result<Tensor> { w.sqr()?.sum_all() }).map(|_| ())
    }));
    let expected = "rank 0 is at the all-reduce of a step's gradient, rank 1 at `mean` or `any`: every rank needs the same \
                    number of steps, and the same calls in the same order";
    assert!(errors.iter().all(|error| error.starts_with(expected)), "{errors:?}");
}

#[test]
fn settings_that_do_not_go_together() {
    let error = Sam::new(0.1).synchronized_ascent().validate().unwrap_err().to_string();
    assert!(error.contains("`synchronized_ascent`: it is for the ranks of `all_reduce`"), "{error}");
    let sam = Sam::new(0.1).all_reduce(Comm::solo()).synchronized_ascent();
    let error = sam.shards::<Tensor>(4).unwrap_err().to_string();
    assert!(error.contains("each shard has its own perturbation"), "{error}");
}
