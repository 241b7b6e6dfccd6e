//! Networks by name, and narrower versions of them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

use super::size::Size;
use crate::util::numbers::count;

/// A network, by its name: `wrn-28-10`, `resnet20-w8`.
///
/// ```
/// use sam_examples::models::Architecture;
///
/// let network: Architecture = "wrn-28-10".parse()?;
/// assert_eq!(network, Architecture::Wide { depth: 28, width: 160, skip: sam_examples::models::Skip::Conv });
/// assert_eq!(network.narrowed(0.2).to_string(), "wrn-28-2");
/// assert!("wrn-27-1".parse::<Architecture>().unwrap_err().to_string().contains("6 n + 4"));
/// # Ok::<_, anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// A perceptron with one hidden layer of this width.
    Mlp(usize),
    /// The same, with a batch normalization before the ReLU.
    MlpNorm(usize),
    /// A perceptron with two hidden layers of this width.
    MlpWide(usize),
    /// Five 3x3 convolutions of `width` to 4 `width` channels.
    Cnn(usize),
    /// ResNet for CIFAR (He et al. 2016): 6 n + 2 layers of `width` to 4 `width` channels, 1x1 convolutions where the
    /// shape changes.
    ResNet {
        /// Layers.
        depth: usize,
        /// Channels of the first group.
        width: usize,
    },
    /// ResNet-18 for CIFAR: `width` to 8 `width` channels.
    ResNet18(usize),
    /// WideResNet (Zagoruyko & Komodakis 2016) of 6 n + 4 layers.
    Wide {
        /// Layers.
        depth: usize,
        /// Channels of the first group: 16 k.
        width: usize,
        /// The skip connection of a block that changes the shape.
        skip: Skip,
    },
    /// WideResNet without batch normalization, as in Foret et al., for the spectrum of the Hessian.
    WidePlain {
        /// Layers.
        depth: usize,
        /// Channels of the first group: 16 k.
        width: usize,
    },
    /// Shake-Shake 26 2x`width`d (Gastaldi 2017).
    ShakeShake(usize),
    /// PyramidNet of bottlenecks (Han et al. 2017), of 9 n + 2 layers.
    Pyramid {
        /// Layers.
        depth: usize,
        /// Channels that are added from the first block to the last.
        alpha: usize,
        /// Whether it has ShakeDrop (Yamada et al. 2018).
        shake_drop: bool,
    },
    /// The network that MentorMix (Jiang et al. 2020) calls ResNet-32, very likely that of the paper's Table 4.
    MentorMix(usize),
    /// ResNet-50, 101 or 152 for ImageNet, with the stride on the 3x3 convolution.
    ImageNet {
        /// Layers.
        depth: usize,
        /// Channels of the stem.
        width: usize,
    },
    /// Vision transformer (Dosovitskiy et al. 2021; Ti is DeiT's, Touvron et al. 2021), with a class token.
    Vit {
        /// Heads and blocks.
        size: Size,
        /// Pixels a side of a patch: 4 for images of 32 pixels, more for 224.
        patch: usize,
        /// The width of a token.
        width: usize,
    },
    /// MLP-Mixer (Tolstikhin et al. 2021).
    Mixer {
        /// Blocks.
        size: Size,
        /// Pixels a side of a patch: 4 for images of 32 pixels, more for 224.
        patch: usize,
        /// The width of a token.
        width: usize,
    },
    /// A language model of bytes, as GPT-2 (Radford et al. 2019) with six blocks of eight heads.
    Gpt(usize),
    /// EfficientNet-Lite0: B0 (Tan & Le 2019) with ReLU6 and without squeeze and excitation; `width` channels of the stem.
    EfficientNetLite0(usize),
}

/// The patch of the networks for images of 32 pixels.
const SMALL_PATCH: usize = 4;

/// The skip connection of a WideResNet block that changes the shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// A 1x1 convolution, as in the publication of the network.
    Conv,
    /// The mean over the stride, and channels of zeros: no parameters, as in the code of the paper.
    Pad,
}

/// A larger number is a typing error.
const MOST_CHANNELS: usize = 65_536;

