//! Initial weights from a seed: candle cannot seed its own generator on the CPU.

use candle_core::{Result, Tensor, Var, bail};
use candle_nn::VarMap;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::params::named;
use crate::util::rng::Stream;

/// The standard deviation of a transformer's weights.
const DEVIATION: f64 = 0.02;

/// The initialization of the weights of a convolutional network or a perceptron. Biases start at 0, normalizations as the
/// identity. Transformers and mixers have initializations of their own, those of their reference implementations, and this does
/// not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// PyTorch's: uniform in ±1/√(inputs of a unit).
    Uniform,
    /// That of Foret et al. for CIFAR: normal of variance 2 / (outputs of a kernel), the head uniform in
    /// ±1/√classes. It is also that of EfficientNet. Without normalization Fixup's (Zhang et al. 2019): each block begins as the
    /// identity.
    Authors,
    /// That of Foret et al. for ImageNet: truncated normal of variance 1 / inputs, and 0 for the scale of each
    /// block's last normalization.
    #[serde(rename = "imagenet")]
    ImageNet,
}

/// What else the initialization depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// A network with batch normalizations, or a perceptron.
    Normalized,
    /// One without normalizations, of so many blocks.
    Plain { blocks: usize },
    /// A vision transformer, as in timm: normal of deviation 0.02, the class token 10⁻⁶, the projection of the patches as in
    /// [`Init::ImageNet`].
    Vit,
    /// A mixer, as in timm: Xavier's, with biases of deviation 10⁻⁶ in the MLPs; the projection of the patches as in
    /// [`Init::ImageNet`], the head 0.
    Mixer,
    /// A GPT, as GPT-2: normal of deviation 0.02, less by √(2 blocks) where a branch ends.
    Gpt { blocks: usize },
}

/// Sets all variables of a network.
pub(super) fn initialize(vars: &VarMap, init: Init, family: Family, seed: u64) -> Result<()> {
    let mut rng = Stream::Default.rng(seed);
    for (name, var) in named(vars) {
        let is_mlp_bias = family == Family::Mixer && name.contains("mlp_") && name.ends_with("bias");
        if var.rank() >= 2 || is_mlp_bias {
            set(&var, weights(&name, &var, init, family, &mut rng)?)?;
        } else if name.ends_with("bias") || (init == Init::ImageNet && name.ends_with("third.norm.weight")) {
            var.set(&var.zeros_like()?)?;
        }
    }
    Ok(())
}

fn set(var: &Var, values: Vec<f32>) -> Result<()> {
    var.set(&Tensor::from_vec(values, var.shape(), var.device())?)
}

