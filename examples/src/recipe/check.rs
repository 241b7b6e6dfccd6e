//! The ranges of the keys, and the recipe that a patch gives.

use anyhow::{Error, Result};

use super::keys::{OptimizerKind, Recipe, RecipePatch, kebab};
use super::scale::Scale;
use crate::data::MAX_IMAGE_SIZE;
use crate::noisy_labels::NoisyLabelMethod;
use crate::util::numbers::MOST;
use crate::util::schedule::LrShape;

/// A longer window is a typing error.
pub(crate) const MOST_TOKENS: usize = 65_536;

impl RecipePatch {
    /// The recipe, with defaults for missing keys, scaled.
    ///
    /// # Errors
    /// If values are out of range or do not go together; the error names the file and line of one of them.
    pub fn recipe(&self, scale: &Scale) -> Result<Recipe> {
        let recipe = self.resolve();
        self.check(&recipe)?;
        Ok(recipe.scaled(scale))
    }

    /// The recipe with further settings, `key = value` in TOML, scaled.
    ///
    /// # Errors
    /// As [`parse`](Self::parse) and [`recipe`](Self::recipe).
    pub fn recipe_with(&self, settings: &[String], scale: &Scale) -> Result<Recipe> {
        Self::parse("--set", &settings.join("\n"))?.or(self).recipe(scale)
    }

    /// Checks that these settings, of a command line, have an effect on a recipe that they are part of. Those of a file may be
    /// for other cells of a table, or all keys that there are.
    ///
    /// # Errors
    /// If one has none; the error names it, and what it needs.
    pub fn check_effect(settings: &[String], recipe: &Recipe) -> Result<()> {
        let set = Self::parse("--set", &settings.join("\n"))?;
        let is_sam = recipe.rho > 0.0;
        let (is_adamw, is_text) = (recipe.optimizer == OptimizerKind::AdamW, recipe.model.is_for_text());
        macro_rules! needs {
            ($($key:ident $holds:expr, $what:literal;)*) => {
                $(let holds: bool = $holds;
                if let Some(found) = set.$key.as_ref().filter(|_| !holds) {
                    return Err(found.error(format!(
                        "`{}` has no effect: it needs {}; remove it",
                        kebab(stringify!($key)),
                        $what
                    )));
                })*
            };
        }
        needs! {
            p is_sam, "`rho` above 0";
            adaptive is_sam, "`rho` above 0";
            direction is_sam, "`rho` above 0";
            inner_steps is_sam, "`rho` above 0";
            second_order is_sam, "`rho` above 0";
            compare_orders is_sam, "`rho` above 0";
            noise_kind recipe.noise > 0.0, "`noise` above 0";
            alpha recipe.method.mixes(), "a `method` that mixes examples, such as `mixup`";
            betas is_adamw, "`optimizer = \"adamw\"`";
            momentum !is_adamw, "`optimizer = \"sgd\"`";
            nesterov !is_adamw && recipe.momentum > 0.0, "`optimizer = \"sgd\"` with `momentum`";
            decay_in_loss recipe.weight_decay > 0.0, "`weight-decay` above 0";
            decay_all recipe.weight_decay > 0.0 && !recipe.decay_in_loss, "`weight-decay` above 0 and `decay-in-loss = false`";
            drop_factor !recipe.drops.is_empty(), "`drops`";
            length is_text, "a language model";
            new_head !recipe.start.is_empty(), "`start`";
            frozen_norm !recipe.start.is_empty(), "`start`";
            init !recipe.model.is_transformer(), "a network that is no transformer or mixer";
        }
        Ok(())
    }