/// Every form of name, for messages and help.
pub const NAMES: &str = "mlp, mlp-norm, mlp-wide, cnn, resnet20 (6 n + 2), resnet18, wrn-28-10, wrn-28-10-pad, wrn-40-10-plain, \
    shake-shake-26-2x96d, pyramidnet-272-200, pyramidnet-272-200-shakedrop, mentormix-resnet32, resnet50, resnet101, \
    resnet152, vit-tiny, vit-ti-16, vit-s-32, vit-b-16, mixer-tiny, mixer-s-16, mixer-b-32, efficientnet-lite0, gpt, each \
    also narrower with -wWIDTH";

impl Architecture {
    /// The default width, which a name leaves out.
    fn usual_width(self) -> usize {
        match self {
            Self::Mlp(_) | Self::MlpNorm(_) => 128,
            Self::MlpWide(_) => 1024,
            Self::Cnn(_) | Self::ResNet { .. } => 16,
            Self::ResNet18(_) | Self::MentorMix(_) | Self::ImageNet { .. } => 64,
            Self::Wide { width, .. } | Self::WidePlain { width, .. } | Self::ShakeShake(width) => width,
            Self::Pyramid { alpha, .. } => alpha,
            Self::Vit { size, .. } => size.vit_width(),
            Self::Mixer { size, .. } => size.mixer_width(),
            Self::Gpt(_) => 256,
            Self::EfficientNetLite0(_) => 32,
        }
    }

    fn width_mut(&mut self) -> &mut usize {
        match self {
            Self::Mlp(width)
            | Self::MlpNorm(width)
            | Self::MlpWide(width)
            | Self::Cnn(width)
            | Self::ResNet { width, .. }
            | Self::ResNet18(width)
            | Self::Wide { width, .. }
            | Self::WidePlain { width, .. }
            | Self::ShakeShake(width)
            | Self::Pyramid { alpha: width, .. }
            | Self::MentorMix(width)
            | Self::ImageNet { width, .. }
            | Self::Vit { width, .. }
            | Self::Mixer { width, .. }
            | Self::Gpt(width)
            | Self::EfficientNetLite0(width) => width,
        }
    }

    /// The least width: a skip connection of Shake-Shake has two halves.
    fn least_width(self) -> usize {
        if matches!(self, Self::ShakeShake(_)) { 2 } else { 1 }
    }

    /// The same network with this share of its channels, at least one, or two where it needs them.
    #[must_use]
    pub fn narrowed(mut self, share: f64) -> Self {
        let least = self.least_width();
        let width = self.width_mut();
        *width = count(*width as f64 * share).max(least);
        self
    }

    /// Whether it takes images of 224 pixels a side.
    #[must_use]
    pub fn is_for_imagenet(self) -> bool {
        match self {
            Self::ImageNet { .. } => true,
            Self::Vit { patch, .. } | Self::Mixer { patch, .. } => patch > SMALL_PATCH,
            _ => false,
        }
    }

    /// Whether it is a language model: its examples are windows of a text, and it predicts each token from those before.
    #[must_use]
    pub fn is_for_text(self) -> bool {
        matches!(self, Self::Gpt(_))
    }

