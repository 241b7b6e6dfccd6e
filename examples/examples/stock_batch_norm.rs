//! Batch normalization under SAM: candle's own layer with `buffers`, without it, and the layer of `sam_runtime::nn`.
//!
//! A SAM step runs the network twice. Running statistics should move once, towards those at w. Prints the running mean after
//! one step, next to that after one plain forward pass.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use sam_runtime::{nn, sam};

/// A candle layer, and its running statistics as variables.
struct Net {
    norm: candle_nn::BatchNorm,
    statistics: Vec<Var>,
}

impl Net {
    fn new() -> Result<Self> {
        let vars = VarMap::new();
        let norm = candle_nn::batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
        let statistics = sam_runtime::variants::named(&vars, |name| name.starts_with("running_"));
        Ok(Self { norm, statistics })
    }
}

fn objective(y: &Tensor) -> Result<Tensor> {
    y.sqr()?.sqr()?.mean_all()
}

/// Right: the second pass does not change the statistics.
#[sam(rho = 0.5, buffers = net.statistics.clone())]
fn with_buffers(net: &Net, x: &Tensor) -> Result<Tensor> {
    objective(&net.norm.forward_t(x, true)?)
}

/// Wrong: both passes move the statistics.
#[sam(rho = 0.5)]
fn without_buffers(net: &Net, x: &Tensor) -> Result<Tensor> {
    objective(&net.norm.forward_t(x, true)?)
}

/// Right, without a key: this layer knows which pass is running.
#[sam(rho = 0.5)]
fn pass_aware(norm: &nn::BatchNorm, x: &Tensor) -> Result<Tensor> {
    objective(&norm.forward_t(x, true)?)
}

fn show(what: &str, norm: &candle_nn::BatchNorm) -> Result<()> {
    println!("{what:36} running mean {:.4?}", norm.running_mean().to_vec1::<f32>()?);
    Ok(())
}

fn main() -> Result<()> {
    let x = Tensor::randn(2f32, 1., (64, 3), &Device::Cpu)?;
    let (once, right, wrong) = (Net::new()?, Net::new()?, Net::new()?);
    once.norm.forward_t(&x, true)?;
    with_buffers(&right, &x)?;
    without_buffers(&wrong, &x)?;
    let vars = VarMap::new();
    let aware = nn::batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    pass_aware(&aware, &x)?;

    show("one plain forward pass", &once.norm)?;
    show("candle's layer, buffers = ..", &right.norm)?;
    show("sam_runtime::nn::batch_norm", &aware)?;
    show("candle's layer alone: moved twice", &wrong.norm)
}
