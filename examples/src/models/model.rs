//! A network with its variables.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};
use sam_runtime::nn::{self, RngStream};

use super::architecture::{Architecture, Skip};
use super::init::{self, Init};
use super::layers::{LayerSet, SamRuntime};
use super::net::Net;
use super::params::parameter_count;
use super::pyramid::Pyramid;
use super::resnet::{ImageNet, ResNet};
use super::shake_shake::ShakeShake;
use super::small::{Cnn, Mlp, MlpNorm};
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
    /// A network for images of `shape` (channels, height, width), with weights from a seed, drawn as PyTorch does.
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
        let plain_blocks = match architecture {
            Architecture::WidePlain { depth, .. } => Some((depth - 4) / 2),
            _ => None,
        };
        init::initialize(&model.vars, init, plain_blocks, seed)?;
        Ok(model)
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
        };
        let head = K::linear(width, classes, vb.pp("head"))?;
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

    /// The features (n, width), which the last layer sees, of images (n, channels, height, width).
    ///
    /// # Errors
    /// If the images have another shape.
    pub fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = if self.channels_last { nn::channels_last(x)? } else { x.clone() };
        self.net.features(&nn::to_dtype(&x, self.dtype)?, train)
    }

    /// The logits (n, classes) of images (n, channels, height, width), in f32.
    ///
    /// # Errors
    /// If the images have another shape, or are on another device than the network.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        nn::to_dtype(&self.head.forward(&self.features(x, train)?)?, DType::F32)
    }

    /// The mean cross-entropy of images and labels (n), in training.
    ///
    /// # Errors
    /// If the images have another shape, or there are more labels or fewer.
    pub fn cross_entropy(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        K::cross_entropy(&self.forward(x, true)?, y)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::params::is_statistic;
    use super::*;
    use crate::models::layers::CandleNn;

    fn named(name: &str) -> Architecture {
        name.parse().unwrap()
    }

    /// The published counts where there are any, otherwise those of the layers' tables.
    #[test]
    fn parameter_counts() {
        let cnn = 9 * (3 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 208 + 650;
        for (name, shape, classes, parameters) in [
            ("mlp", [1, 28, 28], 10, 784 * 128 + 128 + 1290),
            ("mlp-wide", [1, 28, 28], 10, 1_863_690),
            ("cnn", [3, 32, 32], 10, cnn),
            ("resnet20", [3, 32, 32], 10, 272_474),
            ("resnet32", [3, 32, 32], 10, 466_906),
            ("resnet56", [3, 32, 32], 10, 855_770),
            ("resnet18", [3, 32, 32], 10, 11_173_962),
            ("resnet18-w16", [3, 32, 32], 10, 701_466),
            ("wrn-16-4", [3, 32, 32], 10, 2_748_890),
            ("wrn-16-4-pad", [3, 32, 32], 10, 2_706_906),
            ("wrn-16-8", [3, 32, 32], 10, 10_961_370),
            ("wrn-16-8-pad", [3, 32, 32], 10, 10_795_482),
            ("wrn-40-2", [3, 32, 32], 10, 2_243_546),
            ("wrn-40-2-pad", [3, 32, 32], 10, 2_232_794),
            ("wrn-28-10", [3, 32, 32], 10, 36_479_194),
            ("wrn-28-10-pad", [3, 32, 32], 10, 36_220_634),
            ("wrn-28-10-pad", [3, 32, 32], 100, 36_278_324),
            ("shake-shake-26-2x32d", [3, 32, 32], 10, 2_923_162),
            ("shake-shake-26-2x96d", [3, 32, 32], 10, 26_192_922),
            ("pyramidnet-272-200", [3, 32, 32], 10, 26_210_842),
            ("pyramidnet-272-200-shakedrop", [3, 32, 32], 100, 26_288_692),
            ("mentormix-resnet32", [3, 32, 32], 10, 29_442_378),
            ("resnet50", [3, 224, 224], 1000, 25_557_032),
            ("resnet101", [3, 224, 224], 1000, 44_549_160),
            ("resnet152", [3, 224, 224], 1000, 60_192_808),
        ] {
            let model = Model::<SamRuntime>::unset(&DeviceConfig::CPU, named(name), shape, classes, 1).unwrap();
            assert_eq!(model.parameters(), parameters, "{name}");
        }
        // Without its normalizations, whose scales and shifts are two numbers a channel.
        let norms: usize = 16 + 160 * 11 + 160 + 320 * 11 + 320 + 640 * 11 + 640;
        let plain =
            Model::<SamRuntime>::unset(&DeviceConfig::CPU, named("wrn-40-10-plain"), [3, 32, 32], 10, 1).unwrap();
        assert_eq!(plain.parameters(), 55_583_194 - 2 * norms);
    }

    /// Narrow ones of each kind: logits in training and in evaluation, and a gradient for every variable that is trained.
    #[test]
    fn every_network_runs_and_has_gradients() {
        for (name, side) in [
            ("mlp-w4", 8),
            ("mlp-norm-w4", 8),
            ("mlp-wide-w4", 8),
            ("cnn-w2", 8),
            ("resnet20-w2", 8),
            ("resnet18-w2", 8),
            ("wrn-10-0.25", 8),
            ("wrn-16-1-pad", 8),
            ("wrn-16-1-plain", 8),
            ("shake-shake-26-2x4d", 8),
            ("pyramidnet-11-6", 8),
            ("pyramidnet-11-6-shakedrop", 8),
            ("mentormix-resnet32-w2", 8),
            ("resnet50-w4", 32),
        ] {
            let init = if side == 32 { Init::ImageNet } else { Init::Authors };
            let model =
                Model::<SamRuntime>::with_init(&DeviceConfig::CPU, named(name), [3, side, side], 10, init, 1).unwrap();
            let pixels: Vec<f32> = (0..6 * 3 * side * side).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
            let x = Tensor::from_vec(pixels, (6, 3, side, side), &Device::Cpu).unwrap();
            assert_eq!(model.forward(&x, false).unwrap().dims(), [6, 10], "{name}");
            let y = Tensor::new(&[1u32, 3, 5, 7, 9, 0], &Device::Cpu).unwrap();
            let loss = model.cross_entropy(&x, &y).unwrap();
            assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{name}");
            let gradient = loss.backward().unwrap();
            for (variable, var) in model.vars().data().lock().unwrap().iter() {
                assert_eq!(gradient.get(var).is_some(), !is_statistic(variable), "{name}: {variable}");
            }
        }
    }

    /// A network without normalization begins as a linear function of what its stem sees: no block adds anything.
    #[test]
    fn fixup_blocks_begin_as_the_identity() {
        let model = Model::<SamRuntime>::with_init(
            &DeviceConfig::CPU,
            named("wrn-16-1-plain"),
            [3, 8, 8],
            10,
            Init::Authors,
            1,
        )
        .unwrap();
        let vars = model.vars().data().lock().unwrap();
        let zero = vars.iter().filter(|(name, _)| name.ends_with("second.conv.weight"));
        assert_eq!(zero.clone().count(), 6);
        for (_, var) in zero {
            assert_eq!(var.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_weights() {
        let logits = |seed| {
            let model = Model::<SamRuntime>::new(named("cnn"), [1, 8, 8], 4, seed).unwrap();
            let x = Tensor::ones((1, 1, 8, 8), DType::F32, &Device::Cpu).unwrap();
            model.forward(&x, false).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(logits(3), logits(3));
        assert_ne!(logits(3), logits(4));
    }

    /// Both layer sets compute the same function of the same weights, and have the same gradients.
    #[test]
    fn the_kits_agree() {
        for architecture in [named("cnn"), named("resnet20")] {
            let (ours, stock) = (
                Model::<SamRuntime>::new(architecture, [3, 16, 16], 10, 1).unwrap(),
                Model::<CandleNn>::new(architecture, [3, 16, 16], 10, 1).unwrap(),
            );
            let pixels: Vec<f32> = (0..4 * 768).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
            let x = Tensor::from_vec(pixels, (4, 3, 16, 16), &Device::Cpu).unwrap();
            let y = Tensor::new(&[1u32, 3, 5, 7], &Device::Cpu).unwrap();
            let losses = [ours.cross_entropy(&x, &y).unwrap(), stock.cross_entropy(&x, &y).unwrap()];
            let [a, b] = losses.each_ref().map(|loss| loss.to_scalar::<f32>().unwrap());
            assert!((a - b).abs() < 1e-4, "{a} and {b}");
            let [a, b] = losses.map(|loss| loss.backward().unwrap());
            let (ours, stock) = (ours.vars().data().lock().unwrap(), stock.vars().data().lock().unwrap());
            for (name, var) in ours.iter().filter(|(name, _)| !name.contains("running")) {
                let (a, b) = (a.get(var).unwrap(), b.get(&stock[name]).unwrap());
                let off = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                let size = b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(off <= 1e-4 * size + 1e-9, "{architecture:?} {name}: {off} of {size}");
            }
        }
    }
}