    /// Whether it is made of residual blocks of layer normalizations, which have dropout and stochastic depth.
    #[must_use]
    pub fn is_transformer(self) -> bool {
        matches!(self, Self::Vit { .. } | Self::Mixer { .. } | Self::Gpt(_))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Mlp(_) => f.write_str("mlp")?,
            Self::MlpNorm(_) => f.write_str("mlp-norm")?,
            Self::MlpWide(_) => f.write_str("mlp-wide")?,
            Self::Cnn(_) => f.write_str("cnn")?,
            Self::ResNet { depth, .. } | Self::ImageNet { depth, .. } => write!(f, "resnet{depth}")?,
            Self::ResNet18(_) => f.write_str("resnet18")?,
            Self::Wide { depth, width, skip: Skip::Conv } => write!(f, "wrn-{depth}-{}", width as f64 / 16.0)?,
            Self::Wide { depth, width, skip: Skip::Pad } => write!(f, "wrn-{depth}-{}-pad", width as f64 / 16.0)?,
            Self::WidePlain { depth, width } => write!(f, "wrn-{depth}-{}-plain", width as f64 / 16.0)?,
            Self::ShakeShake(width) => write!(f, "shake-shake-26-2x{width}d")?,
            Self::Pyramid { depth, alpha, shake_drop } => {
                write!(f, "pyramidnet-{depth}-{alpha}{}", if shake_drop { "-shakedrop" } else { "" })?;
            }
            Self::MentorMix(_) => f.write_str("mentormix-resnet32")?,
            Self::Vit { patch: SMALL_PATCH, .. } => f.write_str("vit-tiny")?,
            Self::Vit { size, patch, .. } => write!(f, "vit-{}-{patch}", size.name())?,
            Self::Mixer { patch: SMALL_PATCH, .. } => f.write_str("mixer-tiny")?,
            Self::Mixer { size, patch, .. } => write!(f, "mixer-{}-{patch}", size.name())?,
            Self::Gpt(_) => f.write_str("gpt")?,
            Self::EfficientNetLite0(_) => f.write_str("efficientnet-lite0")?,
        }
        let (mut copy, usual) = (*self, self.usual_width());
        if *copy.width_mut() == usual { Ok(()) } else { write!(f, "-w{}", copy.width_mut()) }
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let (known, width) = match name.rsplit_once("-w") {
            Some((known, width)) if width.bytes().all(|byte| byte.is_ascii_digit()) => {
                let parsed = width.parse::<usize>().ok().filter(|width| (1..=MOST_CHANNELS).contains(width));
                let Some(width) = parsed else {
                    bail!("`{name}` has `{width}` channels: expected a width of 1 to {MOST_CHANNELS} after `-w`")
                };
                (known, Some(width))
            }
            _ => (name, None),
        };
        let Some(mut architecture) = usual(known)? else { bail!("unknown network `{name}`: expected one of {NAMES}") };
        if let Some(width) = width {
            *architecture.width_mut() = width;
        }
        let (width, least) = (*architecture.width_mut(), architecture.least_width());
        if width < least {
            bail!("`{name}` has a width of {width}: expected at least {least}")
        }
        Ok(architecture)
    }
}

/// A network of the width that its name has without `-w`.
fn usual(name: &str) -> Result<Option<Architecture>, Error> {
    Ok(Some(match name {
        "mlp" => Architecture::Mlp(128),
        "mlp-norm" => Architecture::MlpNorm(128),
        "mlp-wide" => Architecture::MlpWide(1024),
        "cnn" => Architecture::Cnn(16),
        "resnet18" => Architecture::ResNet18(64),
        "mentormix-resnet32" => Architecture::MentorMix(64),
        "vit-tiny" => vit(Size::Ti, SMALL_PATCH),
        "mixer-tiny" => mixer(Size::Ti, SMALL_PATCH),
        "gpt" => Architecture::Gpt(256),
        "efficientnet-lite0" => Architecture::EfficientNetLite0(32),
        _ => {
            let number = |text: &str| text.parse::<usize>().ok().filter(|number| (1..=4096).contains(number));
            let wide = || {
                let (depth, k) = name.strip_prefix("wrn-")?.split_once('-')?;
                let (k, kind) = k.split_once('-').map_or((k, None), |(k, kind)| (k, Some(kind)));
                let width = k.parse::<f64>().ok().map(|k| 16.0 * k).filter(|width| (1.0..=65536.0).contains(width))?;
                Some((number(depth)?, count(width), kind))
            };
            let pyramid = || {
                let rest = name.strip_prefix("pyramidnet-")?;
                let (rest, shake_drop) = rest.strip_suffix("-shakedrop").map_or((rest, false), |rest| (rest, true));
                let (depth, alpha) = rest.split_once('-')?;
                Some(Architecture::Pyramid { depth: number(depth)?, alpha: number(alpha)?, shake_drop })
            };
            let shake = || number(name.strip_prefix("shake-shake-26-2x")?.strip_suffix('d')?);
            if let Some(depth) = name.strip_prefix("resnet").and_then(number) {
                match depth {
                    50 | 101 | 152 => Architecture::ImageNet { depth, width: 64 },
                    _ if depth % 6 == 2 && depth > 2 => Architecture::ResNet { depth, width: 16 },
                    _ => bail!("`{name}` has {depth} layers: expected 6 n + 2, or 18, 50, 101 or 152"),
                }
            } else if let Some((depth, width, kind)) = wide() {
                if depth % 6 != 4 || depth == 4 {
                    bail!("`{name}` has {depth} layers: expected 6 n + 4")
                }
                match kind {
                    None => Architecture::Wide { depth, width, skip: Skip::Conv },
                    Some("pad") => Architecture::Wide { depth, width, skip: Skip::Pad },
                    Some("plain") => Architecture::WidePlain { depth, width },
                    Some(_) => return Ok(None),
                }
            } else if let Some(width) = shake() {
                Architecture::ShakeShake(width)
            } else if let Some(pyramid) = pyramid() {
                match pyramid {
                    Architecture::Pyramid { depth, .. } if depth % 9 != 2 || depth == 2 => {
                        bail!("`{name}` has {depth} layers: expected 9 n + 2")
                    }
                    pyramid => pyramid,
                }
            } else if let Some(of_patches) = of_patches(name) {
                of_patches
            } else {
                return Ok(None);
            }
        }
    }))
}

