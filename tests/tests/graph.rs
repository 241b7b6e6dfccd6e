//! Layers propagate gradients to each other without candle's graph: every way to mix them with candle's own operations.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Conv2dConfig, Module, ModuleT, Optimizer, VarBuilder, VarMap};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn};
use sam_tests::{bits, device, tensor, values};

fn close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    for (a, b) in values(a).iter().zip(&values(b)) {
        assert!((a - b).abs() <= 1e-11 * (1. + b.abs()), "{a} and {b}");
    }
}

fn var(dims: &[usize], seed: u64) -> Var {
    Var::from_tensor(&tensor(dims, DType::F64, seed)).unwrap()
}

/// A convolution, by our layer or by candle's.
fn conv(x: &Tensor, w: &Tensor, ours: bool) -> Result<Tensor> {
    let config = Conv2dConfig { padding: 1, ..Default::default() };
    if ours { nn::Conv2d::new(w.clone(), None, config).forward(x) } else { x.conv2d(w, 1, 1, 1, 1) }
}

fn relu(x: &Tensor, ours: bool) -> Result<Tensor> {
    if ours { nn::relu(x) } else { x.relu() }
}

/// A network in which outputs of layers are used once, twice, by layers, by candle, by both and by none, in which a
/// weight is a variable, a function of one, and one that candle uses too.
fn tangle([x, v, w]: [&Tensor; 3], ours: bool) -> Result<Tensor> {
    let a = relu(&conv(x, v, ours)?, ours)?;
    let unused = conv(&a, w, ours)?;
    let b = conv(&a, &(w * 0.5)?, ours)?;
    let c = if ours { nn::add(&a, &b)? } else { (&a + &b)? };
    let d = (conv(&c, v, ours)? * &a)?;
    let e = conv(&d.transpose(2, 3)?, w, ours)?;
    let constant = conv(&e.detach(), v, ours)?.detach();
    drop((unused, b));
    let sum = (relu(&e, ours)? + constant)?.mean_all()? + (c.sqr()?.mean_all()? + w.sqr()?.mean_all()?)?;
    sum? * 3.0
}

#[test]
fn mixed_with_operations_of_candle() {
    let vars = [var(&[2, 3, 5, 5], 1), var(&[3, 3, 3, 3], 2), var(&[3, 3, 3, 3], 3)];
    let loss = |ours| tangle(vars.each_ref().map(Var::as_tensor), ours).unwrap();
    let (ours, stock) = (loss(true), loss(false));
    close(&ours.detach(), &stock.detach());
    let (first, second, stock) = (ours.backward().unwrap(), ours.backward().unwrap(), stock.backward().unwrap());
    for var in &vars {
        close(first.get(var).unwrap(), stock.get(var).unwrap());
        assert_eq!(bits(first.get(var).unwrap()), bits(second.get(var).unwrap()), "backward twice");
    }
    // From the middle, and where the input needs no gradient.
    let (y, z) = (conv(&vars[0], &vars[1], true).unwrap(), conv(&vars[0].detach(), &vars[1], true).unwrap());
    let (y, z) = (y.backward().unwrap(), z.backward().unwrap());
    assert_eq!(bits(y.get(&vars[1]).unwrap()), bits(z.get(&vars[1]).unwrap()));
    assert!(y.get(&vars[0]).is_some() && z.get(&vars[0]).is_none());
}

#[test]
fn threads_that_go_backward_through_one_graph() {
    let vars = [var(&[2, 3, 5, 5], 1), var(&[3, 3, 3, 3], 2), var(&[3, 3, 3, 3], 3)];
    let loss = tangle(vars.each_ref().map(Var::as_tensor), true).unwrap();
    let expected = bits(loss.backward().unwrap().get(&vars[1]).unwrap());
    std::thread::scope(|scope| {
        let back = || (0..20).all(|_| bits(loss.backward().unwrap().get(&vars[1]).unwrap()) == expected);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(back)).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    });
}

