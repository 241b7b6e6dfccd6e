//! Several trainings at once: each ends with the bits that it has alone.
//!
//! A thread of a rayon pool that waits inside a pass is given another training to work on, if there is one. The products
//! here are large enough for candle, and for our layers, to wait for rayon.

use std::sync::mpsc;
use std::thread;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{ModuleT, Optimizer, VarBuilder, VarMap};
use rayon::prelude::*;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Context, Pass, Sam, nn, plain, sam};
use sam_tests::{bits, tensor};

use super::refused;

const SIZE: usize = 96;

struct Net {
    first: Var,
    norm: nn::BatchNorm,
    dropout: nn::Dropout,
    head: nn::Linear,
    vars: Vec<Var>,
}

impl Net {
    fn new(seed: u64) -> Self {
        let var = |dims: &[usize], seed| Var::from_tensor(&tensor(dims, DType::F32, seed)).unwrap();
        let (first, head) = (var(&[SIZE, SIZE], seed), var(&[8, SIZE], seed + 1));
        let norm =
            nn::batch_norm(SIZE, 1e-5, VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu)).unwrap();
        let vars = vec![first.clone(), head.clone()];
        Self {
            first,
            norm,
            dropout: nn::Dropout::seeded(0.2, seed),
            head: nn::Linear::new(head.as_tensor().clone(), None),
            vars,
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.norm.forward_t(&x.matmul(&self.first)?, train)?;
        self.head.forward(&self.dropout.forward(&hidden.tanh()?, train)?)
    }
}

#[sam(rho = 0.1)]
fn loss(net: &Net, x: &Tensor) -> Result<Tensor> {
    // What a loss function does on other threads itself.
    let pass = Context::current();
    let (logits, factor) = rayon::join(
        || pass.enter(|| net.forward(x, true)),
        || (0..64).into_par_iter().map(|i| 1. / f64::from(i + 1)).sum::<f64>(),
    );
    assert!(factor > 1.);
    nn::cross_entropy(&logits?, &Tensor::from_vec((0..SIZE as u32).map(|i| i % 8).collect(), SIZE, &Device::Cpu)?)
}

/// The bits of all that a training has changed.
fn train(seed: u64, steps: usize) -> Vec<Vec<u64>> {
    let (net, x) = (Net::new(seed), tensor(&[SIZE, SIZE], DType::F32, seed + 2));
    let mut sgd = Sgd::new(net.vars.clone(), ParamsSgd { lr: 0.05, ..Default::default() }).unwrap();
    for step in 0..steps {
        sgd.backward_step(&loss(&net, &x).unwrap()).unwrap();
        if step % 8 == 7 {
            // An evaluation, and a plain pass whose gradient candle takes.
            net.forward(&x, false).unwrap();
            let flat = plain(|| loss(&net, &x)).unwrap().backward().unwrap();
            assert!(flat.get(&net.first).is_some());
        }
    }
    let mut all: Vec<_> = net.vars.iter().map(|var| bits(var)).collect();
    all.extend([bits(net.norm.running_mean()), bits(net.norm.running_var())]);
    all
}

/// Trainings, and steps of each, so that the tests of this file together take more than 10,000.
const TRAININGS: u64 = 8;
const STEPS: usize = 250;

