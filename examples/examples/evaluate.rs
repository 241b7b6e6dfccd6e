//! Evaluation without SAM: three ways that cost one forward pass, and what the annotated function costs instead.
//!
//! Prints the loss that each way returns and how often the loss function ran. All values are equal.

use std::cell::Cell;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ModuleT, Optimizer, VarBuilder, VarMap, loss};
use sam_runtime::nn::{BatchNorm, Dropout, Linear, batch_norm, linear};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{plain, sam};

struct Net {
    hidden: Linear,
    norm: BatchNorm,
    dropout: Dropout,
    out: Linear,
    runs: Cell<u32>,
}

impl Net {
    /// `train` switches batch normalization and dropout. Nothing else does: not `plain`, and not the attribute.
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.runs.set(self.runs.get() + 1);
        let x = self.norm.forward_t(&self.hidden.forward_t(x, train)?, train)?.relu()?;
        self.out.forward_t(&self.dropout.forward(&x, train)?, train)
    }
}

#[sam(rho = 0.05, plain = plain_loss)]
fn net_loss(net: &Net, x: &Tensor, y: &Tensor, train: bool) -> Result<Tensor> {
    loss::cross_entropy(&net.forward(x, train)?, y)
}

fn main() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let (hidden, norm) = (linear(2, 32, vb.pp("hidden"))?, batch_norm(32, 1e-5, vb.pp("norm"))?);
    let (dropout, out) = (Dropout::seeded(0.1, 1), linear(32, 2, vb.pp("out"))?);
    let net = Net { hidden, norm, dropout, out, runs: Cell::new(0) };

    let x = Tensor::randn(0f32, 1., (256, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;
    let mut sgd = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
    for _ in 0..100 {
        sgd.backward_step(&net_loss(&net, &x, &y, true)?)?;
    }

    let show = |how: &str, evaluate: &dyn Fn() -> Result<Tensor>| -> Result<()> {
        net.runs.set(0);
        let loss = evaluate()?.to_scalar::<f32>()?;
        println!("{how:24} loss {loss:.4}, {} forward pass(es)", net.runs.get());
        Ok(())
    };
    show("the model itself", &|| loss::cross_entropy(&net.forward(&x, false)?, &y))?;
    show("plain(|| net_loss(..))", &|| plain(|| net_loss(&net, &x, &y, false)))?;
    show("plain = plain_loss", &|| plain_loss(&net, &x, &y, false))?;
    show("net_loss(..): wasteful", &|| net_loss(&net, &x, &y, false)) // two passes, and two backward passes
}
