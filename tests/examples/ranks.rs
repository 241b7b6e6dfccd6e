//! What `tests/mpi.sh` runs on several ranks: a training that is compared with one process, and ranks that fail.
//!
//! `ranks same A B`: compares two safetensors files. `ranks sgd`, `ranks adamw`: trains. `ranks gpus`: which rank has which.
//! `ranks FAULT`: the last rank does that in its step number 3; with `FAULT@0` rank 0 does; with `FAULT-in-an-all-reduce` while
//! gradients are on their way.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::process::Command;
use std::time::Duration;

use candle_core::safetensors::load;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use sam_runtime::distributed::{self, Comm};
use sam_runtime::optim::{AdamW, ParamsSgd, Sgd};
use sam_runtime::sam;
use sam_tests::{Net, batch, values};

/// Samples of a rank.
const M: usize = 4;
const STEPS: u64 = 200;

#[sam(rho = 0.1, all_reduce = world)]
fn on_a_rank(net: &Net, x: &Tensor, y: &Tensor, world: &Comm) -> Result<Tensor> {
    net.loss(x, y)
}

#[sam(rho = 0.1, shards(x, y; m = M))]
fn in_shards(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

type Step = Box<dyn FnMut(&Tensor) -> Result<()>>;

fn stepping(net: &Net, name: &str) -> Result<Step> {
    let vars = net.vars.to_vec();
    Ok(if name == "adamw" {
        let mut adamw = AdamW::new(vars, ParamsAdamW { lr: 0.003, ..ParamsAdamW::default() })?;
        Box::new(move |loss| adamw.backward_step(loss))
    } else {
        let mut sgd = Sgd::new(vars, ParamsSgd { lr: 0.05, momentum: 0.9, ..ParamsSgd::default() })?;
        Box::new(move |loss| sgd.backward_step(loss))
    })
}

/// After all steps the ranks have the same weights, and those of one process with shards.
fn train(world: &Comm, optimizer: &str) -> Result<()> {
    // Rank 0's weights count.
    let net = Net::new(DType::F32, 3 + world.rank() as u64);
    world.broadcast_vars(net.vars.to_vec())?;
    let mut step = stepping(&net, optimizer)?;
    for number in 0..STEPS {
        let (x, y) = batch(M * world.size(), DType::F32, 10 + 2 * number);
        let start = M * world.rank();
        step(&on_a_rank(&net, &x.narrow(0, start, M)?, &y.narrow(0, start, M)?, world)?)?;
        if number % 50 == 0 {
            world.check_replicas(net.vars.to_vec())?;
        }
    }
    world.check_replicas(net.vars.to_vec())?;

    let alone = Net::new(DType::F32, 3);
    let mut step = stepping(&alone, optimizer)?;
    for number in 0..STEPS {
        let (x, y) = batch(M * world.size(), DType::F32, 10 + 2 * number);
        step(&in_shards(&alone, &x, &y)?)?;
    }
    let pairs = net.vars.iter().zip(&alone.vars).flat_map(|(a, b)| values(a).into_iter().zip(values(b)));
    let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if error > 1e-6 || world.any(error > 1e-6)? {
        candle_core::bail!("the weights differ by {error:e} from those of one process")
    }
    let loss = world.mean(f64::from(world.rank() as u32))?;
    assert_eq!(loss, (world.size() - 1) as f64 / 2.0);
    let bytes = world.broadcast_bytes(&vec![world.rank() as u8; 3 + world.rank()])?;
    assert_eq!(bytes, [0; 3]);
    if world.rank() == 0 {
        println!("trained on {} ranks with {optimizer}: error {error:.1e}", world.size());
    }
    Ok(())
}

fn signal(name: &str) {
    Command::new("kill").args([name, &std::process::id().to_string()]).status().unwrap();
}

/// The last rank, or that of `fault@rank`, fails in step 3.
fn fail(world: &Comm, fault: &str) -> Result<()> {
    world.set_timeout(Duration::from_secs(3));
    if let Some(fault) = fault.strip_suffix("-in-an-all-reduce") {
        return fail_in_an_all_reduce(world, fault);
    }
    let (fault, rank) = match fault.split_once('@') {
        Some((fault, rank)) => (fault, rank.parse().unwrap()),
        None => (fault, world.size() - 1),
    };
    let net = Net::new(DType::F32, 3);
    let mut step = stepping(&net, "sgd")?;
    let fails = world.rank() == rank;
    for number in 0..STEPS {
        let (x, y) = batch(M, DType::F32, number);
        let mut factor = 1.0;
        if fault == "sleep" && number == 3 {
            std::thread::sleep(Duration::from_secs(20));
        }
        if fails && number == 3 {
            match fault {
                "panic" => panic!("this is a test"),
                "panic-in-a-thread" => {
                    let thread = std::thread::spawn(|| panic!("this is a test"));
                    assert!(thread.join().is_err());
                }
                "err" => candle_core::bail!("out of data"),
                "exit" => std::process::exit(3),
                "kill" => signal("-KILL"),
                "stop" => signal("-STOP"),
                "nan" => factor = f64::NAN,
                "fewer-steps" => return Ok(()),
                "diverge" => net.vars[1].set(&(net.vars[1].as_tensor() + 1e-6)?)?,
                "another-thread" => {
                    return std::thread::scope(|scope| scope.spawn(|| world.mean(1.0)).join().unwrap()).map(|_| ());
                }
                _ => candle_core::bail!("unknown fault `{fault}`"),
            }
        }
        let loss = |net: &Net| -> Result<Tensor> { net.loss(&x, &y)? * factor };
        step(&sam_runtime::Sam::new(0.1).all_reduce(world).loss(|| loss(&net))?)?;
        world.check_replicas(net.vars.to_vec())?;
    }
    candle_core::bail!("no rank has failed")
}

/// Nearly all of the time is that in which 100 MB are on their way.
fn fail_in_an_all_reduce(world: &Comm, fault: &str) -> Result<()> {
    let fault = if fault == "kill" { "-KILL" } else { "-STOP" };
    if world.rank() == world.size() - 1 {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            signal(fault);
        });
    }
    let w = Var::ones(25_000_000, DType::F32, &Device::Cpu)?;
    let mut gradients = w.sum_all()?.backward()?;
    loop {
        world.average_gradients(&mut gradients, [w.clone()])?;
    }
}

/// Two files have the same tensors, up to rounding.
fn same(one: &str, other: &str) -> Result<()> {
    let (one, other) = (load(one, &Device::Cpu)?, load(other, &Device::Cpu)?);
    assert_eq!(one.len(), other.len());
    for (name, a) in &one {
        let error = values(a).iter().zip(values(&other[name])).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error <= 1e-6, "{name} differs by {error:e}");
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, one, other] = &arguments[..]
        && mode == "same"
    {
        return same(one, other);
    }
    let mode = std::env::args().nth(1).unwrap_or_else(|| "sgd".to_owned());
    distributed::run(|world| match &*mode {
        "sgd" | "adamw" => train(world, &mode),
        "gpus" => {
            println!("rank {} has {:?}", world.rank(), world.cuda_device()?.location());
            Ok(())
        }
        fault => fail(world, fault),
    })
}
