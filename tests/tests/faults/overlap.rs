//! Steps and optimizers that meet on the same weights.

use std::thread;

use candle_core::{Error, Result, Tensor};
use candle_nn::Optimizer;
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};

use super::{close, gradient, numbers, refused, var};

#[test]
fn two_steps_on_one_thread() {
    let w = var(&[3., 4.]);
    let sam = Sam::new(1.);
    let mut square = |_| -> Result<Tensor> { w.sqr()?.sum_all() };
    let first = sam.ascend(&mut square).unwrap().perturb().unwrap();
    close(&numbers(&w), &[3.6, 4.8]);
    let mut linear = |_| -> Result<Tensor> { w.sum_all() };
    refused(sam.ascend(&mut linear).map(|_| ()), &["F64 [2]", "w + eps of another step"]);
    drop(first);
    assert_eq!(numbers(&w), [3., 4.]);

    // Both begun before either moved: the second one may not move.
    let (a, b) = (sam.ascend(&mut square).unwrap(), sam.ascend(&mut linear).unwrap());
    let a = a.perturb().unwrap();
    refused(b.perturb().map(|_| ()), &["w + eps of another step"]);
    drop(a);
    assert_eq!(numbers(&w), [3., 4.]);
    let loss: Tensor = sam.loss(|| w.sqr()?.sum_all()).unwrap();
    close(&gradient(&loss, &w), &[7.2, 9.6]);
}

/// They either run one after the other or are refused; the weights stay as they are.
#[test]
fn steps_of_several_threads() {
    let (w, x) = (var(&[3., 4.]), Tensor::ones((64, 2), candle_core::DType::F64, &candle_core::Device::Cpu).unwrap());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let sam = Sam::new(0.5);
                for _ in 0..100 {
                    match sam.loss(|| x.broadcast_mul(&w)?.sqr()?.sum_all()) {
                        // g = 128 w
                        Ok(loss) => close(&gradient(&loss, &w), &[128. * 3.3, 128. * 4.4]),
                        Err(error) => assert!(error.to_string().contains("w + eps of another step"), "{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(numbers(&w), [3., 4.]);
}

#[test]
fn an_optimizer_between_the_passes() {
    let w = var(&[3., 4.]);
    let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd { lr: 0.1, ..Default::default() }).unwrap();
    let sam = Sam::new(1.);
    let mut square = |_| -> Result<Tensor> { w.sqr()?.sum_all() };
    let grads = w.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let moved = sam.ascend(&mut square).unwrap().perturb().unwrap();
    refused(sgd.step(&grads), &["w + eps"]);
    let loss: Tensor = moved.descend(&mut square).unwrap().restore::<Error>().unwrap();
    assert_eq!(numbers(&w), [3., 4.]);
    sgd.backward_step(&loss).unwrap();
    assert_ne!(numbers(&w), [3., 4.]);

    let begun = sam.ascend(&mut square).unwrap();
    sgd.step(&grads).unwrap();
    refused(begun.perturb().map(|_| ()), &["moved by an optimizer"]);
}

#[test]
fn an_optimizer_inside_a_pass() {
    let w = var(&[3., 4.]);
    let whole_step = || {
        Sam::new(0.05).loss(|| {
            let loss = w.sqr()?.sum_all()?;
            let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd::default())?;
            sgd.backward_step(&loss)?;
            Ok::<_, Error>(loss)
        })
    };
    refused(whole_step(), &["optimizer's step", "after it"]);
    assert_eq!(numbers(&w), [3., 4.]);
    // On a thread of a pool it may be another training's, until the graph shows that it is not.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    refused(pool.install(whole_step), &["moved by an optimizer"]);
}

/// What a variant remembers is of one training.
#[test]
fn one_sam_with_a_memory_for_two_steps() {
    let (v, w) = (var(&[1.]), var(&[2.]));
    let sam = Sam::look_sam();
    let mut square = |_| -> Result<Tensor> { w.sqr()?.sum_all() };
    let begun = sam.ascend(&mut square).unwrap();
    refused(sam.loss(|| v.sqr()?.sum_all()), &["remembers", "clone()"]);
    drop(begun);
    sam.loss(|| v.sqr()?.sum_all()).unwrap();
}
