//! Shake-Shake 26 2x96d, as in the code of Foret et al.

use candle_core::{Result, Tensor};
use candle_nn::{Module, ModuleT, VarBuilder};
use sam_runtime::nn::{self, RngStream};

use super::layers::LayerSet;
use super::net::{Net, groups};
use super::resnet::ConvNorm;

/// Three groups of four blocks of `width` to 4 `width` channels.
pub(super) struct ShakeShake<K: LayerSet> {
    stem: ConvNorm<K>,
    blocks: Vec<Block<K>>,
}

struct Block<K: LayerSet> {
    branches: [Branch<K>; 2],
    shake: nn::ShakeShake,
    skip: Option<Halves<K>>,
}

/// ReLU, convolution, normalization, ReLU, convolution, normalization.
struct Branch<K: LayerSet> {
    first: ConvNorm<K>,
    second: ConvNorm<K>,
}

/// The skip connection of a block that changes the shape: half of the channels from the pixels that the stride meets, half from those one
/// down and to the right.
struct Halves<K: LayerSet> {
    stride: usize,
    parts: [K::Conv; 2],
    norm: K::Norm,
}

impl<K: LayerSet> ShakeShake<K> {
    pub(super) fn new(channels: usize, width: usize, draws: &RngStream, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths = [width, 2 * width, 4 * width];
        let block = |from, to, stride, vb: &VarBuilder<'_>| Block::new(from, to, stride, draws, vb);
        Ok(Self {
            stem: ConvNorm::new(channels, 16, 3, 1, &vb.pp("stem"))?,
            blocks: groups(16, &widths, &[4; 3], vb, block)?,
        })
    }
}

impl<K: LayerSet> Net for ShakeShake<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(x, train)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        K::mean(&K::relu(&x)?)
    }
}

impl<K: LayerSet> Block<K> {
    fn new(from: usize, to: usize, stride: usize, draws: &RngStream, vb: &VarBuilder<'_>) -> Result<Self> {
        let branch = |name: &str| -> Result<_> {
            let vb = vb.pp(name);
            Ok(Branch {
                first: ConvNorm::new(from, to, 3, stride, &vb.pp("first"))?,
                second: ConvNorm::new(to, to, 3, 1, &vb.pp("second"))?,
            })
        };
        let skip = (from != to).then(|| Halves::new(from, to, stride, &vb.pp("skip"))).transpose()?;
        Ok(Self { branches: [branch("left")?, branch("right")?], shake: nn::ShakeShake::new(draws.clone()), skip })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let active = K::relu(x)?;
        let branch = |branch: &Branch<K>| branch.second.forward(&branch.first.forward_relu(&active, train)?, train);
        let mixed = self.shake.forward(&branch(&self.branches[0])?, &branch(&self.branches[1])?, train)?;
        match &self.skip {
            None => K::add(&mixed, x),
            Some(skip) => K::add(&mixed, &skip.forward(x, train)?),
        }
    }
}

impl<K: LayerSet> Halves<K> {
    fn new(from: usize, to: usize, stride: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let left = K::conv(from, to / 2, 1, 1, vb.pp("left"))?;
        let right = K::conv(from, to - to / 2, 1, 1, vb.pp("right"))?;
        Ok(Self { stride, parts: [left, right], norm: K::norm(to, vb.pp("norm"))? })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let shifted = x.narrow(2, 1, height - 1)?.narrow(3, 1, width - 1)?;
        let shifted = shifted.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
        let half = |conv: &K::Conv, x: &Tensor| conv.forward(&every(x, self.stride)?);
        let both = Tensor::cat(&[half(&self.parts[0], x)?, half(&self.parts[1], &shifted)?], 1)?;
        self.norm.forward_t(&both, train)
    }
}

/// Every `stride`-th row and column, from the first.
fn every(x: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (n, channels, height, width) = x.dims4()?;
    let (rows, columns) = (height.div_ceil(stride), width.div_ceil(stride));
    let x = x.pad_with_zeros(2, 0, rows * stride - height)?.pad_with_zeros(3, 0, columns * stride - width)?;
    let x = x.contiguous()?.reshape((n * channels, rows, stride, columns * stride))?.narrow(2, 0, 1)?;
    let x = x.contiguous()?.reshape((n * channels, rows, columns, stride))?.narrow(3, 0, 1)?;
    x.contiguous()?.reshape((n, channels, rows, columns))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn pixels_that_a_stride_meets() {
        let x = Tensor::arange(0f32, 15., &Device::Cpu).unwrap().reshape((1, 1, 3, 5)).unwrap();
        let met = every(&x, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(met, [0., 2., 4., 10., 12., 14.]);
    }
}