fn vit(size: Size, patch: usize) -> Architecture {
    Architecture::Vit { size, patch, width: size.vit_width() }
}

fn mixer(size: Size, patch: usize) -> Architecture {
    Architecture::Mixer { size, patch, width: size.mixer_width() }
}

/// A vision transformer or a mixer for images of 224 pixels: `vit-b-16`.
fn of_patches(name: &str) -> Option<Architecture> {
    let (family, rest) = name.split_once('-')?;
    let (size, patch) = rest.split_once('-')?;
    let size = [Size::Ti, Size::S, Size::B].into_iter().find(|known| known.name() == size)?;
    let patch = [16, 32].into_iter().find(|known: &usize| known.to_string() == patch)?;
    match family {
        "vit" => Some(vit(size, patch)),
        "mixer" if size != Size::Ti => Some(mixer(size, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in [
            "mlp",
            "mlp-w32",
            "mlp-wide",
            "cnn",
            "resnet20",
            "resnet32-w8",
            "resnet56",
            "resnet18",
            "wrn-16-4",
            "wrn-28-2.5",
            "wrn-28-10-pad",
            "wrn-40-10-plain",
            "shake-shake-26-2x96d",
            "pyramidnet-272-200",
            "mentormix-resnet32",
            "pyramidnet-272-200-shakedrop",
            "resnet50",
            "resnet152-w16",
            "vit-tiny",
            "vit-tiny-w48",
            "vit-ti-16",
            "vit-s-32",
            "vit-b-16-w96",
            "mixer-tiny",
            "mixer-s-16",
            "mixer-b-32",
            "gpt",
            "gpt-w64",
            "efficientnet-lite0",
            "efficientnet-lite0-w8",
        ] {
            assert_eq!(name.parse::<Architecture>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (name, why) in [
            ("", "unknown network"),
            ("resnet21", "6 n + 2"),
            ("resnet", "unknown network"),
            ("wrn-27-10", "6 n + 4"),
            ("wrn-28-x", "unknown network"),
            ("wrn-28-10-new", "unknown network"),
            ("pyramidnet-271-200", "9 n + 2"),
            ("vit-b", "unknown network"),
            ("vit-b-4", "unknown network"),
            ("vit-l-16", "unknown network"),
            ("mixer-ti-16", "unknown network"),
            ("shake-shake-26-2x1d", "expected at least 2"),
            ("shake-shake-26-2x96d-w1", "expected at least 2"),
            ("mlp-w0", "a width of 1 to 65536"),
            ("mlp-w", "a width of 1 to 65536"),
            ("mlp-w18446744073709551615", "a width of 1 to 65536"),
            ("mlp-w99999999999999999999", "a width of 1 to 65536"),
            ("resnet99999999999999999999", "unknown network"),
        ] {
            let error = name.parse::<Architecture>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn narrower_networks() {
        let narrowed = |name: &str, share| name.parse::<Architecture>().unwrap().narrowed(share).to_string();
        assert_eq!(narrowed("wrn-28-10-pad", 0.25), "wrn-28-2.5-pad");
        assert_eq!(narrowed("resnet20", 0.5), "resnet20-w8");
        assert_eq!(narrowed("pyramidnet-272-200", 0.1), "pyramidnet-272-20");
        assert_eq!(narrowed("resnet20", 1e-9), "resnet20-w1");
        assert_eq!(narrowed("shake-shake-26-2x96d", 1e-9), "shake-shake-26-2x2d");
    }
}
