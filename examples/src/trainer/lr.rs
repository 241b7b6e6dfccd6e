//! The learning rate of a step.

use sam_runtime::optim::LrSchedule;

use crate::noisy_labels::Phase;
use crate::recipe::Recipe;
use crate::util::schedule::LrShape;

/// The learning rate of a step of a phase that has `steps`, of which `per_epoch` are one epoch.
#[must_use]
pub fn rate(recipe: &Recipe, phase: &Phase, step: usize, steps: usize, per_epoch: usize) -> f64 {
    let own = phase.rate.factor(step as f64 / steps as f64);
    let shape = if own.is_some() { LrShape::Constant } else { recipe.schedule };
    let schedule = match shape {
        LrShape::Constant => LrSchedule::constant(recipe.lr),
        LrShape::Cosine => LrSchedule::cosine(recipe.lr, steps as u64, 0.0),
        LrShape::Steps => {
            let at = recipe.drops.iter().map(|share| first_at(*share, steps));
            LrSchedule::milestones(recipe.lr, at, recipe.drop_factor)
        }
    };
    schedule.ramp_up(recipe.warm_up * per_epoch as f64).lr(step as u64) * own.unwrap_or(1.0)
}

/// The first step that has this share of all steps before it, as f64 divides them.
fn first_at(share: f64, steps: usize) -> u64 {
    #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
    let near = (share * steps as f64) as u64;
    (near.saturating_sub(1)..=near).find(|step| *step as f64 / steps as f64 >= share).unwrap_or(near + 1)
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

    /// The shares of recipes, divided as the steps are.
    #[test]
    fn drops_are_at_the_first_step_that_has_the_share() {
        for steps in [1usize, 3, 7, 10, 97, 391, 78_200] {
            for share in [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0] {
                let first = (0..=steps).find(|step| *step as f64 / steps as f64 >= share).unwrap();
                assert_eq!(first_at(share, steps), first as u64, "{share} of {steps}");
            }
        }
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
