//! Every variant on several ranks: the replicas stay the same.

use candle_core::DType;
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
