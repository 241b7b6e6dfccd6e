//! WideResNets: blocks that normalize before their convolutions (Zagoruyko & Komodakis 2016), and two relatives.

use candle_core::{Result, Tensor};
use candle_nn::{Module, ModuleT, VarBuilder};

use super::architecture::Skip;
use super::layers::LayerSet;
use super::net::{Net, groups, pad_channels};

/// Depth 6n + 4 and width 16k.
pub(super) struct WideResNet<K: LayerSet> {
    stem: K::Conv,
    blocks: Vec<PreActivation<K>>,
    norm: Option<K::Norm>,
}

/// A WideResNet's block.
struct PreActivation<K: LayerSet> {
    first: Half<K>,
    second: Half<K>,
    skip: Past<K>,
}

/// A normalization, if there is one, a ReLU and a convolution.
struct Half<K: LayerSet> {
    norm: Option<K::Norm>,
    conv: K::Conv,
}

/// The skip connection.
enum Past<K: LayerSet> {
    Same,
    Conv(K::Conv),
    /// The mean over the stride, and this many channels of zeros.
    Pad(usize, usize),
}

fn activated<K: LayerSet>(norm: Option<&K::Norm>, x: &Tensor, train: bool) -> Result<Tensor> {
    norm.map_or_else(|| K::relu(x), |norm| K::norm_relu(norm, x, train))
}

impl<K: LayerSet> WideResNet<K> {
    pub(super) fn new(
        channels: usize,
        depth: usize,
        width: usize,
        skip: Skip,
        with_norm: bool,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let widths = [width, 2 * width, 4 * width];
        let block = |from, to, stride, vb: &VarBuilder<'_>| PreActivation::new(from, to, stride, skip, with_norm, vb);
        Ok(Self {
            stem: K::conv(channels, 16, 3, 1, vb.pp("stem"))?,
            blocks: groups(16, &widths, &[(depth - 4) / 6; 3], vb, block)?,
            norm: with_norm.then(|| K::norm(widths[2], vb.pp("norm"))).transpose()?,
        })
    }
}

impl<K: LayerSet> Net for WideResNet<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, i == 0, train)?;
        }
        K::mean(&activated::<K>(self.norm.as_ref(), &x, train)?)
    }
}

impl<K: LayerSet> PreActivation<K> {
    fn new(from: usize, to: usize, stride: usize, skip: Skip, with_norm: bool, vb: &VarBuilder<'_>) -> Result<Self> {
        let half = |from, stride, name: &str| -> Result<_> {
            let vb = vb.pp(name);
            let norm = with_norm.then(|| K::norm(from, vb.pp("norm"))).transpose()?;
            Ok(Half { norm, conv: K::conv(from, to, 3, stride, vb.pp("conv"))? })
        };
        let skip = match skip {
            _ if stride == 1 && from == to => Past::Same,
            Skip::Conv => Past::Conv(K::conv(from, to, 1, stride, vb.pp("skip.conv"))?),
            Skip::Pad if from > to => {
                candle_core::bail!("expected groups of at least {from} channels after a stem of {from}, found {to}")
            }
            Skip::Pad => Past::Pad(stride, to - from),
        };
        Ok(Self { first: half(from, stride, "first")?, second: half(to, 1, "second")?, skip })
    }

    /// With channels of zeros, the skip connection of the very first block starts at its activated input, that of others at their
    /// input.
    fn forward(&self, x: &Tensor, is_first: bool, train: bool) -> Result<Tensor> {
        let before = activated::<K>(self.first.norm.as_ref(), x, train)?;
        let y = activated::<K>(self.second.norm.as_ref(), &self.first.conv.forward(&before)?, train)?;
        let y = self.second.conv.forward(&y)?;
        match &self.skip {
            Past::Same => K::add(&y, x),
            Past::Conv(conv) => K::add(&y, &conv.forward(&before)?),
            Past::Pad(stride, zeros) => {
                let x = if is_first { &before } else { x };
                let x = if *stride == 1 { x.clone() } else { K::avg_pool(x, *stride)? };
                K::add(&y, &pad_channels(&x, 0, *zeros)?)
            }
        }
    }
}

/// MentorMix's ResNet-32 (Jiang et al. 2020): blocks as above, of 128 to 512 channels, with leaky ReLUs.
pub(super) struct MentorMix<K: LayerSet> {
    stem: K::Conv,
    blocks: Vec<LeakyBlock<K>>,
    norm: K::Norm,
}