/// A step's gradients come past candle's store: the same ones, except that those of a variable that candle uses too are
/// added up in another order.
#[test]
fn steps_of_sgd() {
    let params = ParamsSgd { lr: 0.1, ..Default::default() };
    for sharpness in [false, true] {
        let run = |direct: bool| {
            let x = tensor(&[2, 3, 5, 5], DType::F64, 1);
            let vars = [var(&[3, 3, 3, 3], 2), var(&[3, 3, 3, 3], 3)];
            let mut sgd = Sgd::new(vars.to_vec(), params).unwrap();
            for _ in 0..3 {
                let loss = || tangle([&x, &vars[0], &vars[1]], true);
                let loss = if sharpness { Sam::new(0.05).loss(loss).unwrap() } else { loss().unwrap() };
                if direct {
                    sgd.backward_step(&loss).unwrap();
                } else {
                    sgd.step(&loss.backward().unwrap()).unwrap();
                }
            }
            vars
        };
        run(true).iter().zip(&run(false)).for_each(|(a, b)| close(a, b));
    }
}

/// All memory goes when the loss goes.
#[test]
fn a_deep_network_is_freed() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device());
    let norm = nn::batch_norm(4, 1e-5, vb.pp("norm")).unwrap();
    let layer = nn::linear(4, 4, vb.pp("linear")).unwrap();
    let mut x = tensor(&[8, 4], DType::F32, 1);
    for _ in 0..200 {
        x = nn::relu(&norm.forward_t(&layer.forward(&x).unwrap(), true).unwrap()).unwrap();
    }
    let grads = x.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get_ids().count(), 4);
}

/// A sum propagates one and the same gradient to both of its parts, and SAM writes its perturbation over gradients.
#[test]
fn two_variables_that_are_added() {
    let run = |ours: bool| {
        let (v, w) = (var(&[7], 1), var(&[7], 2));
        let loss = Sam::new(0.3).loss(|| -> Result<Tensor> {
            let sum = if ours { nn::add(&v, &w)? } else { (v.as_tensor() + w.as_tensor())? };
            (sum.sqr()?.sum_all()? + w.exp()?.sum_all()?)?.sqrt()
        });
        let grads = loss.unwrap().backward().unwrap();
        [&v, &w].map(|var| grads.get(var).unwrap().clone())
    };
    for (a, b) in run(true).iter().zip(&run(false)) {
        close(a, b);
    }
    let alone = |ours: bool| {
        let (v, w) = (var(&[7], 1), var(&[7], 2));
        let sum = || if ours { nn::add(&v, &w) } else { v.as_tensor() + w.as_tensor() };
        let loss = Sam::new(0.3).loss(|| sum()?.sqr()?.sum_all()).unwrap();
        let grads = loss.backward().unwrap();
        [&v, &w].map(|var| grads.get(var).unwrap().clone())
    };
    for (a, b) in alone(true).iter().zip(&alone(false)) {
        close(a, b);
    }
}

/// The loss of one step as a part of another's: its gradient is not written over.
#[test]
fn a_loss_with_the_loss_of_another_step_in_it() {
    let w = var(&[7], 1);
    let inner = Sam::new(0.2).loss(|| w.sqr()?.sum_all()).unwrap();
    let given = inner.backward().unwrap().get(&w).unwrap().copy().unwrap();
    let outer = || Sam::new(0.3).loss(|| &inner + w.exp()?.sum_all()?).unwrap();
    let first = outer().backward().unwrap().get(&w).unwrap().clone();
    close(inner.backward().unwrap().get(&w).unwrap(), &given);
    close(outer().backward().unwrap().get(&w).unwrap(), &first);
    let g = (&given + w.exp().unwrap()).unwrap();
    let norm = g.sqr().unwrap().sum_all().unwrap().sqrt().unwrap();
    let there = (w.as_tensor() + (&g * 0.3).unwrap().broadcast_div(&norm).unwrap()).unwrap();
    close(&first, &(&given + there.exp().unwrap()).unwrap());
}
