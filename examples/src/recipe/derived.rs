//! What follows from a recipe: SAM, the augmentation, the partition of a batch.

use anyhow::Result;
use candle_core::Var;
use sam_runtime::Sam;
use sam_runtime::variants::{Combination, Direction};

use super::keys::{AscentDirection, Recipe};
use super::scale::Scale;
use crate::augment::Augment;
use crate::noisy_labels::MethodSettings;
use crate::util::numbers::count;
use crate::util::partition::Partition;

impl Recipe {
    /// SAM as the recipe configures it, for a model with these parameters.
    ///
    /// # Errors
    /// If settings are out of range or do not go together.
    pub fn sam(&self, trained: &[Var]) -> Result<Sam> {
        let mut sam = Sam::new(self.rho).p(self.p);
        if self.adaptive >= 0.0 {
            sam = sam.adaptive(self.adaptive);
        }
        if self.direction == AscentDirection::Random {
            sam = sam.direction(Direction::Random).vars(trained.iter().cloned());
        }
        if self.inner_steps != 1 {
            sam = sam.ascent_steps(self.inner_steps, 1.0);
        }
        if self.second_order {
            sam = sam.combination(Combination::SecondOrder);
        }
        sam.validate()?;
        Ok(sam)
    }

    /// Whether it needs the folder of the data sets: for its set, or for its initial weights.
    #[must_use]
    pub fn reads_data_folder(&self) -> bool {
        self.data != "embedded" || !self.start.is_empty()
    }

    /// All keys in TOML: a file with the same recipe.
    ///
    /// # Errors
    /// If a value cannot be written so.
    pub fn to_toml(&self) -> Result<String> {
        let mut all = toml::Table::try_from(self)?;
        // They exclude each other.
        if self.steps > 0 {
            all.remove("epochs");
        }
        Ok(toml::to_string(&all)?)
    }

    /// How a batch is divided.
    #[must_use]
    pub fn partition(&self) -> Partition {
        Partition { micro_batches: self.accumulate, m: self.m, is_sam: self.rho > 0.0 }
    }

    /// What the noisy-label methods need.
    #[must_use]
    pub fn noisy_label_settings(&self) -> MethodSettings {
        MethodSettings {
            method: self.method,
            smoothing: self.smoothing,
            alpha: self.alpha,
            noise: self.noise,
            frozen_norm: self.frozen_norm,
            partition: self.partition(),
        }
    }

    /// The augmentation of training images.
    #[must_use]
    pub fn augment(&self) -> Augment {
        Augment { basic: self.basic, auto: self.auto_augment.0, cutout: self.cutout }
    }

    /// The recipe scaled down.
    pub(super) fn scaled(mut self, scale: &Scale) -> Self {
        self.epochs *= scale.epochs;
        self.keep_epochs.iter_mut().for_each(|at| *at *= scale.epochs);
        if self.steps > 0 {
            self.steps = count(self.steps as f64 * scale.epochs).max(1);
        }
        // A count of at most 1 would be a share.
        let least = if self.images > 1.0 { 2.0 } else { 0.0 };
        self.images = (self.images * scale.images).max(least);
        if scale.width != 1.0 {
            self.model = self.model.narrowed(scale.width);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::RecipePatch;
    use super::*;

    /// Also where a share of a count would be read as a share of all.
    #[test]
    fn a_scaled_run_has_no_more_images() {
        let images = |images: &str, scale: &str| {
            let recipe = RecipePatch::parse("test", &format!("images = {images}")).unwrap();
            recipe.recipe(&scale.parse().unwrap()).unwrap().images
        };
        assert_eq!([images("1000.0", "images=0.2"), images("0.5", "images=0.5")], [200.0, 0.25]);
        assert_eq!([images("100.0", "images=0.01"), images("100.0", "images=0.001")], [2.0, 2.0]);
    }

    /// SGD and SAM normalize over as many images.
    #[test]
    fn plain_gradients_are_taken_in_shards_too() {
        let parts = |text: &str, rows| {
            RecipePatch::parse("test", text)
                .unwrap()
                .recipe(&Scale::default())
                .unwrap()
                .partition()
                .micro_batches(rows)
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
        let recipe = RecipePatch::parse("test", "accumulate = 2").unwrap().recipe(&Scale::default()).unwrap();
        assert!(recipe.partition().micro_batches(3).unwrap_err().to_string().contains("2 equal parts"));
    }
}