    /// Checks ranges, and which keys exclude each other.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let (is_text, is_adamw) = (recipe.model.is_for_text(), recipe.optimizer == OptimizerKind::AdamW);
        let at_least_0 = |x: f64| x >= 0.0 && x.is_finite();
        macro_rules! expect {
            ($($key:ident $holds:expr, $expected:literal;)*) => {
                $(let holds: bool = $holds;
                if !holds {
                    let what = format!("`{}` is {:?}: expected {}", kebab(stringify!($key)), recipe.$key, $expected);
                    return Err(self.$key.as_ref().map_or_else(|| Error::msg(what.clone()), |found| found.error(&what)));
                })*
            };
        }
        expect! {
            epochs positive(recipe.epochs) && recipe.epochs <= MOST as f64, "more than 0, at most 1000000";
            steps recipe.steps <= (1 << 40), "at most 1099511627776";
            steps recipe.steps == 0 || self.epochs.is_none(), "0, or no `epochs` beside it";
            stretch positive(recipe.stretch) && recipe.stretch <= MOST as f64, "more than 0, at most 1000000";
            patience recipe.patience == 0 || recipe.method.phases().len() == 1, "0 for a `method` of several phases";
            images positive(recipe.images), "more than 0";
            keep_epochs recipe.keep_epochs.iter().all(|at| positive(*at)), "epochs, each more than 0";
            compare_orders !recipe.compare_orders || (recipe.rho > 0.0 && recipe.inner_steps == 1), "`false` without `rho`, or with several `inner-steps`";
            batch (1..=MOST as usize).contains(&recipe.batch), "1 to 1000000";
            length (1..=MOST_TOKENS).contains(&recipe.length), "1 to 65536";
            accumulate recipe.accumulate > 0 && recipe.batch.is_multiple_of(recipe.accumulate), "a divisor of `batch`";
            validation (0.0..1.0).contains(&recipe.validation), "a share below 1";
            lr positive(recipe.lr), "more than 0";
            momentum (0.0..1.0).contains(&recipe.momentum), "0 to less than 1";
            betas recipe.betas.iter().all(|beta| (0.0..1.0).contains(beta)), "two numbers of 0 to less than 1";
            decay_in_loss !(is_adamw && recipe.decay_in_loss && recipe.weight_decay > 0.0), "`false` for AdamW, whose decay is not a part of the gradient";
            weight_decay at_least_0(recipe.weight_decay), "at least 0";
            clip at_least_0(recipe.clip), "at least 0";
            drop_factor share(recipe.drop_factor), "0 to 1";
            drops recipe.drops.iter().all(|at| share(*at)), "shares of the run";
            drops recipe.drops.is_empty() || recipe.schedule == LrShape::Steps, "none without `schedule = \"steps\"`";
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
        if is_text {
            expect! {
                method recipe.method == NoisyLabelMethod::Plain, "`plain` for a text";
                smoothing recipe.smoothing == 0.0, "0 for a text";
                noise recipe.noise == 0.0, "0 for a text";
                image_size recipe.image_size == 0, "0 for a text";
                lazy !recipe.lazy, "`false` for a text";
                cutout recipe.cutout == 0, "0 for a text";
                auto_augment recipe.auto_augment.0.is_none(), "`none` for a text";
                compare_orders !recipe.compare_orders, "`false` for a text";
            }
        }
        let has_branches = recipe.model.is_transformer();
        expect! {
            dropout (0.0..1.0).contains(&recipe.dropout), "0 to less than 1";
            dropout has_branches || recipe.dropout == 0.0, "0 for a network that is no transformer or mixer";
            stochastic_depth (0.0..1.0).contains(&recipe.stochastic_depth), "0 to less than 1";
            stochastic_depth has_branches || recipe.stochastic_depth == 0.0, "0 for a network that is no transformer or mixer";
        }
        recipe.sam(&[]).map(|_| ()).map_err(|error| {
            let order = self.second_order.as_ref().filter(|order| order.value).map(|order| order.error(&error));
            let steps = self.inner_steps.as_ref().filter(|steps| steps.value != 1).map(|steps| steps.error(&error));
            order.or(steps).unwrap_or(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error =
            RecipePatch::parse("test.toml", text).and_then(|changes| changes.recipe(&Scale::default())).unwrap_err();
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
            ("length = 0", 1, "1 to 65536"),
            ("model = \"gpt\"\nnoise = 0.1", 2, "0 for a text"),
            ("model = \"gpt\"\nmethod = \"mixup\"", 2, "`plain` for a text"),
            ("model = \"vit-tiny\"\ndropout = 1.0", 2, "less than 1"),
            ("stochastic-depth = 0.1", 1, "no transformer"),
            ("optimizer = \"adam\"", 1, "adamw"),
            ("optimizer = \"adamw\"\ndecay-in-loss = true", 2, "`false` for AdamW"),
            ("betas = [0.9]", 1, "length 2"),
            ("betas = [0.9, 1.0]", 1, "less than 1"),
            ("rho = [", 1, ""),
        ] {
            let error = refused(text);
            assert!(error.starts_with(&format!("test.toml, line {line}: ")) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let check = |base: &str, set: &str| {
            let base = RecipePatch::parse("base", base).unwrap();
            let recipe = base.recipe_with(&[set.to_owned()], &Scale::default()).unwrap();
            RecipePatch::check_effect(&[set.to_owned()], &recipe)
        };
        for (base, set, key, needs) in [
            ("", "p = 1.0", "p", "rho"),
            ("", "adaptive = 0.01", "adaptive", "rho"),
            ("", "inner-steps = 3", "inner-steps", "rho"),
            ("", "direction = \"random\"", "direction", "rho"),
            ("", "alpha = 0.5", "alpha", "method"),
            ("method = \"gce\"", "alpha = 0.5", "alpha", "method"),
            ("", "betas = [0.8, 0.9]", "betas", "adamw"),
            ("", "noise-kind = \"exclusive\"", "noise-kind", "noise"),
            ("", "length = 64", "length", "language model"),
            ("optimizer = \"adamw\"\ndecay-in-loss = false", "momentum = 0.5", "momentum", "sgd"),
        ] {
            let error = check(base, set).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` has no effect: it needs")) && error.contains(needs), "{error}");
        }
        for (base, set) in [
            ("rho = 0.05", "p = 1.0"),
            ("method = \"mixup\"", "alpha = 0.5"),
            ("noise = 0.4", "noise-kind = \"exclusive\""),
            ("", "momentum = 0.5"),
            ("", "m = 32"),
            ("", "lr = 0.2"),
        ] {
            check(base, set).unwrap();
        }
    }

    #[test]
    fn later_words_win() {
        let base = RecipePatch::parse("base", "rho = 0.05\nepochs = 10.0\np = inf").unwrap();
        let changed = RecipePatch::parse("cell", "rho = 0.1").unwrap().or(&base);
        let recipe = changed.recipe(&Scale::default()).unwrap();
        assert_eq!((recipe.rho, recipe.epochs, recipe.p, recipe.batch), (0.1, 10.0, f64::INFINITY, 256));
    }

    #[test]
    fn the_last_word_says_how_long() {
        let of = |above: &str, below: &str| {
            let changes = RecipePatch::parse("a", above).unwrap().or(&RecipePatch::parse("b", below).unwrap());
            let recipe = changes.recipe(&"epochs=0.5".parse().unwrap()).unwrap();
            (recipe.epochs, recipe.steps)
        };
        assert_eq!(of("epochs = 4.0", "steps = 100"), (2.0, 0));
        assert_eq!(of("steps = 100", "epochs = 4.0"), (0.5, 50));
        assert_eq!(of("lr = 0.1", "steps = 1"), (0.5, 1));
        assert_eq!(of("steps = 0", "epochs = 4.0"), (2.0, 0));
    }
}
