//! Networks for small images: perceptrons, a small convolutional network, ResNets and WideResNets for CIFAR.

use std::marker::PhantomData;

use candle_core::{DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};
use clap::ValueEnum;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::compute::Place;
use crate::kit::{Kit, Ours};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    /// A perceptron with one hidden layer of 128 units.
    Mlp,
    /// The same, with a batch normalisation before the ReLU.
    MlpNorm,
    /// A perceptron with two hidden layers of 1024 units.
    MlpWide,
    /// Five 3x3 convolutions of 16 to 64 channels.
    Cnn,
    /// ResNet-20 for CIFAR (He et al. 2016) with 1x1 convolutions where the shape changes.
    #[value(name = "resnet20")]
    ResNet20,
    /// ResNet-18 for CIFAR: 64 to 512 channels.
    #[value(name = "resnet18")]
    ResNet18,
    /// WideResNet-16-4 (Zagoruyko & Komodakis 2016).
    #[value(name = "wrn-16-4")]
    Wrn16x4,
    /// WideResNet-28-10, the paper's network for CIFAR.
    #[value(name = "wrn-28-10")]
    Wrn28x10,
}

impl Architecture {
    /// What it is called in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mlp => "MLP",
            Self::MlpNorm => "MLP with batch normalisation",
            Self::MlpWide => "MLP 1024-1024",
            Self::Cnn => "CNN",
            Self::ResNet20 => "ResNet-20",
            Self::ResNet18 => "ResNet-18",
            Self::Wrn16x4 => "WRN-16-4",
            Self::Wrn28x10 => "WRN-28-10",
        }
    }
}

/// A network of one kit's layers, and its variables.
pub struct Model<K: Kit = Ours> {
    net: Box<dyn Net>,
    vars: VarMap,
    place: Place,
    kit: PhantomData<K>,
}

/// A network without its variables' names.
trait Net {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor>;
}

impl<K: Kit + 'static> Model<K> {
    /// A network for images of `shape` (channels, height, width), with weights from a seed, on the CPU.
    ///
    /// # Errors
    /// If candle cannot make a variable.
    pub fn new(architecture: Architecture, shape: [usize; 3], classes: usize, seed: u64) -> Result<Self> {
        Self::at(&Place::CPU, architecture, shape, classes, seed)
    }

    /// The same anywhere. The weights are in f32, whatever it computes in.
    ///
    /// # Errors
    /// If candle cannot make a variable.
    pub fn at(place: &Place, architecture: Architecture, shape: [usize; 3], classes: usize, seed: u64) -> Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &place.device);
        let pixels = shape.iter().product();
        let channels = shape[0];
        let net: Box<dyn Net> = match architecture {
            Architecture::Mlp => Box::new(Mlp::<K>::new(&[pixels, 128, classes], &vb)?),
            Architecture::MlpNorm => Box::new(MlpNorm::<K>::new(pixels, 128, classes, &vb)?),
            Architecture::MlpWide => Box::new(Mlp::<K>::new(&[pixels, 1024, 1024, classes], &vb)?),
            Architecture::Cnn => Box::new(Cnn::<K>::new(channels, classes, &vb)?),
            Architecture::ResNet20 => Box::new(ResNet::<K>::new(channels, &[16, 32, 64], 3, classes, &vb)?),
            Architecture::ResNet18 => Box::new(ResNet::<K>::new(channels, &[64, 128, 256, 512], 2, classes, &vb)?),
            Architecture::Wrn16x4 => Box::new(WideResNet::<K>::new(channels, 16, 4, classes, &vb)?),
            Architecture::Wrn28x10 => Box::new(WideResNet::<K>::new(channels, 28, 10, classes, &vb)?),
        };
        initialise(&vars, seed)?;
        Ok(Self { net, vars, place: place.clone(), kit: PhantomData })
    }

    /// The network's variables.
    #[must_use]
    pub fn vars(&self) -> &VarMap {
        &self.vars
    }

    /// How many numbers are trained.
    #[must_use]
    pub fn parameters(&self) -> usize {
        let vars = self.vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        vars.iter().filter(|(name, _)| !name.contains("running")).map(|(_, var)| var.elem_count()).sum()
    }

    /// The logits (n, classes) of images (n, channels, height, width), in f32.
    ///
    /// # Errors
    /// If the images have another shape, or are elsewhere than the network.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.net.forward(&x.to_dtype(self.place.dtype)?, train)?.to_dtype(DType::F32)
    }

    /// The mean cross-entropy of images and labels (n), in training.
    ///
    /// # Errors
    /// If the images have another shape, or there are more labels or fewer.
    pub fn cross_entropy(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        K::cross_entropy(&self.forward(x, true)?, y)
    }
}

/// Linear layers with a ReLU between.
struct Mlp<K: Kit>(Vec<K::Linear>);

