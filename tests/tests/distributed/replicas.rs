//! Replicas: copied, averaged, compared; which samples and which random numbers are a rank's.

use std::collections::HashSet;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Init, VarMap};
use sam_runtime::distributed::{Comm, run};
use sam_runtime::optim::{AdamW, Optimizer, ParamsAdamW};
use sam_runtime::{Error, name_variables};
use sam_tests::values;

use crate::ranks::on_ranks;

/// Variables of several dtypes, with the rank in each.
fn model(rank: usize) -> (VarMap, Vec<Var>) {
    let vars = VarMap::new();
    let var = |name: &str, dtype| {
        vars.get((2, 3), name, Init::Const(rank as f64 + 1.0), dtype, &Device::Cpu).unwrap();
        vars.data().lock().unwrap()[name].clone()
    };
    let all = vec![var("z", DType::F32), var("a", DType::F64), var("half", DType::BF16)];
    name_variables(&vars);
    (vars, all)
}

#[test]
fn all_get_the_values_of_rank_0() {
    on_ranks(3, |world, _| {
        let (vars, all) = model(world.rank());
        let count = Var::new(7i64 + i64::from(world.rank() > 0), &Device::Cpu).unwrap();
        world.broadcast_vars(vars.all_vars().into_iter().chain([count.clone()])).unwrap();
        assert!(all.iter().all(|var| values(var) == [1.0; 6]));
        assert_eq!(count.to_scalar::<i64>().unwrap(), 7);
        world.check_replicas(vars.all_vars()).unwrap();
    });
}

#[test]
fn the_state_of_an_optimizer_is_that_of_rank_0() {
    on_ranks(2, |world, _| {
        let (vars, all) = model(0);
        let mut adamw = AdamW::new(all.clone(), ParamsAdamW::default()).unwrap();
        if world.rank() == 0 {
            let loss = |var: &Var| var.to_dtype(DType::F32)?.sqr()?.sum_all();
            let loss = all.iter().map(loss).reduce(|a, b| a? + b?).unwrap().unwrap();
            adamw.backward_step(&loss).unwrap();
        }
        let bytes = world.broadcast_bytes(&adamw.to_bytes(&vars).unwrap()).unwrap();
        adamw.load_bytes(&vars, &bytes).unwrap();
        assert_eq!(adamw.to_bytes(&vars).unwrap(), bytes);
    });
}

#[test]
fn statistics_are_averaged() {
    on_ranks(4, |world, _| {
        let (vars, all) = model(world.rank());
        world.average(vars.all_vars()).unwrap();
        assert!(all.iter().all(|var| values(var) == [2.5; 6]));
        let count = Var::new(&[1u32], &Device::Cpu).unwrap();
        let error = world.average([count]).unwrap_err().to_string();
        assert!(error.contains("cannot be averaged: expected floats"), "{error}");
    });
}

#[test]
fn the_first_variable_that_differs_is_named() {
    on_ranks(4, |world, _| {
        let (vars, all) = model(0);
        if world.rank() == 2 {
            // The last bit of one element, of the variables that were made second and third.
            let value = Tensor::new(&[[1.0, 1.0, 1.0 + f64::EPSILON], [1.0; 3]], &Device::Cpu).unwrap();
            all[1].set(&value).unwrap();
            all[2].set(&all[2].zeros_like().unwrap()).unwrap();
        }
        let error = world.check_replicas(vars.all_vars()).unwrap_err();
        let Some(Error::Replicas { variable, ranks }) = Error::of(&error) else { panic!("{error}") };
        assert_eq!((&**variable, &**ranks), ("`a` (F64 [2, 3])", "rank 2"));
        world.check_replicas([all[0].clone()]).unwrap();
    });
}

#[test]
fn the_batches_of_an_epoch_are_shared() {
    let order: Vec<usize> = (0..23).rev().collect();
    for size in [1, 2, 3, 4] {
        let ranks =
            on_ranks(size, |world, _| world.batches(&order, 2).unwrap().map(<[usize]>::to_vec).collect::<Vec<_>>());
        let steps = 23 / (2 * size);
        assert!(ranks.iter().all(|batches| batches.len() == steps));
        // Side by side they are the batches of one process.
        let whole: Vec<_> = (0..steps).flat_map(|step| ranks.iter().flat_map(move |rank| rank[step].clone())).collect();
        assert_eq!(whole, order[..steps * 2 * size]);
    }
    assert!(Comm::solo().batches(&order, 0).is_err());
}

#[test]
fn seeds_differ_by_rank() {
    let seeds: HashSet<u64> = (0..4).flat_map(|seed| on_ranks(4, move |world, _| world.seed(seed))).collect();
    assert_eq!(seeds.len(), 16);
    assert_eq!(on_ranks(3, |world, _| world.seed(9))[0], Comm::solo().seed(9));
}

#[test]
fn what_one_rank_was_told_all_know() {
    assert_eq!(on_ranks(3, |world, _| world.any(world.rank() == 2).unwrap()), [true; 3]);
    assert_eq!(on_ranks(3, |world, _| world.any(false).unwrap()), [false; 3]);
    assert_eq!(on_ranks(4, |world, _| world.mean(world.rank() as f64).unwrap()), [1.5; 4]);
}

#[test]
fn without_mpirun_there_is_one_rank() {
    let size = run(|world| -> candle_core::Result<usize> {
        world.broadcast_vars([Var::new(1f32, &Device::Cpu)?])?;
        Ok(world.size())
    });
    assert_eq!(size.unwrap(), 1);
    let error = run(|_| -> anyhow::Result<()> { anyhow::bail!("out of data") }).unwrap_err();
    assert_eq!(error.to_string(), "out of data");
}

/// Bytes of any number on each rank.
#[test]
fn what_each_rank_has_is_gathered() {
    on_ranks(3, |world, _| {
        let own = |rank: usize| vec![rank as u8 + 1; 9 * rank];
        let all = world.gather_bytes(&own(world.rank())).unwrap();
        assert_eq!(all, [own(0), own(1), own(2)]);
        assert_eq!(world.gather_bytes(&[]).unwrap(), [[]; 3] as [[u8; 0]; 3]);
    });
    assert_eq!(Comm::default().gather_bytes(&[5]).unwrap(), [[5]]);
}

/// After accumulation, of the variables that have a gradient.
#[test]
fn gradients_that_were_added_up_are_averaged_once() {
    on_ranks(2, |world, _| {
        let [a, b, c] = [1.0, 2.0, 3.0].map(|x| Var::new(&[x, x], &Device::Cpu).unwrap());
        let scale = world.rank() as f64 + 1.0;
        let loss = ((a.as_tensor() * b.as_tensor()).unwrap() * scale).unwrap().sum_all().unwrap();
        let mut gradients = loss.backward().unwrap();
        world.average_gradients(&mut gradients, [b.clone(), a.clone(), c.clone(), a.clone()]).unwrap();
        assert_eq!(values(gradients.get(&a).unwrap()), [3.0; 2]);
        assert_eq!(values(gradients.get(&b).unwrap()), [1.5; 2]);
        assert!(gradients.get(&c).is_none());
        assert!(world.waited() > std::time::Duration::ZERO);
    });
}
