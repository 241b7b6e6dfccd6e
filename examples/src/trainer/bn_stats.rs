//! The running statistics of batch normalisations where a batch is normalised in shards.
//!
//! Each of the authors' devices moves its own towards its shard, and their mean is what is tested: one move a step. In one
//! process the shards follow each other, each moves them, and n moves by the rate r come to one by 1 - (1 - r)ⁿ. So
//! after a step of shards they are put back along the way, as far as one move by r would have gone. What is left of the order: a
//! shard counts 1 - r times as much as the one after it.

use anyhow::Result;
use candle_core::{Tensor, Var};

use crate::models::{Model, is_statistic};

/// How far a batch normalisation moves its statistics: that of all networks here.
const RATE: f64 = 0.1;

/// The statistics before a step, and how much of their way they keep.
pub(super) struct Statistics {
    before: Vec<(Var, Tensor)>,
    share: f64,
}

impl Statistics {
    /// Those of a model before a step of so many shards; nothing to do for one.
    pub(super) fn before(model: &Model, shards: usize) -> Result<Option<Self>> {
        if shards < 2 {
            return Ok(None);
        }
        let vars = model.vars().data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = vars
            .iter()
            .filter(|(name, _)| is_statistic(name))
            .map(|(_, var)| Ok((var.clone(), var.as_detached_tensor().copy()?)))
            .collect::<Result<_>>()?;
        let moved = 1.0 - (1.0 - RATE).powi(i32::try_from(shards)?);
        Ok(Some(Self { before, share: RATE / moved }))
    }

    /// After the step.
    pub(super) fn settle(self) -> Result<()> {
        for (var, before) in self.before {
            let way = (var.as_detached_tensor() - &before)?;
            var.set(&(before + (way * self.share)?)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sam_runtime::Sam;

    use super::*;
    use crate::losses::{Examples, Objective};
    use crate::models::Architecture;

    fn statistics(model: &Model) -> Vec<f64> {
        let vars = model.vars().data().lock().unwrap();
        let mut statistics: Vec<_> = vars.iter().filter(|(name, _)| is_statistic(name)).collect();
        statistics.sort_by_key(|(name, _)| name.as_str());
        let numbers = |var: &Var| var.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        statistics.into_iter().flat_map(|(_, var)| numbers(var)).collect()
    }

    /// Of shards that are all alike: what one of them, the whole batch for itself, would have left.
    #[test]
    fn equal_shards_move_as_one() {
        let pixels: Vec<f32> = (0..4 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let shard = Tensor::from_vec(pixels, (4, 1, 4, 4), &Device::Cpu).unwrap();
        let after = |shards: usize| {
            let model = Model::new(Architecture::MlpNorm(6), [1, 4, 4], 3, 1).unwrap();
            let examples = Examples {
                x: Tensor::cat(&vec![&shard; shards], 0).unwrap(),
                target: Tensor::full(1f32 / 3.0, (4 * shards, 3), &Device::Cpu).unwrap(),
            };
            let before = Statistics::before(&model, shards).unwrap();
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m: 4 };
            objective.cross_entropy(&examples, &Sam::new(0.05)).unwrap();
            if let Some(before) = before {
                before.settle().unwrap();
            }
            statistics(&model)
        };
        let (one, eight) = (after(1), after(8));
        assert_eq!(one.len(), 12);
        for (one, eight) in one.iter().zip(&eight) {
            assert!((one - eight).abs() < 1e-6, "{one} {eight}");
        }
    }
}
