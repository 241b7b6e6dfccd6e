//! The weights are bitwise what they were, however a step ends.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{BatchNorm, ModuleT, VarBuilder, VarMap};
use sam_runtime::variants::named;
use sam_runtime::{Pass, Sam, sam};
use sam_tests::{Net, batch, bits, copy, device, is_for_the_cpu, tensor, values};

/// How a pass is made to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Ok,
    Early,
    Err,
    Question,
    Panic,
    Nan,
}

const BAD: [End; 4] = [End::Err, End::Question, End::Panic, End::Nan];

#[derive(Debug, thiserror::Error)]
enum Mine {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error("mine")]
    Mine,
}

#[sam(rho = 0.5)]
fn loss(net: &Net, x: &Tensor, y: &Tensor, ascent: End, descent: End) -> std::result::Result<Tensor, Mine> {
    let loss = net.loss(x, y)?;
    match if Pass::current() == Pass::Ascent { ascent } else { descent } {
        End::Ok => {}
        End::Early => return Ok(loss),
        End::Err => return Err(Mine::Mine),
        End::Question => _ = x.matmul(x)?,
        End::Panic => panic!("on purpose"),
        End::Nan => return Ok((loss * f64::NAN)?),
    }
    Ok(loss)
}

#[test]
fn of_a_plain_network() {
    for dtype in [DType::F32, DType::F64] {
        let (net, (x, y)) = (Net::new(dtype, 1), batch(9, dtype, 2));
        let before = net.bits();
        let mut seen = 0;
        for ascent in [[End::Ok, End::Early].as_slice(), &BAD].concat() {
            for descent in [[End::Ok, End::Early].as_slice(), &BAD].concat() {
                let outcome = catch_unwind(AssertUnwindSafe(|| loss(&net, &x, &y, ascent, descent)));
                assert_eq!(net.bits(), before, "{ascent:?}, {descent:?}");
                assert_eq!(Pass::current(), Pass::Plain);
                // On other devices than the CPU the loss is not checked.
                let bad = |end| BAD.contains(&end) && (end != End::Nan || device().is_cpu());
                let bad = bad(ascent) || bad(descent);
                assert_eq!(matches!(outcome, Ok(Ok(_))), !bad, "{ascent:?}, {descent:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 36);
        // and the next step is a step again
        let g = loss(&net, &x, &y, End::Ok, End::Ok).unwrap().backward().unwrap();
        assert!(g.get(&net.vars[0]).is_some());
        assert_eq!(net.bits(), before);
    }
}

/// Stages that are dropped half-way.
#[test]
fn when_a_stage_is_dropped() {
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let before = net.bits();
    let mut loss = |_| -> Result<Tensor> { net.loss(&x, &y) };
    let sam = Sam::new(0.5);
    drop(sam.ascend(&mut loss).unwrap());
    assert_eq!(net.bits(), before);
    let perturbed = sam.ascend(&mut loss).unwrap().perturb().unwrap();
    assert_ne!(net.bits(), before);
    drop(perturbed);
    assert_eq!(net.bits(), before);
    drop(sam.ascend(&mut loss).unwrap().perturb().unwrap().descend(&mut loss).unwrap());
    assert_eq!(net.bits(), before);
}

#[test]
fn of_a_batch_normalization() {
    let vars = VarMap::new();
    let bn = candle_nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, device())).unwrap();
    let (x, _) = batch(9, DType::F32, 3);
    let run = |bn: &BatchNorm, fail: bool| -> Result<Tensor> {
        let y = bn.forward_t(&x, true)?;
        if fail && Pass::current() == Pass::Descent {
            candle_core::bail!("on purpose")
        }
        y.sqr()?.sqr()?.mean_all()
    };
    let all = |vars: &VarMap| {
        let vars = vars.data().lock().unwrap();
        let mut all: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), bits(var))).collect();
        all.sort();
        all
    };
    run(&bn, false).unwrap();
    let weights = |vars: &VarMap| all(vars).into_iter().filter(|(n, _)| !n.starts_with("running")).collect::<Vec<_>>();
    let (once, before) = (all(&vars), weights(&vars));

    // What one plain run makes of the statistics.
    let twin = VarMap::new();
    let twin_bn = candle_nn::batch_norm(6, 1e-5, VarBuilder::from_varmap(&twin, DType::F32, device())).unwrap();
    run(&twin_bn, false).unwrap();
    assert_eq!(all(&twin), once);
    run(&twin_bn, false).unwrap();

    // As `buffers` those of the first pass stay if the step ends well, and are restored if it does not.
    let sam = Sam::new(0.5).buffers(named(&vars, |name| name.starts_with("running")));
    sam.loss(|| run(&bn, false)).unwrap();
    assert_eq!(all(&vars), all(&twin));
    sam.loss(|| run(&bn, true)).unwrap_err();
    assert_eq!(all(&vars), all(&twin));
    assert_eq!(weights(&vars), before);
}

