//! Variants of SAM: presets named after their papers, and one that is composed of pieces.
//!
//! Prints for each the accuracy on new points and the forward and backward passes that a step cost on average.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, Module, Optimizer, Sequential, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::variants::{Combination, Direction, Radius};
use sam_runtime::{Sam, sam};

/// The variant is an argument.
#[sam(with = sam)]
fn train_loss(sam: &Sam, model: &Sequential, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

fn points(count: usize) -> Result<(Tensor, Tensor)> {
    let x = Tensor::randn(0f32, 1., (count, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;
    Ok((x, y))
}

fn train(name: &str, variant: impl Fn(&VarMap, &Sgd) -> Sam) -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model: Sequential = seq().add(linear(2, 32, vb.pp("a"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("b"))?);
    let mut sgd = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
    let sam = variant(&vars, &sgd);
    let ((x, y), (steps, mut passes)) = (points(256)?, (120, 0.));
    for _ in 0..steps {
        sgd.backward_step(&train_loss(&sam, &model, &x, &y)?)?;
        passes += sam.last_stats().map_or(0., |stats| stats.passes());
    }
    let (x, y) = points(1000)?;
    let right = model.forward(&x)?.argmax(1)?.eq(&y)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    println!("{name:28} {:.1} % right, {:.2} passes a step", 100. * right, passes / f64::from(steps));
    Ok(())
}

fn main() -> Result<()> {
    train("no perturbation (rho = 0)", |_, _| Sam::new(0.0))?;
    train("SAM", |_, _| Sam::new(0.05))?;
    train("ASAM", |vars, _| Sam::asam(vars))?;
    train("RST", |_, _| Sam::rst())?;
    train("LookSAM", |_, _| Sam::look_sam())?;
    train("MSAM, rho = 0.3", |_, sgd| Sam::momentum_sam(sgd.momentum_buffers()).radius(Radius::Constant(0.3)))?;
    train("VaSSO's direction, GSAM", |_, _| {
        Sam::new(0.1).direction(Direction::Ema { theta: 0.9 }).combination(Combination::Gsam { alpha: 0.4 })
    })
}
