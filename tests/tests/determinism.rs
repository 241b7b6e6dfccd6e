//! Results are bitwise identical for any number of threads, and for every order in which a map returns its variables.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::Optimizer;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn};
use sam_tests::{Net, batch, bits, copy, gradient, is_for_the_cpu, tensor};

/// Three steps over buffers that are long enough to be shared out among threads.
fn digest() -> u64 {
    let mut hash = DefaultHasher::new();
    for (p, eta) in [(2.0, None), (1.5, None), (2.7, Some(0.01)), (1.0, None), (f64::INFINITY, Some(0.1))] {
        let vars: Vec<Var> =
            [400_000, 33, 70_001].iter().map(|n| copy(&tensor(&[*n], DType::F32, *n as u64))).collect();
        let mut sgd = Sgd::new(vars.clone(), ParamsSgd::default()).unwrap();
        let dropout = nn::Dropout::seeded(0.3, 5);
        let mut sam = Sam::new(0.1).p(p);
        if let Some(eta) = eta {
            sam = sam.adaptive(eta);
        }
        for _ in 0..3 {
            let loss = || -> Result<Tensor> {
                let mut loss = Tensor::zeros((), DType::F32, vars[0].device())?;
                for var in &vars {
                    loss = (loss + dropout.forward(&var.sin()?, true)?.sqr()?.sum_all()?)?;
                }
                Ok(loss)
            };
            let loss = sam.loss(loss).unwrap();
            bits(&loss).hash(&mut hash);
            sgd.backward_step(&loss).unwrap();
        }
        for var in vars {
            bits(&var).hash(&mut hash);
        }
    }
    hash.finish()
}

#[test]
fn for_any_number_of_threads() {
    if is_for_the_cpu("the threads are the CPU's") {
        return;
    }
    let run = |threads: &str| {
        let mut tests = Command::new(std::env::current_exe().unwrap());
        tests.args(["print_digest", "--exact", "--ignored", "--nocapture"]);
        let output = tests.env("RAYON_NUM_THREADS", threads).env("CANDLE_NUM_THREADS", threads).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let digest = output.lines().find_map(|line| line.split("digest ").nth(1)).unwrap().to_owned();
        assert!(output.contains(&format!("on {threads} threads")), "{output}");
        digest
    };
    let one = run("1");
    assert_eq!(run("2"), one);
    assert_eq!(run("7"), one);
    assert_eq!(run("7"), one);
}

#[test]
#[ignore = "a part of for_any_number_of_threads, in a process of its own"]
fn print_digest() {
    println!("on {} threads: digest {:x}", rayon::current_num_threads(), digest());
}

#[test]
fn for_any_order_of_the_variables() {
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let expected = gradient(&Sam::new(0.1).loss(|| net.loss(&x, &y)).unwrap(), &net.vars);
    for i in 0..24 {
        // All 24 orders of four variables.
        let mut left = net.vars.to_vec();
        let order: Vec<Var> = [i / 6, i / 2 % 3, i % 2, 0].into_iter().map(|k| left.remove(k)).collect();
        let found = gradient(&Sam::new(0.1).vars(order).loss(|| net.loss(&x, &y)).unwrap(), &net.vars);
        assert_eq!(found, expected);
    }
}
