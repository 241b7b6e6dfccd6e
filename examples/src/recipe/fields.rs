//! The keys of a recipe, once: what a file may change, and what comes out.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Error, Result, ensure};
use candle_core::Var;
use sam_runtime::Sam;
use sam_runtime::variants::{Combination, Direction};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Scale;
use super::spans::{Blame, File};
use crate::augment::{Augment, Policy};
use crate::cli::options::MOST;
use crate::data::{MAX_IMAGE_SIZE, Noise};
use crate::models::{Architecture, Init};
use crate::noisy_labels::Method;
use crate::trainer::Shape;

/// Writes the two structures from one list of keys.
macro_rules! keys {
    ($($(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr,)*) => {
        /// Some keys of a recipe, each with the place where it was said.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Changes {
            $($key: Option<Blame<$type>>,)*
        }

        /// All keys of a recipe.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Recipe {
            $($(#[doc = $doc])* pub $key: $type,)*
        }

        /// The keys and what they mean.
        const KEYS: &[(&str, &[&str])] = &[$((stringify!($key), &[$($doc),*]),)*];

        impl Changes {
            /// These, and where they say nothing those. Epochs and steps say the same thing: how long.
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

            pub(super) fn said_in(mut self, file: &Arc<File>) -> Self {
                $(if let Some(said) = &mut self.$key { said.file = Some(Arc::clone(file)); })*
                self
            }

            fn resolve(&self) -> Recipe {
                Recipe { $($key: self.$key.as_ref().map_or_else(|| $default, |said| said.value.clone()),)* }
            }
        }
    };
}

keys! {
    /// The data set: a folder of this name under the data folder, or `embedded`.
    data: String = "embedded".to_owned(),
    /// Pixels of a side that images are brought to, those of sets of one size after their augmentation; 0 for none.
    image_size: u32 = 0,
    /// Whether pictures are decoded when they are needed, for sets that do not fit into memory.
    lazy: bool = false,
    /// The first so many training images, or where it is at most 1 that share of them.
    images: f64 = 1.0,
    /// The share of the training images, the last ones, that is held out and tested on in place of the test images.
    validation: f64 = 0.0,
    /// The network.
    model: Architecture = Architecture::Mlp(128),
    /// How its weights are drawn.
    init: Init = Init::Authors,
    /// A file of weights to begin with, in the data folder; empty for none.
    start: String = String::new(),
    /// Whether the last layer is drawn anew all the same.
    new_head: bool = false,
    /// Whether batch normalisations keep the statistics of the start, and normalise by them.
    frozen_norm: bool = false,
    /// Passes over the training images.
    epochs: f64 = 1.0,
    /// Steps, in place of `epochs`; 0 for none.
    steps: usize = 0,
    /// What `epochs` or `steps` is multiplied by: 2 for a method at half the cost of a step.
    stretch: f64 = 1.0,
    /// The most epochs in which the test error does not fall: then the training ends early; 0 for no limit. Every epoch is
    /// tested then.
    patience: usize = 0,
    /// Epochs after which the weights are kept, in `weights-epoch-N.safetensors`; a method of several trainings keeps those of its
    /// last.
    keep_epochs: Vec<f64> = Vec::new(),
    /// Images of a step.
    batch: usize = 256,
    /// Parts that a batch is cut into, for memory's sake; their gradients are averaged.
    accumulate: usize = 1,
    /// The learning rate at its highest.
    lr: f64 = 0.1,
    /// Momentum.
    momentum: f64 = 0.9,
    /// Whether it is Nesterov's.
    nesterov: bool = true,
    /// λ of ½λ‖w‖².
    weight_decay: f64 = 5e-4,
    /// Whether that term is a part of the loss, and so of the ascent's gradient, as in the authors' code.
    decay_in_loss: bool = true,
    /// The most that the norm of the gradient may be; 0 for no limit.
    clip: f64 = 0.0,
    /// How the learning rate changes.
    schedule: Shape = Shape::Cosine,
    /// When it drops, in shares of the run, for `schedule = "steps"`.
    drops: Vec<f64> = Vec::new(),
    /// What it is multiplied by at each drop.
    drop_factor: f64 = 0.1,
    /// Epochs in which it rises from 0.
    warm_up: f64 = 0.0,
    /// The decay of the mean of the weights that is tested; 0 for the weights themselves.
    ema: f64 = 0.0,
    /// The share of each label that is spread over all classes.
    smoothing: f64 = 0.0,
    /// Whether images are flipped and cropped.
    basic: bool = true,
    /// AutoAugment's list, if any.
    auto_augment: Auto = Auto(None),
    /// The side of Cutout's square; 0 for none.
    cutout: usize = 0,
    /// The share of the training labels that is drawn anew.
    noise: f64 = 0.0,
    /// Whether the true class may be drawn.
    noise_kind: Noise = Noise::Inclusive,
    /// What is trained on wrong labels.
    method: Method = Method::Plain,
    /// Both parameters of Mixup's Beta distribution.
    alpha: f64 = 1.0,
    /// The radius of SAM's ball; 0 for plain gradients.
    rho: f64 = 0.0,
    /// The norm of the ball, `inf` for the largest coordinate.
    p: f64 = 2.0,
    /// ASAM's η; -1 for a ball that is not scaled.
    adaptive: f64 = -1.0,
    /// Examples of a shard, each with its own perturbation, and normalised by itself, also where `rho` is 0; 0 for the
    /// whole batch.
    m: usize = 0,
    /// Which way w is perturbed.
    direction: Heading = Heading::Gradient,
    /// Steps of ascent within the ball.
    inner_steps: usize = 1,
    /// Whether the term of the perturbation's own gradient is kept.
    second_order: bool = false,
    /// Whether the log has the cosine between the gradient with that term and without it, and the error at w + ε̂ of the step's
    /// images: six more passes for each line.
    compare_orders: bool = false,
}

/// Which way w is perturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heading {
    /// Along the gradient.
    Gradient,
    /// Any way, as far.
    Random,
}

