//! Small networks for small machines.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module, ModuleT, VarBuilder, VarMap};
use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sam_runtime::nn::{BatchNorm, batch_norm};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    /// A perceptron with one hidden layer of 128 units.
    Mlp,
    /// Five 3x3 convolutions of 16 to 64 channels with batch normalisation, and a mean over the image.
    Cnn,
}

/// A network and its variables.
pub struct Model {
    net: Net,
    vars: VarMap,
}

enum Net {
    Mlp([Linear; 2]),
    Cnn { blocks: Vec<(Conv2d, BatchNorm)>, head: Linear },
}

impl Model {
    /// A network for images of `shape` (channels, height, width), with weights from a seed.
    ///
    /// # Errors
    /// If candle cannot make a variable.
    pub fn new(architecture: Architecture, shape: [usize; 3], classes: usize, seed: u64) -> Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let net = match architecture {
            Architecture::Mlp => {
                let input = shape.iter().product();
                Net::Mlp([
                    candle_nn::linear(input, 128, vb.pp("hidden"))?,
                    candle_nn::linear(128, classes, vb.pp("head"))?,
                ])
            }
            Architecture::Cnn => {
                let mut blocks = Vec::new();
                let mut channels = shape[0];
                for (i, (width, stride)) in [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1)].into_iter().enumerate() {
                    let config = Conv2dConfig { padding: 1, stride, ..Default::default() };
                    let conv = candle_nn::conv2d_no_bias(channels, width, 3, config, vb.pp(format!("conv{i}")))?;
                    blocks.push((conv, batch_norm(width, 1e-5, vb.pp(format!("norm{i}")))?));
                    channels = width;
                }
                Net::Cnn { blocks, head: candle_nn::linear(channels, classes, vb.pp("head"))? }
            }
        };
        initialise(&vars, seed)?;
        Ok(Self { net, vars })
    }

    /// The network's variables.
    #[must_use]
    pub fn vars(&self) -> &VarMap {
        &self.vars
    }

    /// The logits (n, classes) of images (n, channels, height, width).
    ///
    /// # Errors
    /// If the images have another shape.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        match &self.net {
            Net::Mlp([hidden, head]) => head.forward(&hidden.forward(&x.flatten_from(1)?)?.relu()?),
            Net::Cnn { blocks, head } => {
                let mut x = x.clone();
                for (conv, norm) in blocks {
                    x = norm.forward_t(&conv.forward(&x)?, train)?.relu()?;
                }
                head.forward(&x.mean((2, 3))?)
            }
        }
    }
}

/// PyTorch's uniform weights, ±1/√(inputs of a unit), and zero biases. candle cannot seed its own on the CPU.
fn initialise(vars: &VarMap, seed: u64) -> Result<()> {
    let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut names: Vec<_> = vars.keys().collect();
    names.sort();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for name in names {
        let var = &vars[name];
        if var.rank() >= 2 {
            let inputs = var.elem_count() / var.dim(0)?;
            let bound = 1.0 / (inputs as f32).sqrt();
            let weights: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-bound..bound)).collect();
            var.set(&Tensor::from_vec(weights, var.shape(), &Device::Cpu)?)?;
        } else if name.ends_with("bias") {
            var.set(&var.zeros_like()?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_parameter_counts() {
        let count = |model: &Model| {
            let vars = model.vars().data().lock().unwrap();
            let weights = vars.iter().filter(|(name, _)| !name.contains("running"));
            weights.map(|(_, var)| var.elem_count()).sum::<usize>()
        };
        for (architecture, shape, parameters) in [
            (Architecture::Mlp, [1, 28, 28], 784 * 128 + 128 + 1290),
            (Architecture::Cnn, [3, 32, 32], 9 * (3 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 208 + 650),
        ] {
            let model = Model::new(architecture, shape, 10, 1).unwrap();
            let [c, h, w] = shape;
            let x = Tensor::zeros((2, c, h, w), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(model.forward(&x, true).unwrap().dims(), [2, 10]);
            assert_eq!(count(&model), parameters);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_weights() {
        let logits = |seed| {
            let model = Model::new(Architecture::Cnn, [1, 8, 8], 4, seed).unwrap();
            let x = Tensor::ones((1, 1, 8, 8), DType::F32, &Device::Cpu).unwrap();
            model.forward(&x, false).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(logits(3), logits(3));
        assert_ne!(logits(3), logits(4));
    }
}