fn alone() -> Vec<Vec<Vec<u64>>> {
    static ALONE: std::sync::OnceLock<Vec<Vec<Vec<u64>>>> = std::sync::OnceLock::new();
    ALONE
        .get_or_init(|| thread::spawn(|| (0..TRAININGS).map(|seed| train(seed, STEPS)).collect()).join().unwrap())
        .clone()
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn same(mut found: Vec<(u64, Vec<Vec<u64>>)>) {
    found.sort_by_key(|(seed, _)| *seed);
    let expected = alone();
    assert_eq!(found.len(), expected.len());
    for ((seed, found), expected) in found.iter().zip(&expected) {
        assert!(found == expected, "training {seed} has other bits than alone");
    }
}

#[test]
fn spawned_on_one_pool() {
    for threads in [1, 3] {
        let (sender, receiver) = mpsc::channel();
        let pool = pool(threads);
        for seed in 0..TRAININGS {
            let sender = sender.clone();
            pool.spawn(move || sender.send((seed, train(seed, STEPS))).unwrap());
        }
        drop(sender);
        same(receiver.iter().collect());
    }
}

#[test]
fn in_a_scope_of_the_global_pool() {
    let found = std::sync::Mutex::new(Vec::new());
    rayon::scope(|scope| {
        for seed in 0..TRAININGS {
            let found = &found;
            scope.spawn(move |_| found.lock().unwrap().push((seed, train(seed, STEPS))));
        }
    });
    same(found.into_inner().unwrap());
}

#[test]
fn by_a_parallel_iterator() {
    same(pool(4).install(|| {
        (0..TRAININGS)
            .collect::<Vec<_>>()
            .into_par_iter()
            .with_max_len(1)
            .map(|seed| (seed, train(seed, STEPS)))
            .collect()
    }));
}

#[test]
fn by_joins() {
    fn halves(seeds: std::ops::Range<u64>) -> Vec<(u64, Vec<Vec<u64>>)> {
        let (start, end) = (seeds.start, seeds.end);
        if end - start == 1 {
            return vec![(start, train(start, STEPS))];
        }
        let middle = u64::midpoint(start, end);
        let (mut left, right) = rayon::join(|| halves(start..middle), || halves(middle..end));
        left.extend(right);
        left
    }
    same(pool(2).install(|| halves(0..TRAININGS)));
}

#[test]
fn on_tokios_blocking_pool() {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(3).build().unwrap();
    let trainings: Vec<_> =
        (0..TRAININGS).map(|seed| runtime.spawn_blocking(move || (seed, train(seed, STEPS)))).collect();
    same(trainings.into_iter().map(|training| runtime.block_on(training).unwrap()).collect());
}

#[test]
fn on_threads_of_their_own() {
    let threads: Vec<_> = (0..TRAININGS).map(|seed| thread::spawn(move || (seed, train(seed, STEPS)))).collect();
    same(threads.into_iter().map(|thread| thread.join().unwrap()).collect());
}

#[sam(rho = 0.1)]
fn outer(net: &Net, x: &Tensor, apart: bool) -> Result<Tensor> {
    let inner = if apart { plain(|| loss(net, x))? } else { loss(net, x)? };
    inner + net.first.sqr()?.sum_all()?
}

/// An annotated function inside another one is a part of it; on a thread of a pool, where it may be another training, it has
/// to be said.
#[test]
fn an_annotated_function_inside_another_one() {
    let run = |apart| {
        let (net, x) = (Net::new(1), tensor(&[SIZE, SIZE], DType::F32, 3));
        outer(&net, &x, apart).map(|loss| bits(loss.backward().unwrap().get(&net.first).unwrap()))
    };
    let expected = run(false).unwrap();
    assert!(run(true).unwrap() == expected);
    let pool = pool(2);
    assert!(pool.install(|| run(true)).unwrap() == expected);
    refused(pool.install(|| run(false)), &["inside another one", "plain(|| ..)"]);
    refused(pool.install(|| plain(|| run(false))), &["inside another one", "plain(|| ..)"]);
}

/// Threads that a loss function uses itself know the pass if it is carried to them.
#[test]
fn the_pass_on_other_threads() {
    let w = Var::ones(1000, DType::F64, &Device::Cpu).unwrap();
    let (a, b) = (nn::Dropout::seeded(0.5, 1), nn::Dropout::seeded(0.5, 2));
    let mut seen = Vec::new();
    let carried =
        Sam::new(0.).loss(|| -> Result<Tensor> { a.forward(&w, true)?.sum_all()? + b.forward(&w, true)?.sum_all()? });
    carried.unwrap();
    Sam::new(0.5)
        .loss(|| -> Result<Tensor> {
            let pass = Context::current();
            let half = |layer: &nn::Dropout| {
                pass.enter(|| Ok::<_, candle_core::Error>((Pass::current(), layer.forward(&w, true)?)))
            };
            let (a, b) = rayon::join(|| half(&a), || half(&b));
            let ((pass_a, a), (pass_b, b)) = (a?, b?);
            let mask = |x: &Tensor| x.ne(0.)?.to_vec1::<u8>();
            seen.push(([pass_a, pass_b], [mask(&a)?, mask(&b)?]));
            a.sqr()?.sum_all()? + b.sqr()?.sum_all()?
        })
        .unwrap();
    let [(first, first_masks), (second, second_masks)] = &seen[..] else { panic!("expected two passes") };
    assert_eq!((first, second), (&[Pass::Ascent; 2], &[Pass::Descent; 2]));
    assert_eq!(first_masks, second_masks);
    assert_ne!(first_masks[0], first_masks[1]);
}