/// AutoAugment's list, or `none`.
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

impl Changes {
    /// Reads keys and values, one a line, of something that is called `name`.
    ///
    /// # Errors
    /// If there is another key, or another type of value; the error names the line.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let file = Arc::new(File { name: name.to_owned(), text: text.to_owned() });
        let changes: Self = file.parse()?;
        Ok(changes.said_in(&file))
    }

    /// The recipe that comes out, shrunk.
    ///
    /// # Errors
    /// If values are out of range or do not go together; the error names the file and line of one of them.
    pub fn recipe(&self, scale: &Scale) -> Result<Recipe> {
        let recipe = self.resolve();
        self.check(&recipe)?;
        Ok(scale.of(recipe))
    }

    /// What no run could be made of.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let at_least_0 = |x: f64| x >= 0.0 && x.is_finite();
        macro_rules! expect {
            ($($key:ident $holds:expr, $expected:literal;)*) => {
                $(let holds: bool = $holds;
                if !holds {
                    let what = format!("`{}` is {:?}: expected {}", kebab(stringify!($key)), recipe.$key, $expected);
                    return Err(self.$key.as_ref().map_or_else(|| Error::msg(what.clone()), |said| said.wrong(&what)));
                })*
            };
        }
        expect! {
            epochs positive(recipe.epochs) && recipe.epochs <= MOST as f64, "more than 0, at most 1000000";
            steps recipe.steps <= (1 << 40), "at most 1099511627776";
            steps recipe.steps == 0 || self.epochs.is_none(), "0, or no `epochs` beside it";
            stretch positive(recipe.stretch) && recipe.stretch <= MOST as f64, "more than 0, at most 1000000";
            patience recipe.patience == 0 || recipe.method.stages().len() == 1, "0 for a `method` of several trainings";
            images positive(recipe.images), "more than 0";
            keep_epochs recipe.keep_epochs.iter().all(|at| positive(*at)), "epochs, each more than 0";
            compare_orders !recipe.compare_orders || (recipe.rho > 0.0 && recipe.inner_steps == 1), "`false` without `rho`, or with several `inner-steps`";
            batch (1..=MOST as usize).contains(&recipe.batch), "1 to 1000000";
            accumulate recipe.accumulate > 0 && recipe.batch.is_multiple_of(recipe.accumulate), "a divisor of `batch`";
            validation (0.0..1.0).contains(&recipe.validation), "a share below 1";
            lr positive(recipe.lr), "more than 0";
            momentum (0.0..1.0).contains(&recipe.momentum), "0 to less than 1";
            weight_decay at_least_0(recipe.weight_decay), "at least 0";
            clip at_least_0(recipe.clip), "at least 0";
            drop_factor share(recipe.drop_factor), "0 to 1";
            drops recipe.drops.iter().all(|at| share(*at)), "shares of the run";
            drops recipe.drops.is_empty() || recipe.schedule == Shape::Steps, "none without `schedule = \"steps\"`";
            warm_up at_least_0(recipe.warm_up), "at least 0 epochs";
            ema (0.0..1.0).contains(&recipe.ema), "0 to less than 1";
            smoothing (0.0..1.0).contains(&recipe.smoothing), "0 to less than 1";
            smoothing recipe.smoothing == 0.0 || recipe.method.smooths(), "0 for a `method` with a loss of its own";
            noise share(recipe.noise), "0 to 1";
            noise !recipe.method.needs_rate() || recipe.noise > 0.0, "more than 0 for a `method` that drops this share";
            alpha positive(recipe.alpha) && recipe.alpha <= 1e6, "more than 0, at most 1000000";
            rho at_least_0(recipe.rho), "at least 0";
            inner_steps (1..=1000).contains(&recipe.inner_steps), "1 to 1000";
            cutout recipe.cutout <= MAX_IMAGE_SIZE as usize, "at most 1024";
            p recipe.p >= 1.0, "1 to inf";
            adaptive recipe.adaptive == -1.0 || at_least_0(recipe.adaptive), "at least 0, or -1 for none";
            m recipe.m <= recipe.batch / recipe.accumulate.max(1), "at most the images of a part of the batch";
            start !recipe.frozen_norm || !recipe.start.is_empty(), "a file, with `frozen-norm`";
            new_head !recipe.new_head || !recipe.start.is_empty(), "`false` without `start`";
            image_size recipe.image_size <= MAX_IMAGE_SIZE, "at most 1024";
            lazy !recipe.lazy || recipe.data != "embedded", "`false` for the set that is compiled in";
            lazy !recipe.lazy || recipe.image_size > 0, "`false` without `image-size`";
            lazy !recipe.lazy || (recipe.cutout == 0 && recipe.auto_augment.0.is_none()), "`false` with other augmentation than `basic`";
        }
        recipe.sam(&[]).map(|_| ()).map_err(|error| {
            let order = self.second_order.as_ref().filter(|order| order.value).map(|order| order.wrong(&error));
            let steps = self.inner_steps.as_ref().filter(|steps| steps.value != 1).map(|steps| steps.wrong(&error));
            order.or(steps).unwrap_or(error)
        })
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
    let recipe = Changes::default().resolve();
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

