//! Running statistics of batch normalizations where a batch is normalized in shards.
//!
//! Each device of Foret et al. updates its own statistics with its shard, and their mean is used for tests: one update with
//! momentum r a step. In one process the shards are normalized one after another, and n updates with momentum r move the
//! statistics by the factor 1 - (1 - r)ⁿ of the way. So after a step the statistics s are set to
//! s₀ + (s - s₀) r / (1 - (1 - r)ⁿ), where s₀ are those before the step. This differs from the mean of the shards' updates in
//! the weights: shard i of n counts (1 - r)ⁿ⁻ⁱ, up to a common factor, and not 1.

use anyhow::Result;

use crate::models::Model;
use crate::models::params::{Statistic, statistics};

/// The momentum of the running statistics, in all networks here.
const MOMENTUM: f64 = 0.1;

/// The statistics before a step, and the factor of their change.
pub(super) struct ShardStatistics {
    before: Vec<Statistic>,
    share: f64,
}

impl ShardStatistics {
    /// The statistics of a model before a step of so many shards; `None` for one shard.
    pub(super) fn before(model: &Model, shards: usize) -> Result<Option<Self>> {
        if shards < 2 {
            return Ok(None);
        }
        let before = statistics(model.vars())?;
        let moved = 1.0 - (1.0 - MOMENTUM).powi(i32::try_from(shards)?);
        Ok(Some(Self { before, share: MOMENTUM / moved }))
    }

    /// Corrects the statistics after the step.
    pub(super) fn settle(self) -> Result<()> {
        for Statistic { var, value: before, .. } in self.before {
            let way = (var.as_detached_tensor() - &before)?;
            var.set(&(before + (way * self.share)?)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use sam_runtime::Sam;

    use super::*;
    use crate::losses::{Objective, TargetBatch};
    use crate::models::Architecture;

    fn values(model: &Model) -> Vec<f64> {
        let values = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
        statistics(model.vars()).unwrap().into_iter().flat_map(|statistic| values(statistic.value)).collect()
    }

    /// Equal shards leave the statistics that one of them as the whole batch leaves.
    #[test]
    fn equal_shards_move_as_one() {
        let pixels: Vec<f32> = (0..4 * 16).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let shard = Tensor::from_vec(pixels, (4, 1, 4, 4), &Device::Cpu).unwrap();
        let after = |shards: usize| {
            let model = Model::new(Architecture::MlpNorm(6), [1, 4, 4], 3, 1).unwrap();
            let examples = TargetBatch {
                x: Tensor::cat(&vec![&shard; shards], 0).unwrap(),
                target: Tensor::full(1f32 / 3.0, (4 * shards, 3), &Device::Cpu).unwrap(),
            };
            let before = ShardStatistics::before(&model, shards).unwrap();
            let objective = Objective { model: &model, decay: 0.0, frozen: false, m: 4 };
            objective.cross_entropy(&examples, &Sam::new(0.05)).unwrap();
            if let Some(before) = before {
                before.settle().unwrap();
            }
            values(&model)
        };
        let (one, eight) = (after(1), after(8));
        assert_eq!(one.len(), 12);
        for (one, eight) in one.iter().zip(&eight) {
            assert!((one - eight).abs() < 1e-6, "{one} {eight}");
        }
    }
}
