//! SAM without the attribute: `Sam::loss` takes a closure, and the four stages that `#[sam]` writes can be called.
//!
//! Prints that both give the same value and the same gradient, and the accuracy after training with the closure.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, AdamW, Module, Optimizer, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::{Pass, Sam};

fn main() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 32, vb.pp("a"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("b"))?);
    let x = Tensor::randn(0f32, 1., (256, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;

    let sam = Sam::new(0.05).p(2);
    let mut opt = AdamW::new_lr(vars.all_vars(), 0.01)?;
    for _ in 0..200 {
        let loss = sam.loss(|| loss::cross_entropy(&model.forward(&x)?, &y))?;
        opt.backward_step(&loss)?;
    }

    // The same step by its stages. Each is a type, so that no other order compiles.
    let mut body = |_: Pass| loss::cross_entropy(&model.forward(&x)?, &y);
    let ascent = sam.ascend(&mut body)?; // L(w) and ∇L(w)
    let perturbed = ascent.perturb()?; // w ← w + ε̂(w)
    let descent = perturbed.descend(&mut body)?; // ∇L(w + ε̂)
    let by_stages: Tensor = descent.restore::<candle_core::Error>()?; // w is what it was

    let by_closure = sam.loss(|| body(Pass::current()))?;
    println!("loss: {:.6} and {:.6}", by_closure.to_scalar::<f32>()?, by_stages.to_scalar::<f32>()?);
    let (a, b, mut equal) = (by_closure.backward()?, by_stages.backward()?, true);
    for var in vars.all_vars() {
        if let (Some(a), Some(b)) = (a.get(&var), b.get(&var)) {
            equal &= a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?;
        }
    }
    println!("gradients are bitwise equal: {equal}");
    let right = model.forward(&x)?.argmax(1)?.eq(&y)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    println!("accuracy: {:.1} %", 100. * right);
    Ok(())
}
