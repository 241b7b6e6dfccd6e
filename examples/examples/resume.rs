//! Checkpoints of a training loop: weights, optimizer, SAM's state and the random stream of dropout.
//!
//! Trains 40 steps without a break, and 20 + 20 with a checkpoint between. Prints whether the weights are bitwise equal.

use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::{ModuleT, Optimizer, VarBuilder, VarMap, loss};
use sam_runtime::nn::{Dropout, Linear, RngStream, linear};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, sam, write_atomically};

type Net = (Linear, Dropout, Linear);

/// Everything that a step changes.
struct Training(VarMap, Net, RngStream, Sgd, Sam);

#[sam(with = sam)]
fn train_loss(sam: &Sam, net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let x = net.1.forward(&net.0.forward_t(x, true)?.relu()?, true)?;
    loss::cross_entropy(&net.2.forward_t(&x, true)?, y)
}

impl Training {
    fn new() -> Result<Self> {
        let (vars, rng) = (VarMap::new(), RngStream::new(7));
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let net = (linear(2, 32, vb.pp("a"))?, Dropout::with_rng(0.2, rng.clone()), linear(32, 2, vb.pp("b"))?);
        let sgd = Sgd::new(vars.all_vars(), ParamsSgd::default())?;
        Ok(Self(vars, net, rng, sgd, Sam::f_sam())) // F-SAM keeps a moving mean of gradients
    }

    fn train(mut self, steps: u64, x: &Tensor, y: &Tensor) -> Result<Self> {
        for _ in 0..steps {
            self.3.backward_step(&train_loss(&self.4, &self.1, x, y)?)?;
        }
        Ok(self)
    }

    fn save(self, folder: &Path) -> Result<()> {
        // `VarMap::save` does not wait for the disk.
        let vars = self.0.data().lock().map_err(|_| Error::msg("the variables are locked"))?;
        let weights = safetensors::serialize(vars.iter().map(|(name, var)| (name, var.as_tensor())), None)?;
        drop(vars);
        write_atomically(folder.join("weights.safetensors"), &weights)?;
        self.3.save(&self.0, folder.join("sgd.safetensors"))?;
        self.4.save(&self.0, folder.join("sam.safetensors"))
    }

    /// Builds the model anew and loads its state after so many steps.
    fn load(folder: &Path, steps: u64) -> Result<Self> {
        let Self(mut vars, net, rng, mut sgd, sam) = Self::new()?;
        vars.load(folder.join("weights.safetensors"))?;
        sgd.load(&vars, folder.join("sgd.safetensors"))?;
        sam.load(&vars, folder.join("sam.safetensors"))?;
        rng.set_position(steps); // one dropout layer, called once in each step
        Ok(Self(vars, net, rng, sgd, sam))
    }
}

fn main() -> Result<()> {
    let x = Tensor::randn(0f32, 1., (256, 2), &Device::Cpu)?;
    let y = x.sqr()?.sum(1)?.gt(1.4f32)?.to_dtype(DType::U32)?;
    let (start, middle) = (tempfile::tempdir()?, tempfile::tempdir()?);

    Training::new()?.save(start.path())?;
    let whole = Training::load(start.path(), 0)?.train(40, &x, &y)?;
    Training::load(start.path(), 0)?.train(20, &x, &y)?.save(middle.path())?;
    let resumed = Training::load(middle.path(), 20)?.train(20, &x, &y)?;

    let [a, b] = [whole, resumed].map(|training| training.1.0.weight().flatten_all()?.to_vec1::<f32>());
    let (a, b) = (a?, b?);
    println!("without a break: {:?} ..\nresumed:         {:?} ..", &a[..3], &b[..3]);
    println!("bitwise equal: {}", a == b);
    Ok(())
}