impl<K: Kit> Mlp<K> {
    fn new(widths: &[usize], vb: &VarBuilder<'_>) -> Result<Self> {
        let layers = widths.windows(2).enumerate();
        layers.map(|(i, pair)| K::linear(pair[0], pair[1], vb.pp(i))).collect::<Result<_>>().map(Self)
    }
}

impl<K: Kit> Net for Mlp<K> {
    fn forward(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        let mut x = x.flatten_from(1)?;
        for (i, layer) in self.0.iter().enumerate() {
            x = if i == 0 { layer.forward(&x)? } else { layer.forward(&K::relu(&x)?)? };
        }
        Ok(x)
    }
}

/// A perceptron with a batch normalisation.
struct MlpNorm<K: Kit> {
    hidden: K::Linear,
    norm: K::Norm,
    head: K::Linear,
}

impl<K: Kit> MlpNorm<K> {
    fn new(from: usize, width: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            hidden: K::linear(from, width, vb.pp("hidden"))?,
            norm: K::norm(width, vb.pp("norm"))?,
            head: K::linear(width, classes, vb.pp("head"))?,
        })
    }
}

impl<K: Kit> Net for MlpNorm<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.head.forward(&K::norm_relu(&self.norm, &self.hidden.forward(&x.flatten_from(1)?)?, train)?)
    }
}

/// Convolutions, each with a batch normalisation and a ReLU, and a linear layer on the mean over the image.
struct Cnn<K: Kit> {
    blocks: Vec<(K::Conv, K::Norm)>,
    head: K::Linear,
}

impl<K: Kit> Cnn<K> {
    fn new(mut channels: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        for (i, (width, stride)) in [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1)].into_iter().enumerate() {
            let vb = vb.pp(i);
            blocks.push((K::conv(channels, width, 3, stride, vb.pp("conv"))?, K::norm(width, vb.pp("norm"))?));
            channels = width;
        }
        Ok(Self { blocks, head: K::linear(channels, classes, vb.pp("head"))? })
    }
}

impl<K: Kit> Net for Cnn<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = x.clone();
        for (conv, norm) in &self.blocks {
            x = K::norm_relu(norm, &conv.forward(&x)?, train)?;
        }
        self.head.forward(&K::mean(&x)?)
    }
}

