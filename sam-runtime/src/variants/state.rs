//! What the pieces of a `Sam` remember from step to step.

use candle_core::Result;

use super::factor::LossFactor;
use crate::core::var_list::VarTensors;

/// Changes when a step ends, and never halfway.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Steps so far.
    pub(crate) steps: u64,
    /// The learning rate, once it is set.
    pub(crate) rate: Option<f64>,
    /// The mean of gradients that a direction follows.
    pub(crate) average: VarTensors,
    /// The last gradient, which a direction follows.
    pub(crate) previous: VarTensors,
    /// The part of the second gradient that is orthogonal to the first, which LookSAM adds to plain ones.
    pub(crate) orthogonal: VarTensors,
    /// The mean and variance of ‖g‖².
    pub(crate) moments: Option<(f64, f64)>,
    /// What is perturbed.
    pub(crate) mask: VarTensors,
    /// What a decoupled step is still to do.
    pub(crate) remainder: VarTensors,
    /// What the loss that it belongs to was multiplied by.
    pub(crate) factor: LossFactor,
}

impl State {
    /// This state, after a step from `before`. On the CPU a step with numbers that are not finite was an error; on other
    /// devices it is not checked, and such numbers would stay for good.
    pub(crate) fn after(self, before: &Self) -> Result<Self> {
        let gate = |new: VarTensors, old: &VarTensors| if new.is_on_cpu() { Ok(new) } else { new.finite_or(old) };
        Ok(Self {
            average: gate(self.average, &before.average)?,
            previous: gate(self.previous, &before.previous)?,
            orthogonal: gate(self.orthogonal, &before.orthogonal)?,
            remainder: gate(self.remainder, &VarTensors::default())?,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    #[test]
    fn what_is_not_finite_is_not_remembered() {
        let vars = [1.0, 2.0, 3.0].map(|x| Var::new(&[x, x], &Device::Cpu).unwrap());
        let kept = |values: [[f64; 2]; 3]| {
            let pairs = vars.iter().zip(values);
            VarTensors::new(
                pairs.map(|(var, value)| (var.clone(), Tensor::new(&value, &Device::Cpu).unwrap())).collect(),
            )
        };
        let values =
            |kept: &VarTensors| kept.iter().map(|(_, value)| value.to_vec1().unwrap()).collect::<Vec<Vec<f64>>>();
        let new = kept([[1.0, 2.0], [f64::NAN, 4.0], [5.0, f64::INFINITY]]);
        let old = VarTensors::new(vec![(vars[1].clone(), Tensor::new(&[7.0, 8.0], &Device::Cpu).unwrap())]);
        assert_eq!(values(&new.finite_or(&old).unwrap()), [[1.0, 2.0], [7.0, 8.0], [0.0, 0.0]]);
    }
}
