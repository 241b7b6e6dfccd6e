//! Backward passes inside backward passes, side by side, and deep ones.

use std::sync::Mutex;
use std::thread;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use candle_nn::{Module, Optimizer};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn};
use sam_tests::tensor;

use super::{close, numbers, var};

fn linear(w: &Tensor) -> nn::Linear {
    nn::Linear::new(w.clone(), None)
}

/// relu(x w₁) w₂, computed again in the backward pass: gradient checkpointing, whose gradients of weights are collected here.
struct Checkpointed<'a> {
    weights: [Var; 2],
    collected: &'a Mutex<Vec<candle_core::backprop::GradStore>>,
}

impl Checkpointed<'_> {
    fn block(weights: &[Var; 2], x: &Tensor) -> Result<Tensor> {
        linear(&weights[1]).forward(&nn::relu(&linear(&weights[0]).forward(x)?)?)
    }
}

impl CustomOp1 for Checkpointed<'static> {
    fn name(&self) -> &'static str {
        "checkpointed"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Tensor::from_slice(x.as_slice::<f64>()?, layout.shape(), &Device::Cpu)?;
        let y = Self::block(&self.weights, &x)?;
        Ok((CpuStorage::F64(numbers(&y)), y.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let inner = (Self::block(&self.weights, &x)? * dy)?.sum_all()?.backward()?;
        let dx = inner.get(&x).cloned();
        self.collected.lock().unwrap().push(inner);
        Ok(dx)
    }
}

fn weights() -> ([Var; 2], Var, Tensor) {
    let var = |dims: &[usize], seed| Var::from_tensor(&tensor(dims, DType::F64, seed)).unwrap();
    ([var(&[5, 4], 1), var(&[4, 5], 2)], var(&[4, 4], 3), tensor(&[3, 4], DType::F64, 4))
}

/// By stock candle, by `nn::backward`, by `Sgd` and in a step's passes: the same gradients.
#[test]
fn gradient_checkpointing() {
    let (block, first, x) = weights();
    let run = |backward: &dyn Fn(&Tensor) -> Result<Vec<f64>>| {
        let collected: &'static Mutex<Vec<_>> = Box::leak(Box::default());
        let op = Checkpointed { weights: block.clone(), collected };
        let y = linear(&first).forward(&x).unwrap().apply_op1(op).unwrap();
        let of_first = backward(&nn::relu(&y).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        let store = collected.lock().unwrap().pop().unwrap();
        [of_first, numbers(store.get(&block[0]).unwrap()), numbers(store.get(&block[1]).unwrap())]
    };
    let expected = {
        let y = Checkpointed::block(&block, &linear(&first).forward(&x).unwrap()).unwrap();
        let store = y.relu().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [&first, &block[0], &block[1]].map(|var| numbers(store.get(var).unwrap()))
    };
    let of_first = |store: candle_core::backprop::GradStore| numbers(store.get(&first).unwrap());
    let found = [
        run(&|loss| loss.backward().map(of_first)),
        run(&|loss| nn::backward(loss).map(of_first)),
        run(&|loss| {
            let before = numbers(&first);
            let params = ParamsSgd { lr: 1., momentum: 0., nesterov: false, weight_decay: 0. };
            Sgd::new(vec![first.clone()], params)?.backward_step(loss)?;
            let after = numbers(&first);
            first.set(&Tensor::from_vec(before.clone(), (4, 4), &Device::Cpu)?)?;
            Ok(before.iter().zip(after).map(|(before, after)| before - after).collect())
        }),
    ];
    for found in found {
        for (found, expected) in found.iter().zip(&expected) {
            close(found, expected);
        }
    }
}

/// x ↦ x, whose backward pass goes through another loss on the way.
struct Detour<F>(F);

impl<F: Fn() + Send + Sync> CustomOp1 for Detour<F> {
    fn name(&self) -> &'static str {
        "detour"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((x.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        (self.0)();
        Ok(Some(dy.clone()))
    }
}

/// Two losses share a backbone of layers, and one is gone through in the middle of the other's backward pass, as it happens
/// where rayon gives a waiting thread something to do.
#[test]
fn one_graph_gone_through_inside_itself() {
    let (block, first, x) = weights();
    let backbone = nn::relu(&linear(&first).forward(&x).unwrap()).unwrap();
    let left = || nn::relu(&linear(&block[0]).forward(&backbone)?);
    let inner = linear(&block[1]).forward(&left().unwrap()).unwrap().sqr().unwrap().sum_all().unwrap();
    let shared = left().unwrap();
    let outer = |detour: bool| {
        let a = linear(&block[1]).forward(&shared)?.sum_all()?;
        let b = shared.sqr()?;
        let b = if detour {
            let inner = inner.clone();
            let again = (backbone.sqr()?.sum_all()? + shared.exp()?.sum_all()?)?;
            b.apply_op1(Detour(move || {
                inner.backward().unwrap();
                again.backward().unwrap();
                nn::backward(&again).unwrap();
            }))?
        } else {
            b
        };
        let c = backbone.exp()?.sum_all()?;
        (a + b.sum_all()?)? + c
    };
    let gradients = |loss: Tensor| {
        let store = loss.backward().unwrap();
        [&first, &block[0], &block[1]].map(|var| numbers(store.get(var).unwrap()))
    };
    let (expected, alone) = (gradients(outer(false).unwrap()), gradients(inner.clone()));
    assert_eq!(gradients(outer(true).unwrap()), expected);
    assert_eq!(gradients(inner), alone);
}

#[test]
fn a_sharp_loss_gone_through_inside_a_backward_pass() {
    let (v, w) = (var(&[3., 4.]), var(&[1., 2.]));
    let sharp = Sam::new(0.5).loss(|| v.sqr()?.sum_all()).unwrap();
    let found: &'static Mutex<Vec<Vec<f64>>> = Box::leak(Box::default());
    let inside = v.clone();
    let y = w.sqr().unwrap().apply_op1(Detour(move || {
        found.lock().unwrap().push(numbers(sharp.backward().unwrap().get(&inside).unwrap()));
    }));
    let store = nn::backward(&y.unwrap().sum_all().unwrap()).unwrap();
    close(&numbers(store.get(&w).unwrap()), &[2., 4.]);
    close(&found.lock().unwrap()[0], &[6.6, 8.8]);
    assert!(store.get(&v).is_none());
}

/// On the stack of a usual thread.
#[test]
fn many_variables_and_deep_networks() {
    let small = |f: fn()| thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
    small(|| {
        let vars: Vec<_> = (0..20_000).map(|i| var(&[f64::from(i)])).collect();
        let tensors: Vec<_> = vars.iter().map(Var::as_tensor).collect();
        let loss = Sam::new(0.1).loss(|| Tensor::cat(&tensors, 0)?.sqr()?.sum_all()).unwrap();
        let store = (loss * 2.).unwrap().backward().unwrap();
        let norm = (0..20_000).map(|i| f64::from(i).powi(2)).sum::<f64>().sqrt();
        for (i, var) in vars.iter().enumerate() {
            close(&numbers(store.get(var).unwrap()), &[4. * (i as f64 + 0.1 * i as f64 / norm)]);
        }
    });
    small(|| {
        let w = var(&[1.]);
        let mut y = w.as_tensor().clone();
        for _ in 0..12_000 {
            y = nn::relu(&y).unwrap();
        }
        drop(y);
        let mut y = w.as_tensor().clone();
        for _ in 0..3_000 {
            y = nn::relu(&y).unwrap();
        }
        assert_eq!(numbers(nn::backward(&y).unwrap().get(&w).unwrap()), [1.]);
    });
}