/// Groups of residual blocks of growing width, each group after the first halving the image.
fn groups<B>(
    mut from: usize,
    widths: &[usize],
    depth: usize,
    vb: &VarBuilder<'_>,
    block: impl Fn(usize, usize, usize, VarBuilder<'_>) -> Result<B>,
) -> Result<Vec<B>> {
    let mut blocks = Vec::new();
    for (group, &to) in widths.iter().enumerate() {
        for i in 0..depth {
            let stride = if group > 0 && i == 0 { 2 } else { 1 };
            blocks.push(block(from, to, stride, vb.pp(format!("group{group}.block{i}")))?);
            from = to;
        }
    }
    Ok(blocks)
}

/// A ResNet for small images: blocks that normalise after their convolutions.
struct ResNet<K: Kit> {
    stem: (K::Conv, K::Norm),
    blocks: Vec<Basic<K>>,
    head: K::Linear,
}

struct Basic<K: Kit> {
    first: (K::Conv, K::Norm),
    second: (K::Conv, K::Norm),
    skip: Option<(K::Conv, K::Norm)>,
}

impl<K: Kit> ResNet<K> {
    fn new(channels: usize, widths: &[usize], depth: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let last = widths[widths.len() - 1];
        Ok(Self {
            stem: conv_norm::<K>(channels, widths[0], 3, 1, &vb.pp("stem"))?,
            blocks: groups(widths[0], widths, depth, vb, Basic::new)?,
            head: K::linear(last, classes, vb.pp("head"))?,
        })
    }
}

fn conv_norm<K: Kit>(
    from: usize,
    to: usize,
    size: usize,
    stride: usize,
    vb: &VarBuilder<'_>,
) -> Result<(K::Conv, K::Norm)> {
    Ok((K::conv(from, to, size, stride, vb.pp("conv"))?, K::norm(to, vb.pp("norm"))?))
}

impl<K: Kit> Basic<K> {
    #[expect(clippy::needless_pass_by_value, reason = "the shape of every block's constructor")]
    fn new(from: usize, to: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let skip = (stride != 1 || from != to).then(|| conv_norm::<K>(from, to, 1, stride, &vb.pp("skip")));
        Ok(Self {
            first: conv_norm::<K>(from, to, 3, stride, &vb.pp("first"))?,
            second: conv_norm::<K>(to, to, 3, 1, &vb.pp("second"))?,
            skip: skip.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = K::norm_relu(&self.first.1, &self.first.0.forward(x)?, train)?;
        let y = self.second.0.forward(&y)?;
        let skip = match &self.skip {
            Some((conv, norm)) => &candle_nn::ModuleT::forward_t(norm, &conv.forward(x)?, train)?,
            None => x,
        };
        K::norm_add_relu(&self.second.1, &y, skip, train)
    }
}

impl<K: Kit> Net for ResNet<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = K::norm_relu(&self.stem.1, &self.stem.0.forward(x)?, train)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        self.head.forward(&K::mean(&x)?)
    }
}

/// A WideResNet of depth 6n + 4 and width k: blocks that normalise before their convolutions.
struct WideResNet<K: Kit> {
    stem: K::Conv,
    blocks: Vec<PreActivation<K>>,
    norm: K::Norm,
    head: K::Linear,
}

struct PreActivation<K: Kit> {
    first: (K::Norm, K::Conv),
    second: (K::Norm, K::Conv),
    skip: Option<K::Conv>,
}

impl<K: Kit> WideResNet<K> {
    fn new(channels: usize, depth: usize, k: usize, classes: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let widths = [16 * k, 32 * k, 64 * k];
        Ok(Self {
            stem: K::conv(channels, 16, 3, 1, vb.pp("stem"))?,
            blocks: groups(16, &widths, (depth - 4) / 6, vb, PreActivation::new)?,
            norm: K::norm(widths[2], vb.pp("norm"))?,
            head: K::linear(widths[2], classes, vb.pp("head"))?,
        })
    }
}

impl<K: Kit> PreActivation<K> {
    #[expect(clippy::needless_pass_by_value, reason = "the shape of every block's constructor")]
    fn new(from: usize, to: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let half = |from, stride, name: &str| -> Result<_> {
            let vb = vb.pp(name);
            Ok((K::norm(from, vb.pp("norm"))?, K::conv(from, to, 3, stride, vb.pp("conv"))?))
        };
        let skip = (stride != 1 || from != to).then(|| K::conv(from, to, 1, stride, vb.pp("skip.conv")));
        Ok(Self { first: half(from, stride, "first")?, second: half(to, 1, "second")?, skip: skip.transpose()? })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let before = K::norm_relu(&self.first.0, x, train)?;
        let y = K::norm_relu(&self.second.0, &self.first.1.forward(&before)?, train)?;
        let y = self.second.1.forward(&y)?;
        match &self.skip {
            Some(conv) => K::add(&y, &conv.forward(&before)?),
            None => K::add(&y, x),
        }
    }
}

impl<K: Kit> Net for WideResNet<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(x)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        self.head.forward(&K::mean(&K::norm_relu(&self.norm, &x, train)?)?)
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
            var.set(&Tensor::from_vec(weights, var.shape(), var.device())?)?;
        } else if name.ends_with("bias") {
            var.set(&var.zeros_like()?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kit::Stock;

    /// PyTorch's counts for the same networks.
    #[test]
    fn shapes_and_parameter_counts() {
        for (architecture, shape, parameters) in [
            (Architecture::Mlp, [1, 28, 28], 784 * 128 + 128 + 1290),
            (Architecture::MlpWide, [1, 28, 28], 1_863_690),
            (Architecture::Cnn, [3, 32, 32], 9 * (3 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 208 + 650),
            (Architecture::ResNet20, [3, 32, 32], 272_474),
            (Architecture::ResNet18, [3, 32, 32], 11_173_962),
            (Architecture::Wrn16x4, [3, 32, 32], 2_748_890),
            (Architecture::Wrn28x10, [3, 32, 32], 36_479_194),
        ] {
            let model = Model::<Ours>::new(architecture, shape, 10, 1).unwrap();
            assert_eq!(model.parameters(), parameters, "{architecture:?}");
            if parameters < 1_000_000 {
                let x = Tensor::zeros((2, shape[0], shape[1], shape[2]), DType::F32, &Device::Cpu).unwrap();
                assert_eq!(model.forward(&x, true).unwrap().dims(), [2, 10]);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_weights() {
        let logits = |seed| {
            let model = Model::<Ours>::new(Architecture::Cnn, [1, 8, 8], 4, seed).unwrap();
            let x = Tensor::ones((1, 1, 8, 8), DType::F32, &Device::Cpu).unwrap();
            model.forward(&x, false).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(logits(3), logits(3));
        assert_ne!(logits(3), logits(4));
    }

    /// Both kits compute the same function of the same weights, and have the same gradients.
    #[test]
    fn the_kits_agree() {
        for architecture in [Architecture::Cnn, Architecture::ResNet20] {
            let (ours, stock) = (
                Model::<Ours>::new(architecture, [3, 16, 16], 10, 1).unwrap(),
                Model::<Stock>::new(architecture, [3, 16, 16], 10, 1).unwrap(),
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
