//! Targets, weights and random combinations of examples.

use anyhow::Result;
use candle_core::{Device, Tensor};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

use crate::losses::TargetBatch;

/// A sample of Beta(α, α).
pub(super) fn beta(alpha: f64, rng: &mut ChaCha8Rng) -> Result<f64> {
    Ok(Beta::new(alpha, alpha)?.sample(rng))
}

/// A random permutation.
pub(super) fn shuffled(n: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<_> = (0..n).collect();
    order.shuffle(rng);
    order
}

/// As many indices as there are weights, each drawn with a probability proportional to the exponential of its weight.
pub(super) fn by_softmax(weights: &[f32], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut sum = 0.0;
    let sums: Vec<f64> = weights
        .iter()
        .map(|weight| {
            sum += f64::from(*weight).exp();
            sum
        })
        .collect();
    let mut draw = || {
        let at = sum * rng.random::<f64>();
        sums.partition_point(|sum| *sum <= at).min(weights.len() - 1)
    };
    weights.iter().map(|_| draw()).collect()
}

/// A convex combination of each example with its partner: its share of the example, the rest of the partner.
pub(super) fn mixed(x: &Tensor, target: &Tensor, partners: &[usize], shares: &[f64]) -> Result<TargetBatch> {
    let partners = partners.iter().map(|i| *i as u32).collect::<Vec<_>>();
    let partners = Tensor::from_vec(partners, shares.len(), &Device::Cpu)?.to_device(x.device())?;
    let shares: Vec<f32> = shares.iter().map(|share| *share as f32).collect();
    let shares = Tensor::from_vec(shares, x.dim(0)?, &Device::Cpu)?.to_device(x.device())?;
    let mix = |of: &Tensor| -> Result<Tensor> {
        let mut shape = vec![1; of.rank()];
        shape[0] = of.dim(0)?;
        let shares = shares.reshape(shape)?;
        let rest = of.index_select(&partners, 0)?.broadcast_mul(&shares.affine(-1.0, 1.0)?)?;
        Ok((of.broadcast_mul(&shares)? + rest)?)
    };
    Ok(TargetBatch { x: mix(x)?, target: mix(target)? })
}

/// Targets (n, classes) multiplied by the weights of the examples (n).
pub(super) fn weighted(target: &Tensor, weights: Vec<f32>) -> Result<Tensor> {
    let n = weights.len();
    Ok(target.broadcast_mul(&Tensor::from_vec(weights, (n, 1), &Device::Cpu)?.to_device(target.device())?)?)
}

/// Labels (n) as probabilities (n, classes), with label smoothing.
pub(super) fn one_hot(labels: &[u32], classes: usize, smoothing: f64, device: &Device) -> Result<Tensor> {
    let even = (smoothing / classes as f64) as f32;
    let mut target = vec![even; labels.len() * classes];
    for (row, label) in target.chunks_exact_mut(classes).zip(labels) {
        row[*label as usize] += 1.0 - smoothing as f32;
    }
    Ok(Tensor::from_vec(target, (labels.len(), classes), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::rng::Stream;

    #[test]
    fn partners_are_drawn_by_their_weights() {
        let mut weights = vec![0.0; 100];
        weights[7] = 5.0;
        let drawn =
            by_softmax(&weights, &mut Stream::Step { phase: 0, step: 0 }.rng(0)).iter().filter(|i| **i == 7).count();
        assert!((45..75).contains(&drawn), "{drawn}");
    }
}
