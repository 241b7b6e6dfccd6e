//! Initial weights from a seed: candle cannot seed its own generator on the CPU.

use candle_core::{Result, Tensor, Var};
use candle_nn::VarMap;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::params::named;
use crate::util::rng::Stream;

/// The initialization of weights. Biases start at 0, normalizations as the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// PyTorch's: uniform in ±1/√(inputs of a unit).
    Uniform,
    /// That of Foret et al. for CIFAR: normal of variance 2 / (outputs of a kernel), the head uniform in
    /// ±1/√classes. Without normalization Fixup's (Zhang et al. 2019): each block begins as the identity.
    Authors,
    /// That of Foret et al. for ImageNet: truncated normal of variance 1 / inputs, and 0 for the scale of each
    /// block's last normalization.
    #[serde(rename = "imagenet")]
    ImageNet,
}

/// Sets all variables of a network. `plain_blocks` is the number of blocks of a network without normalization.
pub(super) fn initialize(vars: &VarMap, init: Init, plain_blocks: Option<usize>, seed: u64) -> Result<()> {
    let mut rng = Stream::Default.rng(seed);
    for (name, var) in named(vars) {
        if var.rank() >= 2 {
            set(&var, weights(&name, &var, init, plain_blocks, &mut rng)?)?;
        } else if name.ends_with("bias") || (init == Init::ImageNet && name.ends_with("third.norm.weight")) {
            var.set(&var.zeros_like()?)?;
        }
    }
    Ok(())
}

fn set(var: &Var, values: Vec<f32>) -> Result<()> {
    var.set(&Tensor::from_vec(values, var.shape(), var.device())?)
}

fn weights(name: &str, var: &Var, init: Init, plain_blocks: Option<usize>, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
    let (count, outputs) = (var.elem_count(), var.dim(0)?);
    let inputs = count / outputs;
    let uniform = |bound: f32, rng: &mut ChaCha8Rng| (0..count).map(|_| rng.random_range(-bound..bound)).collect();
    let normal = |deviation: f64, limit: f64, rng: &mut ChaCha8Rng| {
        let mut draw = || loop {
            let x: f64 = StandardNormal.sample(rng);
            if x.abs() <= limit {
                return (deviation * x) as f32;
            }
        };
        (0..count).map(|_| draw()).collect()
    };
    Ok(match init {
        Init::Uniform => uniform(1.0 / (inputs as f32).sqrt(), rng),
        Init::Authors if var.rank() == 2 => uniform(1.0 / (outputs as f32).sqrt(), rng),
        Init::Authors => {
            let deviation = (2.0 / (outputs * var.dim(2)? * var.dim(3)?) as f64).sqrt();
            match plain_blocks {
                Some(_) if name.ends_with("second.conv.weight") => vec![0.0; count],
                Some(blocks) if name.ends_with("first.conv.weight") => {
                    normal(deviation / (blocks as f64).sqrt(), f64::INFINITY, rng)
                }
                _ => normal(deviation, f64::INFINITY, rng),
            }
        }
        // The variance of a normal distribution that is truncated at two standard deviations is smaller by the square of this factor.
        Init::ImageNet => normal((1.0 / inputs as f64).sqrt() / 0.879_625_661_034_239_8, 2.0, rng),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;

    #[test]
    fn variances_are_those_of_the_formulas() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        vb.get((64, 32, 3, 3), "conv.weight").unwrap();
        vb.get((100, 640), "head.weight").unwrap();
        for (init, conv, head) in [
            (Init::Uniform, 1.0 / 288.0 / 3.0, 1.0 / 640.0 / 3.0),
            (Init::Authors, 2.0 / (9.0 * 64.0), 1.0 / 100.0 / 3.0),
            (Init::ImageNet, 1.0 / 288.0, 1.0 / 640.0),
        ] {
            initialize(&vars, init, None, 1).unwrap();
            for (name, variance) in [("conv.weight", conv), ("head.weight", head)] {
                let values = vars.data().lock().unwrap()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let found = values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64;
                assert!((found / variance - 1.0).abs() < 0.05, "{init:?} {name}: {found}, expected {variance}");
            }
        }
    }
}
