//! `AdamW` with and without SAM, with a learning rate schedule and gradient clipping: the training loop is the same.
//!
//! Three of ten training labels are wrong. Prints the accuracy on correct labels after both runs.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Activation, AdamW, Module, Optimizer, ParamsAdamW, Sequential, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::{nn, sam};

/// `plain = plain_loss` also keeps the function as it is written, under that name.
#[sam(rho = 0.3, plain = plain_loss)]
fn sam_loss(model: &Sequential, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

/// The class of a point: whether it is outside of a circle. A share `noise` of the labels is wrong.
fn points(count: usize, noise: f32) -> Result<(Tensor, Tensor)> {
    let x = Tensor::randn(0f32, 1., (count, 2), &Device::Cpu)?;
    let wrong = Tensor::rand(0f32, 1., count, &Device::Cpu)?.lt(noise)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.ne(&wrong)?.to_dtype(DType::U32)?;
    Ok((x, y))
}

/// Scales the gradients so that their joint norm is at most `most`.
fn clip(grads: &mut GradStore, vars: &[Var], most: f64) -> Result<()> {
    let mut square = 0.;
    for grad in vars.iter().filter_map(|var| grads.get(var)) {
        square += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    let scale = (most / square.sqrt()).min(1.);
    for var in vars {
        if let Some(grad) = grads.remove(var) {
            grads.insert(var, (grad * scale)?);
        }
    }
    Ok(())
}

type Loss = fn(&Sequential, &Tensor, &Tensor) -> Result<Tensor>;

fn train(loss: Loss, x: &Tensor, y: &Tensor, test: &(Tensor, Tensor)) -> Result<f32> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 128, vb.pp("a"))?).add(Activation::Relu).add(linear(128, 2, vb.pp("b"))?);
    let mut opt = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.02, ..Default::default() })?;
    let steps = 500;
    for step in 0..steps {
        opt.set_learning_rate(0.01 * (1. + (std::f64::consts::PI * f64::from(step) / f64::from(steps)).cos()));
        let mut grads = nn::backward(&loss(&model, x, y)?)?; // or `.backward()`; SAM's gradient in both cases
        clip(&mut grads, &vars.all_vars(), 1.)?;
        opt.step(&grads)?;
    }
    model.forward(&test.0)?.argmax(1)?.eq(&test.1)?.to_dtype(DType::F32)?.mean_all()?.to_scalar()
}

fn main() -> Result<()> {
    let ((x, y), test) = (points(256, 0.3)?, points(2000, 0.)?);
    println!("AdamW:       {:.1} % right", 100. * train(plain_loss, &x, &y, &test)?);
    println!("AdamW + SAM: {:.1} % right", 100. * train(sam_loss, &x, &y, &test)?);
    Ok(())
}