fn weights(name: &str, var: &Var, init: Init, family: Family, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
    let (count, outputs) = (var.elem_count(), var.dim(0)?);
    if count == 0 {
        bail!("`{name}` has shape {:?}: expected at least one channel", var.dims())
    }
    let inputs = count / outputs;
    let uniform = |bound: f32, rng: &mut ChaCha8Rng| (0..count).map(|_| rng.random_range(-bound..bound)).collect();
    let truncated = |deviation: f64, limit: f64, rng: &mut ChaCha8Rng| {
        let mut draw = || loop {
            let x: f64 = StandardNormal.sample(rng);
            if x.abs() <= limit {
                return (deviation * x) as f32;
            }
        };
        (0..count).map(|_| draw()).collect()
    };
    let normal = |deviation: f64, rng: &mut ChaCha8Rng| truncated(deviation, f64::INFINITY, rng);
    // The variance of a normal distribution that is truncated at two standard deviations is smaller by the square of this factor.
    let of_inputs = |rng: &mut ChaCha8Rng| truncated((1.0 / inputs as f64).sqrt() / 0.879_625_661_034_239_8, 2.0, rng);
    let is_projection = name == "patch_embed.proj.weight" || name == "stem.proj.weight";
    Ok(match (family, init) {
        (Family::Vit | Family::Mixer, _) if is_projection => of_inputs(rng),
        (Family::Vit, _) => normal(if name == "cls_token" { 1e-6 } else { DEVIATION }, rng),
        (Family::Mixer, _) if name == "head.weight" => vec![0.0; count],
        (Family::Mixer, _) if name.ends_with("bias") => normal(1e-6, rng),
        (Family::Mixer, _) => uniform((6.0 / (inputs + outputs) as f32).sqrt(), rng),
        (Family::Gpt { blocks }, _) if name.ends_with("attn.proj.weight") || name.ends_with("mlp.fc2.weight") => {
            normal(DEVIATION / (2.0 * blocks as f64).sqrt(), rng)
        }
        (Family::Gpt { .. }, _) => normal(DEVIATION, rng),
        (_, Init::Uniform) => uniform(1.0 / (inputs as f32).sqrt(), rng),
        (_, Init::Authors) if var.rank() == 2 => uniform(1.0 / (outputs as f32).sqrt(), rng),
        (_, Init::Authors) => {
            // Each kernel of a depthwise convolution has one output.
            let filters = if name.ends_with("depthwise.conv.weight") { 1 } else { outputs };
            let deviation = (2.0 / (filters * var.dim(2)? * var.dim(3)?) as f64).sqrt();
            match family {
                Family::Plain { .. } if name.ends_with("second.conv.weight") => vec![0.0; count],
                Family::Plain { blocks } if name.ends_with("first.conv.weight") => {
                    normal(deviation / (blocks as f64).sqrt(), rng)
                }
                _ => normal(deviation, rng),
            }
        }
        (_, Init::ImageNet) => of_inputs(rng),
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
            initialize(&vars, init, Family::Normalized, 1).unwrap();
            for (name, variance) in [("conv.weight", conv), ("head.weight", head)] {
                let values = vars.data().lock().unwrap()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let found = values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64;
                assert!((found / variance - 1.0).abs() < 0.05, "{init:?} {name}: {found}, expected {variance}");
            }
        }
    }

    #[test]
    fn transformers_begin_as_their_reference_implementations() {
        let deviation = |family, name: &str, shape: &[usize]| {
            let vars = VarMap::new();
            let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
            vb.get(shape, name).unwrap();
            initialize(&vars, Init::Authors, family, 1).unwrap();
            let values = vars.data().lock().unwrap()[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64).sqrt()
        };
        let gpt = Family::Gpt { blocks: 6 };
        for (family, name, shape, expected) in [
            (Family::Vit, "blocks.0.attn.qkv.weight", &[96, 64][..], 0.02),
            (Family::Vit, "pos_embed", &[1, 65, 64], 0.02),
            (Family::Vit, "cls_token", &[1, 1, 4096], 1e-6),
            (Family::Vit, "patch_embed.proj.weight", &[64, 3, 4, 4], (1.0f64 / 48.0).sqrt()),
            (Family::Vit, "blocks.0.mlp.fc1.bias", &[64], 0.0),
            (Family::Mixer, "blocks.0.mlp_tokens.fc1.weight", &[128, 64], (2.0f64 / 192.0).sqrt()),
            (Family::Mixer, "blocks.0.mlp_tokens.fc1.bias", &[4096], 1e-6),
            (Family::Mixer, "head.weight", &[10, 64], 0.0),
            (gpt, "tokens.weight", &[256, 64], 0.02),
            (gpt, "blocks.3.mlp.fc2.weight", &[64, 256], 0.02 / 12f64.sqrt()),
        ] {
            let found = deviation(family, name, shape);
            assert!((found - expected).abs() <= 0.05 * expected, "{name}: {found}, expected {expected}");
        }
        // Inputs that are not added up: variance 2 / 9.
        let found = deviation(Family::Normalized, "depthwise.conv.weight", &[512, 1, 3, 3]);
        assert!((found * found * 4.5 - 1.0).abs() < 0.1, "{found}");
    }
}
