//! Every variant on several ranks: the replicas stay the same.

use candle_core::DType;
use candle_nn::VarMap;
use safetensors::SafeTensors;
use sam_runtime::Sam;
use sam_runtime::distributed::Comm;
use sam_tests::{Net, gradient};

use crate::promises::{Variant, all};
use crate::ranks::on_ranks;
use crate::reference::{LR, batch_of, mix, set_weights, weights};

const STEPS: u64 = 12;

fn trained(make: fn(&Net) -> Sam, set: impl Fn(Sam) -> Sam, world: &Comm) -> Vec<f64> {
    let net = Net::new(DType::F64, 5);
    let sam = set(make(&net));
    for step in 0..STEPS {
        let (x, y) = batch_of(step);
        let len = 12 / world.size();
        let start = len * world.rank();
        let (x, y) = (x.narrow(0, start, len).unwrap(), y.narrow(0, start, len).unwrap());
        let loss = sam.loss(|| net.loss(&x, &y)).unwrap();
        set_weights(&net, &mix(1.0, &weights(&net), -LR, &gradient(&loss, &net.vars).concat()));
        sam.apply_decoupled(LR).unwrap();
    }
    world.check_replicas(net.vars.to_vec()).unwrap();
    weights(&net)
}

#[test]
fn replicas_stay_the_same() {
    for Variant { name, make, .. } in all() {
        let ranks = on_ranks(3, |world, _| trained(make, |sam| sam.all_reduce(world), world));
        assert!(ranks.iter().all(|weights| *weights == ranks[0]), "{name}");
    }
}

/// With a synchronized ascent a variant computes what it computes in one process.
#[test]
fn synchronized_they_are_those_of_one_process() {
    for Variant { name, make, .. } in all() {
        let ranks = on_ranks(3, |world, _| trained(make, |sam| sam.all_reduce(world).synchronized_ascent(), world));
        let alone = trained(make, |sam| sam, &Comm::solo());
        for weights in ranks {
            let error = weights.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-6, "{name}: {error}");
        }
    }
}

/// A variant that remembers gradients remembers its rank's own, and its file says whose.
#[test]
fn the_state_of_a_rank_says_which_rank_it_is_of() {
    let saved = |set: fn(Sam, &Comm) -> Sam| {
        on_ranks(2, |world, _| {
            let (net, sam) = (Net::new(DType::F64, 5), set(Sam::look_sam(), world));
            let (x, y) = batch_of(world.rank() as u64);
            sam.loss(|| net.loss(&x, &y)).unwrap();
            let bytes = sam.to_bytes(&named(&net)).unwrap();
            // Another number of ranks may go on with it.
            set(Sam::look_sam(), &Comm::solo()).load_bytes(&named(&net), &bytes).unwrap();
            let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            metadata.metadata().as_ref().unwrap().get("rank").cloned()
        })
    };
    let own = saved(|sam, world| sam.all_reduce(world));
    assert_eq!(own, ["0 of 2", "1 of 2"].map(|rank| Some(rank.to_owned())));
    assert_eq!(saved(|sam, world| sam.all_reduce(world).synchronized_ascent()), [None, None]);
}

fn named(net: &Net) -> VarMap {
    let names = VarMap::new();
    for (i, var) in net.vars.iter().enumerate() {
        names.data().lock().unwrap().insert(format!("v{i}"), var.clone());
    }
    names
}