fn kebab(key: &str) -> String {
    key.replace('_', "-")
}

impl Recipe {
    /// The configured method for these variables: everything that the attribute is told.
    ///
    /// # Errors
    /// If settings are out of range or do not go together.
    pub fn sam(&self, trained: &[Var]) -> Result<Sam> {
        let mut sam = Sam::new(self.rho).p(self.p);
        if self.adaptive >= 0.0 {
            sam = sam.adaptive(self.adaptive);
        }
        if self.direction == Heading::Random {
            sam = sam.direction(Direction::Random).vars(trained.iter().cloned());
        }
        if self.inner_steps != 1 {
            sam = sam.ascents(self.inner_steps, 1.0);
        }
        if self.second_order {
            sam = sam.combination(Combination::SecondOrder);
        }
        sam.check()?;
        Ok(sam)
    }

    /// All keys in TOML, for a file that says the same.
    ///
    /// # Errors
    /// If a value cannot be written so.
    pub fn to_toml(&self) -> Result<String> {
        let mut all = toml::Table::try_from(self)?;
        // Only one of them may be said.
        if self.steps > 0 {
            all.remove("epochs");
        }
        Ok(toml::to_string(&all)?)
    }

    /// The parts of a batch of so many images whose gradients are averaged: `accumulate` equal ones, and for plain
    /// gradients each of these in shards of `m`. SAM splits into shards by itself, but not where `rho` is 0: without
    /// this batch normalisation would see `m` images with SAM and the whole batch without.
    ///
    /// # Errors
    /// If there are not as many equal parts.
    pub fn parts(&self, rows: usize) -> Result<Vec<Range<usize>>> {
        let count = self.accumulate;
        ensure!(
            count > 0 && rows.is_multiple_of(count),
            "a batch of {rows} images cannot be cut into {count} equal parts: change `accumulate`"
        );
        let part = rows / count;
        let shard = if self.rho == 0.0 && self.m > 0 { self.m } else { part.max(1) };
        Ok((0..count).flat_map(|i| cut(i * part..(i + 1) * part, shard)).collect())
    }

    /// How many times a batch of so many images is normalised: once a shard, of SAM or of the parts.
    ///
    /// # Errors
    /// As [`parts`](Self::parts).
    pub fn shards(&self, rows: usize) -> Result<usize> {
        Ok(self.normalised(rows)?.len())
    }

    /// The images of a batch that are normalised together: the shards, of SAM or of the parts.
    ///
    /// # Errors
    /// As [`parts`](Self::parts).
    pub fn normalised(&self, rows: usize) -> Result<Vec<Range<usize>>> {
        let shard = if self.m == 0 { usize::MAX } else { self.m };
        Ok(self.parts(rows)?.into_iter().flat_map(|part| cut(part, shard)).collect())
    }

    /// What is done to training images.
    #[must_use]
    pub fn augment(&self) -> Augment {
        Augment { basic: self.basic, auto: self.auto_augment.0, cutout: self.cutout }
    }
}

