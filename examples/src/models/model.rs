//! A network with its variables.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};
use sam_runtime::nn::{self, RngStream};

use super::architecture::{Architecture, Skip};
use super::efficientnet::EfficientNetLite0;
use super::init::{self, Family, Init};
use super::layers::{LayerSet, SamRuntime};
use super::net::Net;
use super::params::parameter_count;
use super::pyramid::Pyramid;
use super::resnet::{ImageNet, ResNet};
use super::shake_shake::ShakeShake;
use super::small::{Cnn, Mlp, MlpNorm};
use super::transformer::{Gpt, Mixer, Vit};
use super::wide::{MentorMix, WideResNet};
use crate::util::device::DeviceConfig;

/// A network of the layers of one set, and its variables.
pub struct Model<K: LayerSet = SamRuntime> {
    net: Box<dyn Net>,
    head: K::Linear,
    vars: VarMap,
    draws: RngStream,
    classes: usize,
    dtype: DType,
    channels_last: bool,
}

impl<K: LayerSet + 'static> Model<K> {
    /// A network for images of `shape` (channels, height, width), with weights from a seed, drawn as PyTorch does. Of a language
    /// model the width is the length of its texts, and the classes are its tokens.
    ///
    /// # Errors
    /// If candle cannot create a variable.
    pub fn new(architecture: Architecture, shape: [usize; 3], classes: usize, seed: u64) -> Result<Self> {
        Self::at(&DeviceConfig::CPU, architecture, shape, classes, seed)
    }

    /// As [`new`](Self::new), on any device. The weights are f32, whatever the dtype of activations.
    ///
    /// # Errors
    /// If candle cannot create a variable.
    pub fn at(
        device: &DeviceConfig,
        architecture: Architecture,
        shape: [usize; 3],
        classes: usize,
        seed: u64,
    ) -> Result<Self> {
        Self::with_init(device, architecture, shape, classes, Init::Uniform, seed)
    }

    /// As [`at`](Self::at), with another initialization. The same seed gives the same weights on every device.
    ///
    /// # Errors
    /// If candle cannot create a variable.
    pub fn with_init(
        device: &DeviceConfig,
        architecture: Architecture,
        shape: [usize; 3],
        classes: usize,
        init: Init,
        seed: u64,
    ) -> Result<Self> {
        let model = Self::unset(device, architecture, shape, classes, seed)?;
        let family = match architecture {
            Architecture::WidePlain { depth, .. } => Family::Plain { blocks: (depth - 4) / 2 },
            Architecture::Vit { .. } => Family::Vit,
            Architecture::Mixer { .. } => Family::Mixer,
            Architecture::Gpt(_) => Family::Gpt { blocks: Gpt::<K>::DEPTH },
            _ => Family::Normalized,
        };
        init::initialize(&model.vars, init, family, seed)?;
        Ok(model)
    }

    /// The same with dropout, and with stochastic depth, whose rate grows from 0 in the first block to this in the last. Networks
    /// other than transformers and mixers have neither.
    #[must_use]
    pub fn regularized(mut self, dropout: f64, stochastic_depth: f64) -> Self {
        self.net.regularize([dropout, stochastic_depth], &self.draws);
        self
    }

    fn unset(
        device: &DeviceConfig,
        architecture: Architecture,
        shape: [usize; 3],
        classes: usize,
        seed: u64,
    ) -> Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &device.device);
        let draws = RngStream::new(seed);
        let (pixels, channels) = (shape.iter().product(), shape[0]);
        let (net, width): (Box<dyn Net>, usize) = match architecture {
            Architecture::Mlp(width) => (Box::new(Mlp::<K>::new(&[pixels, width], &vb)?), width),
            Architecture::MlpNorm(width) => (Box::new(MlpNorm::<K>::new(pixels, width, &vb)?), width),
            Architecture::MlpWide(width) => (Box::new(Mlp::<K>::new(&[pixels, width, width], &vb)?), width),
            Architecture::Cnn(width) => (Box::new(Cnn::<K>::new(channels, width, &vb)?), 4 * width),
            Architecture::ResNet { depth, width } => {
                let widths = [1, 2, 4].map(|factor| factor * width);
                (Box::new(ResNet::<K>::new(channels, &widths, (depth - 2) / 6, &vb)?), 4 * width)
            }
            Architecture::ResNet18(width) => {
                let widths = [1, 2, 4, 8].map(|factor| factor * width);
                (Box::new(ResNet::<K>::new(channels, &widths, 2, &vb)?), 8 * width)
            }
            Architecture::Wide { depth, width, skip } => {
                (Box::new(WideResNet::<K>::new(channels, depth, width, skip, true, &vb)?), 4 * width)
            }
            Architecture::WidePlain { depth, width } => {
                (Box::new(WideResNet::<K>::new(channels, depth, width, Skip::Pad, false, &vb)?), 4 * width)
            }
            Architecture::ShakeShake(width) => {
                (Box::new(ShakeShake::<K>::new(channels, width, &draws, &vb)?), 4 * width)
            }
            Architecture::Pyramid { depth, alpha, shake_drop } => {
                let draws = shake_drop.then_some(&draws);
                (Box::new(Pyramid::<K>::new(channels, depth, alpha, draws, &vb)?), Pyramid::<K>::features(alpha))
            }
            Architecture::MentorMix(width) => (Box::new(MentorMix::<K>::new(channels, width, &vb)?), 8 * width),
            Architecture::ImageNet { depth, width } => {
                (Box::new(ImageNet::<K>::new(channels, width, depth, &vb)?), ImageNet::<K>::features(width))
            }
            Architecture::Vit { size, patch, width } => {
                (Box::new(Vit::<K>::new(shape, patch, width, size.heads(), &vb)?), width)
            }
            Architecture::Mixer { size, patch, width } => {
                (Box::new(Mixer::<K>::new(shape, patch, width, size.mixer_blocks(), &vb)?), width)
            }
            Architecture::Gpt(width) => (Box::new(Gpt::<K>::new(classes, shape[2], width, device.dtype, &vb)?), width),
            Architecture::EfficientNetLite0(width) => {
                let net = EfficientNetLite0::<K>::new(channels, width, &vb)?;
                (Box::new(net), EfficientNetLite0::<K>::features(width))
            }
        };
        let head = match architecture {
            Architecture::Gpt(width) => Gpt::<K>::head(classes, width, &vb)?,
            _ => K::linear(width, classes, vb.pp("head"))?,
        };
        // On the CPU each layer would convert them back.
        let channels_last = device.channels_last && device.device.is_cuda();
        Ok(Self { net, head, vars, draws, classes, dtype: device.dtype, channels_last })
    }

    /// The network's variables.
    #[must_use]
    pub fn vars(&self) -> &VarMap {
        &self.vars
    }

    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The random number stream of its random layers.
    #[must_use]
    pub fn draws(&self) -> &RngStream {
        &self.draws
    }

    /// The number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        parameter_count(&self.vars)
    }

    /// The features (n, width), which the last layer sees, of images (n, channels, height, width), or of all n tokens of texts.
    ///
    /// # Errors
    /// If the images have another shape.
    pub fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if x.dtype().is_int() {
            return self.net.features(x, train);
        }
        let x = if self.channels_last { nn::channels_last(x)? } else { x.clone() };
        self.net.features(&nn::to_dtype(&x, self.dtype)?, train)
    }

    /// The logits (n, classes) of images (n, channels, height, width), or of all n tokens of texts, in f32.
    ///
    /// # Errors
    /// If the images have another shape, or are on another device than the network.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        nn::to_dtype(&self.head.forward(&self.features(x, train)?)?, DType::F32)
    }

    /// The mean cross-entropy of images and labels (n), or of texts and the next tokens (n, length), in training.
    ///
    /// # Errors
    /// If the images have another shape, or there are more labels or fewer.
    pub fn cross_entropy(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        K::cross_entropy(&self.forward(x, true)?, &y.flatten_all()?)
    }
}

#[cfg(test)]
mod tests;
