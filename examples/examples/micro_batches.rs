//! Gradient accumulation: `micro_batches` takes a batch in parts, with the memory of one part, for one ε̂ of the whole batch.
//!
//! Prints how far the gradients of three ways are from that of the whole batch: `micro_batches` agrees up to rounding; two
//! annotated calls whose losses are added do not, because each call has an ε̂ of its own (see the example `m_sharpness`).

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, Module, Optimizer, Sequential, VarBuilder, VarMap, linear, loss, seq};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{nn, sam};

#[sam(rho = 0.5)]
fn whole(model: &Sequential, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

/// The same loss. Each pass runs the body for 32 samples at a time.
#[sam(rho = 0.5, micro_batches(x, y; m = 32))]
fn in_parts(model: &Sequential, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    loss::cross_entropy(&model.forward(x)?, y)
}

fn main() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let model = seq().add(linear(2, 32, vb.pp("a"))?).add(Activation::Relu).add(linear(32, 2, vb.pp("b"))?);
    let x = Tensor::randn(0f32, 1., (64, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;

    let mut sgd = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
    for _ in 0..100 {
        sgd.backward_step(&in_parts(&model, &x, &y)?)?;
    }

    let expected = nn::backward(&whole(&model, &x, &y)?)?;
    let show = |what: &str, loss: &Tensor| -> Result<()> {
        let (found, mut difference) = (nn::backward(loss)?, 0f32);
        for var in vars.all_vars() {
            let (Some(a), Some(b)) = (found.get(&var), expected.get(&var)) else { continue };
            difference = difference.max((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?);
        }
        println!("{what:32} loss {:.6}, gradients differ by {difference:.1e}", loss.to_scalar::<f32>()?);
        Ok(())
    };
    let half = |start| whole(&model, &x.narrow(0, start, 32)?, &y.narrow(0, start, 32)?);
    show("the whole batch", &whole(&model, &x, &y)?)?;
    show("micro_batches(x, y; m = 32)", &in_parts(&model, &x, &y)?)?;
    show("the mean of two annotated calls", &((half(0)? + half(32)?)? / 2.)?)
}