/// Shards of `m`, as SAM has them: a single image that remains joins the shard before it.
fn cut(range: Range<usize>, m: usize) -> Vec<Range<usize>> {
    let mut shards: Vec<_> = range.clone().step_by(m).map(|at| at..range.end.min(at.saturating_add(m))).collect();
    if m > 1
        && shards.len() > 1
        && shards.pop_if(|last| last.len() == 1).is_some()
        && let Some(last) = shards.last_mut()
    {
        last.end = range.end;
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error =
            Changes::parse("test.toml", text).and_then(|changes| changes.recipe(&Scale::default())).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, line, words) in [
            ("rho = 0.1\nrhoo = 1.0\n", 2, "unknown field `rhoo`"),
            ("\nepochs = \"ten\"\n", 2, "invalid type: string \"ten\""),
            ("lr = 0.1\nepochs = 0.0", 2, "`epochs` is 0.0: expected more than 0"),
            ("batch = 10\naccumulate = 3", 2, "a divisor of `batch`"),
            ("model = \"resnet21\"", 1, "6 n + 2"),
            ("method = \"magic\"", 1, "magic"),
            ("method = \"gce\"\n\nsmoothing = 0.1", 3, "a loss of its own"),
            ("rho = -0.5", 1, "-0.5"),
            ("rho = 0.1\np = 0.5", 2, "0.5"),
            ("frozen-norm = true\nstart = \"\"", 2, "with `frozen-norm`"),
            ("m = 300", 1, "at most the images"),
            ("epochs = 3.0\nsteps = 10", 2, "no `epochs` beside it"),
            ("drop-factor = nan", 1, "0 to 1"),
            ("image-size = 4000000000", 1, "at most 1024"),
            ("image-size = 32\nlazy = true", 2, "compiled in"),
            ("rho = 0.1\ninner-steps = 3\nsecond-order = true", 3, "second"),
            ("rho = 0.1\ninner-steps = 0", 2, "1 to 1000"),
            ("auto-augment = \"best\"", 1, "paper-25"),
            ("keep-epochs = [1.0, 0.0]", 1, "each more than 0"),
            ("compare-orders = true", 1, "without `rho`"),
            ("rho = [", 1, ""),
        ] {
            let error = refused(text);
            assert!(error.starts_with(&format!("test.toml, line {line}: ")) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn later_words_win() {
        let base = Changes::parse("base", "rho = 0.05\nepochs = 10.0\np = inf").unwrap();
        let changed = Changes::parse("cell", "rho = 0.1").unwrap().or(&base);
        let recipe = changed.recipe(&Scale::default()).unwrap();
        assert_eq!((recipe.rho, recipe.epochs, recipe.p, recipe.batch), (0.1, 10.0, f64::INFINITY, 256));
    }

    #[test]
    fn the_last_word_says_how_long() {
        let of = |above: &str, below: &str| {
            let changes = Changes::parse("a", above).unwrap().or(&Changes::parse("b", below).unwrap());
            let recipe = changes.recipe(&"epochs=0.5".parse().unwrap()).unwrap();
            (recipe.epochs, recipe.steps)
        };
        assert_eq!(of("epochs = 4.0", "steps = 100"), (2.0, 0));
        assert_eq!(of("steps = 100", "epochs = 4.0"), (0.5, 50));
        assert_eq!(of("lr = 0.1", "steps = 1"), (0.5, 1));
        assert_eq!(of("steps = 0", "epochs = 4.0"), (2.0, 0));
    }

    /// SGD and SAM normalise over as many images.
    #[test]
    fn plain_gradients_are_taken_in_shards_too() {
        let parts = |text: &str, rows| {
            Changes::parse("test", text)
                .unwrap()
                .recipe(&Scale::default())
                .unwrap()
                .parts(rows)
                .unwrap()
                .into_iter()
                .map(|part| (part.start, part.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts("rho = 0.05\nm = 4", 10), [(0, 10)]);
        assert_eq!(parts("m = 4", 10), [(0, 4), (4, 8), (8, 10)]);
        assert_eq!(parts("m = 4", 9), [(0, 4), (4, 9)]);
        assert_eq!(parts("rho = 0.05\naccumulate = 2\nm = 4", 12), [(0, 6), (6, 12)]);
        assert_eq!(parts("accumulate = 2\nm = 4", 12), [(0, 4), (4, 6), (6, 10), (10, 12)]);
        assert_eq!(parts("", 12), [(0, 12)]);
        let recipe = Changes::parse("test", "accumulate = 2").unwrap().recipe(&Scale::default()).unwrap();
        assert!(recipe.parts(3).unwrap_err().to_string().contains("2 equal parts"));
    }
}
