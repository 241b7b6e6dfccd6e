//! The keys of a recipe.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::spans::{File, WithSpan};
use crate::augment::Policy;
use crate::data::Noise;
use crate::models::{Architecture, Init};
use crate::noisy_labels::NoisyLabelMethod;
use crate::util::schedule::LrShape;

/// Defines both structures from one list of keys.
macro_rules! keys {
    ($($(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr,)*) => {
        /// Some keys of a recipe, each with its position in the file: what a file, a cell or `--set` changes.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct RecipePatch {
            $(pub(super) $key: Option<WithSpan<$type>>,)*
        }

        /// All keys of a recipe.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Recipe {
            $($(#[doc = $doc])* pub $key: $type,)*
        }

        /// The keys and what they mean.
        const KEYS: &[(&str, &[&str])] = &[$((stringify!($key), &[$($doc),*]),)*];

        impl RecipePatch {
            /// These keys, and for missing ones those of `others`. `epochs` and `steps` exclude each other: both give the length.
            #[must_use]
            pub fn or(&self, others: &Self) -> Self {
                let mut others = others.clone();
                match (&self.epochs, &self.steps) {
                    (Some(_), None) => others.steps = None,
                    (None, Some(steps)) if steps.value > 0 => others.epochs = None,
                    _ => (),
                }
                Self { $($key: self.$key.clone().or_else(|| others.$key.clone()),)* }
            }

            pub(super) fn in_file(mut self, file: &Arc<File>) -> Self {
                $(if let Some(value) = &mut self.$key { value.file = Some(Arc::clone(file)); })*
                self
            }

            /// The recipe, with defaults for missing keys.
            pub(super) fn resolve(&self) -> Recipe {
                Recipe { $($key: self.$key.as_ref().map_or_else(|| $default, |found| found.value.clone()),)* }
            }
        }
    };
}

keys! {
    /// The data set: a folder of this name under the data folder, or `embedded`; of a language model a text file.
    data: String = "embedded".to_owned(),
    /// The size in pixels that images are scaled to, after augmentation for sets of a fixed size; 0 for their own size.
    image_size: u32 = 0,
    /// Whether pictures are decoded when they are needed, for sets that do not fit into memory.
    lazy: bool = false,
    /// The tokens of a window of a text, which are bytes.
    length: usize = 256,
    /// The number of training images, from the first one on, or their share if it is at most 1.
    images: f64 = 1.0,
    /// The share of the training images, the last ones, that is held out for tests, in place of the test images.
    validation: f64 = 0.0,
    /// The network.
    model: Architecture = Architecture::Mlp(128),
    /// The initialization of its weights.
    init: Init = Init::Authors,
    /// Dropout of the outputs of a transformer's or mixer's branches.
    dropout: f64 = 0.0,
    /// Stochastic depth: the probability that an example leaves out a branch of the last block, less before.
    stochastic_depth: f64 = 0.0,
    /// A file of initial weights in the data folder; empty for none.
    start: String = String::new(),
    /// Whether the last layer is initialized nevertheless.
    new_head: bool = false,
    /// Whether batch normalizations keep and use the running statistics of `start`.
    frozen_norm: bool = false,
    /// Passes over the training images.
    epochs: f64 = 1.0,
    /// Steps, in place of `epochs`; 0 for none.
    steps: usize = 0,
    /// A factor of `epochs` or `steps`: 2 for a method with half the cost of a step.
    stretch: f64 = 1.0,
    /// Early stopping after so many epochs without a lower test error, with a test after every epoch; 0 for none.
    patience: usize = 0,
    /// Epochs after which the weights are written to `weights-epoch-N.safetensors`; of a method of several trainings, in the last
    /// one.
    keep_epochs: Vec<f64> = Vec::new(),
    /// Images of a step.
    batch: usize = 256,
    /// Gradient accumulation: the number of micro-batches of a batch, whose gradients are averaged.
    accumulate: usize = 1,
    /// The base learning rate, which is the highest.
    lr: f64 = 0.1,
    /// The optimizer.
    optimizer: OptimizerKind = OptimizerKind::Sgd,
    /// Momentum of SGD.
    momentum: f64 = 0.9,
    /// Whether the momentum is Nesterov's.
    nesterov: bool = true,
    /// β₁ and β₂ of AdamW.
    betas: [f64; 2] = [0.9, 0.999],
    /// λ of ½λ‖w‖². Of AdamW, whose decay is decoupled from the gradient, a step subtracts λ times the learning rate of the weights.
    weight_decay: f64 = 5e-4,
    /// Whether biases and the scales of normalizations decay too, if the decay is not in the loss.
    decay_all: bool = true,
    /// Whether that term is a part of the loss, and so of the ascent gradient, as in the code of Foret et al.
    decay_in_loss: bool = true,
    /// Gradient clipping: the largest norm of the gradient; 0 for none.
    clip: f64 = 0.0,
    /// The schedule of the learning rate.
    schedule: LrShape = LrShape::Cosine,
    /// When it drops, in shares of the run, for `schedule = "steps"`.
    drops: Vec<f64> = Vec::new(),
    /// The factor of the learning rate at each drop.
    drop_factor: f64 = 0.1,
    /// Epochs of linear warm-up.
    warm_up: f64 = 0.0,
    /// The decay of the exponential moving average of the weights that is tested; 0 for the weights themselves.
    ema: f64 = 0.0,
    /// Label smoothing: the share of each label that is spread over all classes.
    smoothing: f64 = 0.0,
    /// Whether images are flipped and cropped, and windows of a text begin at random.
    basic: bool = true,
    /// AutoAugment's list, if any.
    auto_augment: Auto = Auto(None),
    /// The side of Cutout's square; 0 for none.
    cutout: usize = 0,
    /// The share of the training labels that is drawn anew.
    noise: f64 = 0.0,
    /// Whether the true class may be drawn.
    noise_kind: Noise = Noise::Inclusive,
    /// The method of training on wrong labels.
    method: NoisyLabelMethod = NoisyLabelMethod::Plain,
    /// Both parameters of Mixup's Beta distribution.
    alpha: f64 = 1.0,
    /// The radius of SAM's ball; 0 for plain gradients.
    rho: f64 = 0.0,
    /// The norm of the ball, `inf` for the largest coordinate.
    p: f64 = 2.0,
    /// The η of ASAM; -1 for SAM.
    adaptive: f64 = -1.0,
    /// m-sharpness: examples of a shard, which has its own perturbation and is normalized by itself, also if `rho` is 0; 0 for
    /// the whole batch.
    m: usize = 0,
    /// The ascent direction.
    direction: AscentDirection = AscentDirection::Gradient,
    /// Ascent steps within the ball.
    inner_steps: usize = 1,
    /// Whether the gradient includes the second-order term, through the perturbation.
    second_order: bool = false,
    /// Whether the log has the cosine between the gradients with and without the second-order term, and the error of the step's
    /// images at w + ε̂: six more passes per line.
    compare_orders: bool = false,
}

/// The ascent direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AscentDirection {
    /// Along the gradient.
    Gradient,
    /// A random direction, at the same distance.
    Random,
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// SGD with momentum.
    Sgd,
    /// AdamW (Loshchilov & Hutter 2019).
    AdamW,
}