/// One variable used twice is perturbed once; views of it move with it and back.
#[test]
fn of_tied_weights_and_views() {
    let w = copy(&tensor(&[6, 6], DType::F64, 4));
    let before = bits(&w);
    let (x, _) = batch(5, DType::F64, 5);
    let loss = |w: &Tensor| -> Result<Tensor> {
        let hidden = x.matmul(w)?.tanh()?.matmul(&w.t()?)?;
        let part = w.narrow(0, 1, 3)?.sum_all()?;
        let flat = w.reshape(36)?.sqr()?.sum_all()?;
        hidden.sqr()?.mean_all()? + (part + flat)?
    };
    let sharp = Sam::new(0.3).loss(|| loss(&w)).unwrap();
    assert_eq!(bits(&w), before);
    let found = values(sharp.backward().unwrap().get(&w).unwrap());

    let g = values(loss(&w).unwrap().backward().unwrap().get(&w).unwrap());
    let length = g.iter().map(|g| g * g).sum::<f64>().sqrt();
    let e: Vec<f64> = g.iter().map(|g| 0.3 * g / length).collect();
    let there = Var::from_tensor(&(w.as_detached_tensor() + Tensor::from_vec(e, (6, 6), device()).unwrap()).unwrap());
    let there = there.unwrap();
    let expected = values(loss(&there).unwrap().backward().unwrap().get(&there).unwrap());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-13));

    let view = w.as_detached_tensor();
    let mut seen = Vec::new();
    Sam::new(0.3)
        .loss(|| {
            seen.push(bits(&view) == bits(&w) && bits(&view.t().unwrap().t().unwrap()) == bits(&w));
            loss(&w)
        })
        .unwrap();
    assert_eq!(seen, [true, true]);
    assert_eq!(bits(&view), before);
}

/// The storages are swapped back too: a tensor that shared the weights' memory still sees the weights.
#[test]
fn by_exchange_not_by_copy() {
    if is_for_the_cpu("the addresses are the host's") {
        return;
    }
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(9, DType::F32, 2));
    let address = |var: &Var| {
        let (storage, _) = var.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
        storage.as_slice::<f32>().unwrap().as_ptr() as usize
    };
    let before: Vec<_> = net.vars.iter().map(address).collect();
    let mut during = Vec::new();
    Sam::new(0.5)
        .loss(|| {
            during.push(net.vars.iter().map(address).collect::<Vec<_>>());
            net.loss(&x, &y)
        })
        .unwrap();
    assert_eq!(during[0], before);
    assert!(during[1].iter().zip(&before).all(|(a, b)| a != b));
    assert_eq!(net.vars.iter().map(address).collect::<Vec<_>>(), before);
}

/// The other tests of this file again, with backtraces on: candle wraps its errors then.
#[test]
fn under_rust_backtrace() {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    let output = tests.env("RUST_BACKTRACE", "1").args(["--skip", "under_rust_backtrace"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("5 passed"));
}
