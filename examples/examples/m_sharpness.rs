//! m-sharpness (section 3 of the SAM paper): `shards` gives each shard of m samples an ε̂ of its own.
//!
//! Prints that it is the mean of annotated calls, one for each shard, and what the perturbation costs in loss: the smaller m,
//! the more L(w + ε̂) is above L(w), because ε̂ fits fewer samples.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, Module, Optimizer, Sequential, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn, sam};

#[sam(with = sam, shards(x, y; m = m))]
fn sharded(sam: &Sam, model: &Sequential, x: &Tensor, y: &Tensor, m: usize) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

fn main() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 32, vb.pp("a"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("b"))?);
    let x = Tensor::randn(0f32, 1., (64, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;

    let sam = Sam::new(0.1);
    let mut sgd = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
    for _ in 0..100 {
        sgd.backward_step(&sharded(&sam, &model, &x, &y, 16)?)?;
    }

    // Two shards of 32, and the same by hand.
    let shards = nn::backward(&sharded(&sam, &model, &x, &y, 32)?)?;
    let half = |start| sharded(&sam, &model, &x.narrow(0, start, 32)?, &y.narrow(0, start, 32)?, 32);
    let by_hand = nn::backward(&((half(0)? + half(32)?)? / 2.)?)?;
    let mut difference = 0f32;
    for var in vars.all_vars() {
        let (Some(a), Some(b)) = (shards.get(&var), by_hand.get(&var)) else { continue };
        difference = difference.max((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?);
    }
    println!("shards(x, y; m = 32) and the mean of two annotated calls differ by {difference:.1e}");

    for m in [64, 32, 16, 8, 4] {
        // The rise of the loss in each shard, by a call for each.
        let mut rise = 0.;
        for start in (0..64).step_by(m) {
            sharded(&sam, &model, &x.narrow(0, start, m)?, &y.narrow(0, start, m)?, m)?;
            let stats = sam.last_stats().ok_or_else(|| candle_core::Error::msg("no step was taken"))?;
            rise += stats.sharpness()?.unwrap_or(0.) * m as f64 / 64.;
        }
        println!("m = {m:2}: mean L(w + ε̂) - L(w) = {rise:.4}");
    }
    Ok(())
}
