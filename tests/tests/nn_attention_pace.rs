//! How long attention takes: `cargo test --release -p sam-tests --test nn_attention_pace -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Device, Result, Tensor, Var};
use sam_runtime::nn;
use sam_runtime::nn::attention::{AttnMask, self_attention};

/// Processor time of all threads, in ms: also of use where others compute.
fn now() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|x| x.parse::<f64>().ok()).unwrap_or(0.0)
    };
    tasks.map(|task| spent(task.unwrap())).sum::<f64>() / 1e6
}

#[test]
#[ignore = "a measurement, to be run by hand"]
fn pace() -> Result<()> {
    let spec = std::env::var("SHAPE").unwrap_or_else(|_| "32,8,256,32,causal".to_owned());
    let parts: Vec<&str> = spec.split(',').collect();
    let [b, h, t, d] = [0, 1, 2, 3].map(|i| parts[i].parse::<usize>().unwrap());
    let mask = if parts[4] == "causal" { AttnMask::causal() } else { AttnMask::None };
    let qkv = Var::from_tensor(&Tensor::randn(0f32, 1., (b, t, 3 * h * d), &Device::Cpu)?)?;
    let dy = Tensor::randn(0f32, 1., (b, t, h * d), &Device::Cpu)?.to_dtype(DType::F32)?;
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        let start = now();
        let y = self_attention(&qkv, h, &mask, None, None)?;
        forward.push(now() - start);
        let loss = (y * &dy)?.sum_all()?;
        let start = now();
        let g = nn::backward(&loss)?;
        backward.push(now() - start);
        drop(g);
    }
    let other = Var::from_tensor(&dy)?;
    let mut rest = Vec::new();
    for _ in 0..15 {
        let loss = (nn::relu(&other)? * &dy)?.sum_all()?;
        let start = now();
        drop(nn::backward(&loss)?);
        rest.push(now() - start);
    }
    rest.sort_by(f64::total_cmp);
    println!("the rest of the backward pass: min {:.2} med {:.2}", rest[0], rest[7]);
    for times in [&mut forward, &mut backward] {
        times.sort_by(f64::total_cmp);
    }
    println!(
        "ours {spec} forward min {:.2} med {:.2} ms, backward min {:.2} med {:.2} ms",
        forward[0], forward[7], backward[0], backward[7]
    );
    Ok(())
}
