//! Random programs against SAM written by hand: two passes of stock candle in f64, and the formula between them.
//!
//! A program is a loss function of random operations, candle's and ours mixed, on variables, some of them tied, views of
//! variables, and tensors from outside; run in random ways: by `Sam::loss`, stage by stage, beside another step on the same
//! weights, on threads; its gradient taken by candle, by `nn::backward` or by `Sgd`.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::thread;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Error, Layout, Module, Result, Shape, Tensor, Var};
use candle_nn::Optimizer;
use proptest::prelude::*;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn};
use sam_tests::{tensor, values};

/// All tensors of a program are of this shape.
const SIDE: usize = 3;

/// One operation on the tensors so far, which it names by numbers modulo their count.
#[derive(Clone, Debug)]
enum Op {
    Add(usize, usize),
    Mul(usize, usize),
    Matmul(usize, usize),
    Tanh(usize),
    Relu(usize),
    Transposed(usize),
    /// Rows in another order: a view of a view, and a copy.
    Rotated(usize),
    Detached(usize),
    Linear(usize, usize),
    /// A block whose backward pass computes it again (checkpointing).
    Checkpointed(usize),
}

/// What a program begins with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outer {
    /// A tensor without variables.
    Data,
    /// One that was computed from a variable before the step.
    Tracked,
    Detached,
}

/// The single number that comes out of the last tensor.
#[derive(Clone, Copy, Debug)]
enum End {
    Sum,
    Mean,
    /// A view of it.
    Element(usize),
    TransposedElement(usize),
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Loss,
    Stages,
    /// Stage by stage, with a step on the same weights begun and given up in between.
    Overlapping,
    /// With a step on the same weights that begins while this one has moved them.
    Nested,
    Rayon,
}

#[derive(Clone, Copy, Debug)]
enum Back {
    Candle,
    Ours,
    Sgd,
    /// In the middle of the backward pass of something else.
    Inside,
}

#[derive(Clone, Debug)]
struct Program {
    ops: Vec<Op>,
    outer: Outer,
    end: End,
    tied: bool,
}

