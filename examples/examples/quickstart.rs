//! The quick start of the README: one attribute on a loss function, and candle's `AdamW` trains with SAM.
//!
//! Prints the training loss at the beginning and at the end, and the accuracy on new points.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, AdamW, Module, Optimizer, Sequential, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::sam;

#[sam(rho = 0.05)] // delete this line, and the loop trains without SAM
fn train_loss(model: &Sequential, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

/// Points of the plane. The class says whether a point is outside of a circle.
fn points(count: usize) -> Result<(Tensor, Tensor)> {
    let x = Tensor::randn(0f32, 1., (count, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;
    Ok((x, y))
}

fn accuracy(model: &Sequential, x: &Tensor, y: &Tensor) -> Result<f32> {
    model.forward(x)?.argmax(1)?.eq(y)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()
}

fn main() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 32, vb.pp("hidden"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("out"))?);
    let mut opt = AdamW::new_lr(vars.all_vars(), 0.01)?;

    let (x, y) = points(256)?;
    for step in 0..=300 {
        let loss = train_loss(&model, &x, &y)?; // the value is L(w), the gradient that of L at w + ε̂
        opt.backward_step(&loss)?;
        if step % 100 == 0 {
            println!("step {step:3}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }
    let (x, y) = points(1000)?;
    println!("accuracy on new points: {:.1} %", 100. * accuracy(&model, &x, &y)?); // no SAM: the model alone
    Ok(())
}