struct LeakyBlock<K: LayerSet> {
    first: (K::Norm, K::Conv),
    second: (K::Norm, K::Conv),
    stride: usize,
    zeros: usize,
}

/// max(x, 0.1 x)
fn leaky_relu<K: LayerSet>(x: &Tensor) -> Result<Tensor> {
    const SLOPE: f64 = 0.1;
    K::relu(x)? * (1.0 - SLOPE) + (x * SLOPE)?
}

/// A normalization, and a leaky ReLU after it.
fn normalized<K: LayerSet>(norm: &K::Norm, x: &Tensor, train: bool) -> Result<Tensor> {
    leaky_relu::<K>(&norm.forward_t(x, train)?)
}

impl<K: LayerSet> MentorMix<K> {
    const EPS: f64 = 1e-3;
    const BLOCKS: usize = 5;

    pub(super) fn new(channels: usize, width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths = [2 * width, 4 * width, 8 * width];
        let block = |from: usize, to: usize, stride, vb: &VarBuilder<'_>| -> Result<_> {
            let half = |from, stride, name: &str| -> Result<_> {
                let vb = vb.pp(name);
                Ok((K::norm_with(from, Self::EPS, vb.pp("norm"))?, K::conv(from, to, 3, stride, vb.pp("conv"))?))
            };
            Ok(LeakyBlock {
                first: half(from, stride, "first")?,
                second: half(to, 1, "second")?,
                stride,
                zeros: to - from,
            })
        };
        Ok(Self {
            stem: K::conv(channels, width, 3, 1, vb.pp("stem"))?,
            blocks: groups(width, &widths, &[Self::BLOCKS; 3], vb, block)?,
            norm: K::norm_with(widths[2], Self::EPS, vb.pp("norm"))?,
        })
    }
}

impl<K: LayerSet> Net for MentorMix<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, i == 0, train)?;
        }
        K::mean(&normalized::<K>(&self.norm, &x, train)?)
    }
}

impl<K: LayerSet> LeakyBlock<K> {
    /// The very first block activates its input before it normalizes it, and its skip connection starts there.
    fn forward(&self, x: &Tensor, is_first: bool, train: bool) -> Result<Tensor> {
        let [(first_norm, first), (second_norm, second)] = [&self.first, &self.second];
        let before = if is_first {
            first_norm.forward_t(&leaky_relu::<K>(x)?, train)?
        } else {
            normalized::<K>(first_norm, x, train)?
        };
        let y = second.forward(&normalized::<K>(second_norm, &first.forward(&before)?, train)?)?;
        let x = if is_first { &before } else { x };
        let x = if self.stride == 1 { x.clone() } else { K::avg_pool(x, self.stride)? };
        K::add(&y, &pad_channels(&x, self.zeros / 2, self.zeros - self.zeros / 2)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;
    use crate::models::layers::CandleNn;

    /// With a second convolution of zeros a block is its skip connection.
    #[test]
    fn mentormix_activates_before_it_normalizes_in_its_first_block() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let network = MentorMix::<CandleNn>::new(1, 2, &vb).unwrap();
        let zero = &vars.data().lock().unwrap()["group0.block0.second.conv.weight"];
        zero.set(&zero.zeros_like().unwrap()).unwrap();
        let pixels: Vec<f32> = (0..4 * 2 * 16).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let x = Tensor::from_vec(pixels.clone(), (4, 2, 4, 4), &Device::Cpu).unwrap();
        let block = &network.blocks[0];
        let past = |is_first| block.forward(&x, is_first, true).unwrap();
        // One channel of zeros before and one after: the second is the image's first.
        let channel = |y: &Tensor| -> Vec<f32> {
            let y = y.narrow(1, 1, 1).unwrap().flatten_all().unwrap();
            y.to_vec1().unwrap()
        };
        let active: Vec<f32> =
            (0..4).flat_map(|image| pixels[32 * image..32 * image + 16].iter()).map(|x| x.max(0.1 * x)).collect();
        let mean = active.iter().sum::<f32>() / 64.0;
        let variance = active.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 64.0;
        for (found, active) in channel(&past(true)).iter().zip(&active) {
            let expected = (active - mean) / (variance + 1e-3).sqrt();
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        // The skip connection of the other blocks starts at their input.
        assert_eq!(channel(&past(false)), channel(&pad_channels(&x, 1, 1).unwrap()));
    }
}