/// A list of AutoAugment, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auto(pub Option<Policy>);

impl<'de> Deserialize<'de> for Auto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.as_str() {
            "none" => Ok(Self(None)),
            "paper-25" => Ok(Self(Some(Policy::Paper25))),
            "code-95" => Ok(Self(Some(Policy::Code95))),
            "svhn-25" => Ok(Self(Some(Policy::Svhn25))),
            _ => {
                Err(serde::de::Error::custom(format!("`{name}`: expected `none`, `paper-25`, `code-95` or `svhn-25`")))
            }
        }
    }
}

impl Serialize for Auto {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self.0 {
            None => "none",
            Some(Policy::Paper25) => "paper-25",
            Some(Policy::Code95) => "code-95",
            Some(Policy::Svhn25) => "svhn-25",
        })
    }
}

impl<'de> Deserialize<'de> for Architecture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Architecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl RecipePatch {
    /// Parses keys and values in TOML; `name` is the name of the file in error messages.
    ///
    /// # Errors
    /// If there is another key, or another type of value; the error names the line.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let file = Arc::new(File { name: name.to_owned(), text: text.to_owned() });
        let changes: Self = file.parse()?;
        Ok(changes.in_file(&file))
    }
}

/// All keys of a recipe, each with its default and what it means, for a help text.
///
/// ```
/// let keys = sam_examples::recipe::keys();
/// assert!(keys.contains("weight-decay = 0.0005\n      λ of ½λ‖w‖²."));
/// ```
#[must_use]
pub fn keys() -> String {
    let recipe = RecipePatch::default().resolve();
    let defaults = toml::Value::try_from(&recipe).unwrap_or_else(|_| toml::Value::Table(toml::Table::new()));
    let mut text = "Recipe keys, with their defaults:\n".to_owned();
    for (key, docs) in KEYS {
        let key = kebab(key);
        let default = defaults.get(&key).map_or_else(String::new, ToString::to_string);
        text.extend(["  ", &key, " = ", &default, "\n"]);
        for doc in *docs {
            text.extend(["     ", *doc, "\n"]);
        }
    }
    text
}

/// The spelling of a key in TOML.
pub(super) fn kebab(key: &str) -> String {
    key.replace('_', "-")
}
