//! The learning rate of a step.

use crate::noisy_labels::Phase;
use crate::recipe::Recipe;
use crate::util::schedule::{LrSchedule, cosine};

/// The learning rate of a step of a phase that has `steps`, of which `per_epoch` are one epoch.
#[must_use]
pub fn rate(recipe: &Recipe, phase: &Phase, step: usize, steps: usize, per_epoch: usize) -> f64 {
    let progress = step as f64 / steps as f64;
    let warm_up = recipe.warm_up * per_epoch as f64;
    let warmth = if (step as f64) < warm_up { (step + 1) as f64 / (warm_up + 1.0) } else { 1.0 };
    let factor = phase.rate.factor(progress).unwrap_or_else(|| match recipe.schedule {
        LrSchedule::Cosine => cosine(progress),
        LrSchedule::Constant => 1.0,
        LrSchedule::Steps => {
            let drops = recipe.drops.iter().filter(|at| progress >= **at).count();
            recipe.drop_factor.powi(i32::try_from(drops).unwrap_or(i32::MAX))
        }
    });
    recipe.lr * warmth * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noisy_labels::NoisyLabelMethod;
    use crate::recipe::{RecipePatch, Scale};

    fn rates(text: &str) -> Vec<f64> {
        let recipe = RecipePatch::parse("test", text).unwrap().recipe(&Scale::default()).unwrap();
        let phase = NoisyLabelMethod::Plain.phases()[0];
        (0..10).map(|step| rate(&recipe, &phase, step, 10, 2)).collect()
    }

    #[test]
    fn shapes() {
        let cosine = rates("lr = 0.2");
        assert_eq!(cosine[0], 0.2);
        assert!((cosine[5] - 0.1).abs() < 1e-12 && cosine[9] > 0.0 && cosine[9] < 0.01);
        assert_eq!(rates("schedule = \"constant\""), [0.1; 10]);
        let steps = rates("schedule = \"steps\"\ndrops = [0.5, 0.8]\ndrop-factor = 0.5");
        assert_eq!((steps[4], steps[5], steps[8]), (0.1, 0.05, 0.025));
        let warm = rates("schedule = \"constant\"\nwarm-up = 2.0");
        assert!((warm[0] - 0.02).abs() < 1e-12 && (warm[3] - 0.08).abs() < 1e-12);
        assert_eq!(warm[4], 0.1);
    }
}
