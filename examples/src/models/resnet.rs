//! ResNets: blocks that normalize after their convolutions (He et al. 2016).

use candle_core::{Result, Tensor};
use candle_nn::{Module, ModuleT, VarBuilder};

use super::layers::LayerSet;
use super::net::{Net, groups};

/// A convolution and its normalization.
pub(super) struct ConvNorm<K: LayerSet> {
    conv: K::Conv,
    norm: K::Norm,
}

impl<K: LayerSet> ConvNorm<K> {
    pub(super) fn new(from: usize, to: usize, size: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { conv: K::conv(from, to, size, stride, vb.pp("conv"))?, norm: K::norm(to, vb.pp("norm"))? })
    }

    pub(super) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, train)
    }

    pub(super) fn forward_relu(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        K::norm_relu(&self.norm, &self.conv.forward(x)?, train)
    }

    fn forward_add_relu(&self, x: &Tensor, skip: &Tensor, train: bool) -> Result<Tensor> {
        K::norm_add_relu(&self.norm, &self.conv.forward(x)?, skip, train)
    }
}

/// A ResNet for images of 32 pixels.
pub(super) struct ResNet<K: LayerSet> {
    stem: ConvNorm<K>,
    blocks: Vec<Basic<K>>,
}

impl<K: LayerSet> ResNet<K> {
    pub(super) fn new(channels: usize, widths: &[usize], depth: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let stem = ConvNorm::new(channels, widths[0], 3, 1, &vb.pp("stem"))?;
        let depths = vec![depth; widths.len()];
        Ok(Self { stem, blocks: groups(widths[0], widths, &depths, vb, Basic::new)? })
    }
}

impl<K: LayerSet> Net for ResNet<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward_relu(x, train)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        K::mean(&x)
    }
}

/// Two convolutions of 3x3.
struct Basic<K: LayerSet> {
    first: ConvNorm<K>,
    second: ConvNorm<K>,
    skip: Option<ConvNorm<K>>,
}

/// A 1x1 convolution where the shape changes.
fn projection<K: LayerSet>(from: usize, to: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Option<ConvNorm<K>>> {
    (stride != 1 || from != to).then(|| ConvNorm::new(from, to, 1, stride, &vb.pp("skip"))).transpose()
}

fn past<K: LayerSet>(skip: Option<&ConvNorm<K>>, x: &Tensor, train: bool) -> Result<Tensor> {
    skip.map_or_else(|| Ok(x.clone()), |skip| skip.forward(x, train))
}

impl<K: LayerSet> Basic<K> {
    fn new(from: usize, to: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            first: ConvNorm::new(from, to, 3, stride, &vb.pp("first"))?,
            second: ConvNorm::new(to, to, 3, 1, &vb.pp("second"))?,
            skip: projection(from, to, stride, vb)?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = self.first.forward_relu(x, train)?;
        self.second.forward_add_relu(&y, &past(self.skip.as_ref(), x, train)?, train)
    }
}

/// A ResNet for images of 224 pixels, of bottlenecks with the stride on the 3x3 convolution. As in the code of Foret et al. there is
/// no ReLU between the stem's normalization and the max-pool.
pub(super) struct ImageNet<K: LayerSet> {
    stem: ConvNorm<K>,
    blocks: Vec<Bottleneck<K>>,
}

impl<K: LayerSet> ImageNet<K> {
    /// Channels of the features, for channels of the stem.
    pub(super) fn features(width: usize) -> usize {
        32 * width
    }

    pub(super) fn new(channels: usize, width: usize, depth: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let depths = match depth {
            50 => [3, 4, 6, 3],
            101 => [3, 4, 23, 3],
            152 => [3, 8, 36, 3],
            _ => candle_core::bail!("expected 50, 101 or 152 layers for ImageNet, found {depth}"),
        };
        let widths = [4, 8, 16, 32].map(|factor| factor * width);
        let stem = ConvNorm::new(channels, width, 7, 2, &vb.pp("stem"))?;
        Ok(Self { stem, blocks: groups(width, &widths, &depths, vb, Bottleneck::new)? })
    }
}

impl<K: LayerSet> Net for ImageNet<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = K::max_pool(&self.stem.forward(x, train)?)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        K::mean(&x)
    }
}

/// Convolutions of 1x1, 3x3 and 1x1, the inner ones with a quarter of the channels.
struct Bottleneck<K: LayerSet> {
    first: ConvNorm<K>,
    second: ConvNorm<K>,
    third: ConvNorm<K>,
    skip: Option<ConvNorm<K>>,
}

impl<K: LayerSet> Bottleneck<K> {
    fn new(from: usize, to: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let inner = to / 4;
        Ok(Self {
            first: ConvNorm::new(from, inner, 1, 1, &vb.pp("first"))?,
            second: ConvNorm::new(inner, inner, 3, stride, &vb.pp("second"))?,
            third: ConvNorm::new(inner, to, 1, 1, &vb.pp("third"))?,
            skip: projection(from, to, stride, vb)?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = self.first.forward_relu(x, train)?;
        let y = self.second.forward_relu(&y, train)?;
        self.third.forward_add_relu(&y, &past(self.skip.as_ref(), x, train)?, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarMap;

    use super::*;
    use crate::models::layers::{CandleNn, SamRuntime};

    /// The input of the first block of a network whose other blocks do nothing.
    fn after_the_stem<K: LayerSet>() -> Vec<f32> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let stem = ConvNorm::<K>::new(1, 1, 7, 2, &vb.pp("stem")).unwrap();
        for (name, var) in vars.data().lock().unwrap().iter() {
            let value = match name.as_str() {
                "stem.conv.weight" => 1.0,
                // A normalization that subtracts 100.
                "stem.norm.bias" => -100.0,
                _ => continue,
            };
            var.set(&(var.zeros_like().unwrap() + value).unwrap()).unwrap();
        }
        let net = ImageNet::<K> { stem, blocks: Vec::new() };
        let x = Tensor::ones((1, 1, 16, 16), DType::F32, &Device::Cpu).unwrap();
        net.features(&x, false).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_stem_has_no_relu() {
        for found in [after_the_stem::<SamRuntime>(), after_the_stem::<CandleNn>()] {
            // At most 7 x 7 ones less 100.
            assert!(found.len() == 1 && (-100.0..-50.0).contains(&found[0]), "{found:?}");
        }
    }
}