fn programs() -> impl Strategy<Value = Program> {
    let n = 0usize..64;
    let op = prop_oneof![
        (n.clone(), n.clone()).prop_map(|(a, b)| Op::Add(a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| Op::Mul(a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| Op::Matmul(a, b)),
        n.clone().prop_map(Op::Tanh),
        n.clone().prop_map(Op::Relu),
        n.clone().prop_map(Op::Transposed),
        n.clone().prop_map(Op::Rotated),
        n.clone().prop_map(Op::Detached),
        (n.clone(), n.clone()).prop_map(|(a, b)| Op::Linear(a, b)),
        n.prop_map(Op::Checkpointed),
    ];
    let outer = prop_oneof![4 => Just(Outer::Data), 1 => Just(Outer::Tracked), 2 => Just(Outer::Detached)];
    let end = prop_oneof![
        Just(End::Sum),
        Just(End::Mean),
        (0..SIDE * SIDE).prop_map(End::Element),
        (0..SIDE * SIDE).prop_map(End::TransposedElement),
    ];
    (prop::collection::vec(op, 1..12), outer, end, any::<bool>()).prop_map(|(ops, outer, end, tied)| Program {
        ops,
        outer,
        end,
        tied,
    })
}

/// The variables of a program, and what it takes from outside.
struct World {
    vars: Vec<Var>,
    data: Tensor,
    outer: Tensor,
}

impl World {
    fn new(program: &Program, seed: u64) -> Self {
        let square = |seed| tensor(&[SIDE, SIDE], DType::F64, seed);
        let vars: Vec<_> = (0..3).map(|i| Var::from_tensor(&square(seed + i)).unwrap()).collect();
        let outer = match program.outer {
            Outer::Data => square(seed + 3),
            Outer::Tracked => vars[0].tanh().unwrap(),
            Outer::Detached => vars[0].tanh().unwrap().detach(),
        };
        Self { vars, data: square(seed + 4), outer }
    }

    /// The loss, by our layers where there are some, or by stock candle alone.
    fn loss(&self, program: &Program, ours: bool) -> Result<Tensor> {
        let tied = if program.tied { &self.vars[0] } else { &self.vars[2] };
        let mut tensors = vec![
            self.vars[0].as_tensor().clone(),
            self.vars[1].as_tensor().clone(),
            tied.as_tensor().clone(),
            self.outer.clone(),
            self.data.clone(),
        ];
        for op in &program.ops {
            let at = |i: &usize| &tensors[i % tensors.len()];
            let next = match op {
                Op::Add(a, b) if ours => nn::add(at(a), at(b))?,
                Op::Add(a, b) => (at(a) + at(b))?,
                Op::Mul(a, b) => (at(a) * at(b))?,
                Op::Matmul(a, b) => at(a).matmul(at(b))?,
                Op::Tanh(a) => at(a).tanh()?,
                Op::Relu(a) if ours => nn::relu(at(a))?,
                Op::Relu(a) => at(a).relu()?,
                Op::Transposed(a) => at(a).t()?,
                Op::Rotated(a) => Tensor::cat(&[at(a).narrow(0, 1, SIDE - 1)?, at(a).narrow(0, 0, 1)?], 0)?,
                Op::Detached(a) => at(a).detach(),
                Op::Linear(a, b) if ours => nn::Linear::new(at(b).clone(), None).forward(at(a))?,
                Op::Linear(a, b) => at(a).matmul(&at(b).t()?)?,
                Op::Checkpointed(a) if ours => at(a).contiguous()?.apply_op1(Checkpointed)?,
                Op::Checkpointed(a) => (at(a).relu()? * 2.)?.relu()?,
            };
            tensors.push(next);
        }
        // Every variable takes part, and the numbers stay small.
        let last = tensors.last().unwrap().tanh()?;
        let sum = ((last + self.vars[0].as_tensor())? + (self.vars[1].sqr()? + self.vars[2].as_tensor())?)?;
        match program.end {
            End::Sum => sum.sum_all(),
            End::Mean => sum.mean_all(),
            End::Element(i) => sum.flatten_all()?.get(i),
            End::TransposedElement(i) => sum.t()?.get(i / SIDE)?.get(i % SIDE),
        }
    }

    fn weights(&self) -> Vec<Vec<f64>> {
        self.vars.iter().map(|var| values(var)).collect()
    }

    fn set(&self, weights: &[Vec<f64>]) {
        for (var, w) in self.vars.iter().zip(weights) {
            var.set(&Tensor::from_slice(w, (SIDE, SIDE), &Device::Cpu).unwrap()).unwrap();
        }
    }

    /// By hand: L(w) and the gradient at w + ρ g / ‖g‖.
    fn reference(&self, program: &Program, rho: f64) -> (f64, Vec<Vec<f64>>) {
        let pass = || {
            let loss = self.loss(program, false).unwrap();
            let store = loss.backward().unwrap();
            let gradient = self.vars.iter().map(|var| store.get(var).map_or(vec![0.; SIDE * SIDE], values));
            (values(&loss)[0], gradient.collect::<Vec<_>>())
        };
        let (loss, g) = pass();
        let (w, norm) = (self.weights(), g.iter().flatten().map(|g| g * g).sum::<f64>().sqrt());
        let moved = |(w, g): (&Vec<f64>, &Vec<f64>)| {
            w.iter().zip(g).map(|(w, g)| if norm > 0. { w + rho * g / norm } else { *w }).collect()
        };
        self.set(&w.iter().zip(&g).map(moved).collect::<Vec<_>>());
        let (_, sharp) = pass();
        self.set(&w);
        (loss, sharp)
    }

    fn sharp_loss(&self, program: &Program, rho: f64, way: Way) -> Result<Tensor> {
        let sam = Sam::new(rho);
        let mut loss = |_| self.loss(program, true);
        // A step that is given up, or refused, has done nothing.
        let give_up = || {
            let mut loss = |_| -> Result<Tensor> { self.vars[0].sqr()?.sum_all() };
            let other = Sam::new(1.);
            drop(other.ascend(&mut loss).and_then(sam_runtime::Ascent::perturb));
        };
        match way {
            Way::Loss => sam.loss(|| self.loss(program, true)),
            Way::Stages => sam.ascend(&mut loss)?.perturb()?.descend(&mut loss)?.restore(),
            Way::Overlapping => {
                let other = Sam::new(1.);
                let mut square = |_| -> Result<Tensor> { self.vars[0].sqr()?.sum_all() };
                let (here, there) = (sam.ascend(&mut loss)?, other.ascend(&mut square)?);
                let here = here.perturb()?;
                let there = there.perturb();
                // In the order in which they were made.
                let found = here.descend(&mut loss)?.restore::<Error>();
                drop(there);
                found
            }
            Way::Nested => {
                let moved = sam.ascend(&mut loss)?.perturb()?;
                give_up();
                moved.descend(&mut loss)?.restore()
            }
            Way::Rayon => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
                pool.install(|| rayon::join(|| sam.loss(|| self.loss(program, true)), || ()).0)
            }
        }
    }

    fn gradient(&self, loss: &Tensor, back: Back) -> Vec<Vec<f64>> {
        let read = |store: &candle_core::backprop::GradStore| {
            self.vars.iter().map(|var| store.get(var).map_or(vec![0.; SIDE * SIDE], values)).collect()
        };
        match back {
            Back::Candle => read(&loss.backward().unwrap()),
            Back::Ours => read(&nn::backward(loss).unwrap()),
            Back::Sgd => {
                let before = self.weights();
                let params = ParamsSgd { lr: 1., momentum: 0., nesterov: false, weight_decay: 0. };
                Sgd::new(self.vars.clone(), params).unwrap().backward_step(loss).unwrap();
                let after = self.weights();
                self.set(&before);
                let moved = before.iter().zip(&after).map(|(b, a)| b.iter().zip(a).map(|(b, a)| b - a).collect());
                moved.collect()
            }
            Back::Inside => {
                let (sender, receiver) = std::sync::mpsc::sync_channel(1);
                let other = Var::from_tensor(&self.data).unwrap();
                let detour = Detour { loss: loss.clone(), sender };
                let store = nn::backward(&other.sqr().unwrap().apply_op1(detour).unwrap().sum_all().unwrap()).unwrap();
                assert_eq!(values(store.get(&other).unwrap()), values(&(other.as_tensor() * 2.).unwrap()));
                read(&receiver.recv().unwrap())
            }
        }
    }
}

/// relu(2 relu(x)), whose backward pass computes it again with our layers.
struct Checkpointed;

impl Checkpointed {
    fn block(x: &Tensor) -> Result<Tensor> {
        let x = nn::relu(x)?;
        nn::relu(&nn::add(&x, &x)?)
    }
}

impl CustomOp1 for Checkpointed {
    fn name(&self) -> &'static str {
        "checkpointed"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = Self::block(&Tensor::from_slice(x.as_slice::<f64>()?, layout.shape(), &Device::Cpu)?)?;
        Ok((CpuStorage::F64(values(&y)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        Ok((Self::block(&x)? * dy.detach())?.sum_all()?.backward()?.remove(&x))
    }
}

/// x ↦ x, whose backward pass takes the gradient of a loss on the way.
struct Detour {
    loss: Tensor,
    sender: std::sync::mpsc::SyncSender<candle_core::backprop::GradStore>,
}

impl CustomOp1 for Detour {
    fn name(&self) -> &'static str {
        "detour"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((x.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.sender.send(self.loss.backward()?).unwrap();
        Ok(Some(dy.clone()))
    }
}

/// Whether a tensor from outside, computed from a variable, takes part in the loss with a gradient.
fn is_stale(program: &Program) -> bool {
    if program.outer != Outer::Tracked {
        return false;
    }
    let mut tainted = vec![false, false, false, true, false];
    for op in &program.ops {
        let at = |i: &usize| tainted[i % tainted.len()];
        let next = match op {
            Op::Add(a, b) | Op::Mul(a, b) | Op::Matmul(a, b) | Op::Linear(a, b) => at(a) || at(b),
            Op::Tanh(a) | Op::Relu(a) | Op::Transposed(a) | Op::Rotated(a) | Op::Checkpointed(a) => at(a),
            Op::Detached(_) => false,
        };
        tainted.push(next);
    }
    tainted.last() == Some(&true)
}

fn check(program: &Program, seed: u64, rho: f64, way: Way, back: Back) -> std::result::Result<(), TestCaseError> {
    let world = World::new(program, seed);
    let before = world.weights();
    let found = world.sharp_loss(program, rho, way);
    prop_assert_eq!(world.weights(), before.clone(), "the weights are what they were");
    if is_stale(program) {
        prop_assert!(found.is_err(), "a stale graph is refused");
        return Ok(());
    }
    let loss = found.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let (value, expected) = world.reference(program, rho);
    prop_assert!((values(&loss)[0] - value).abs() <= 1e-12 * (1. + value.abs()), "{} and {value}", values(&loss)[0]);
    for (found, expected) in world.gradient(&loss, back).iter().flatten().zip(expected.iter().flatten()) {
        prop_assert!((found - expected).abs() <= 1e-9 * (1. + expected.abs()), "{found} and {expected}");
    }
    Ok(())
}

fn ways() -> impl Strategy<Value = (Way, Back)> {
    (
        prop::sample::select(vec![Way::Loss, Way::Stages, Way::Overlapping, Way::Nested, Way::Rayon]),
        prop::sample::select(vec![Back::Candle, Back::Ours, Back::Sgd, Back::Inside]),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agree_with_sam_by_hand(program in programs(), seed in 0u64..1000, rho in 0.01..0.5, (way, back) in ways()) {
        check(&program, seed, rho, way, back)?;
    }
}

// The same, each with one thing that may go wrong and without the others.
proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn losses_that_are_views(program in programs(), seed in 0u64..1000) {
        check(&Program { outer: Outer::Data, ..program }, seed, 0.1, Way::Loss, Back::Candle)?;
    }

    #[test]
    fn tensors_from_outside(program in programs(), seed in 0u64..1000) {
        check(&Program { outer: Outer::Tracked, end: End::Sum, ..program }, seed, 0.1, Way::Loss, Back::Candle)?;
    }

    #[test]
    fn steps_that_overlap(
        program in programs(), seed in 0u64..1000, way in prop::sample::select(vec![Way::Overlapping, Way::Nested]),
    ) {
        check(&Program { outer: Outer::Data, end: End::Sum, ..program }, seed, 0.1, way, Back::Candle)?;
    }

    #[test]
    fn backward_passes_inside_others(program in programs(), seed in 0u64..1000, back in prop::sample::select(vec![Back::Ours, Back::Inside])) {
        check(&Program { outer: Outer::Data, end: End::Mean, ..program }, seed, 0.1, Way::Loss, back)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Several at once, each on weights of its own.
    #[test]
    fn agree_on_threads(programs in prop::collection::vec(programs(), 2..5), seed in 0u64..1000, (way, back) in ways()) {
        let outcomes: Vec<_> = thread::scope(|scope| {
            let run = |(i, program)| scope.spawn(move || (0..3).try_for_each(|_| check(program, seed + i, 0.1, way, back)));
            (0u64..).zip(&programs).map(run).collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for outcome in outcomes {
            outcome?;
        }
    }
}
