//! Random numbers that are functions of a seed and an index: the same for any device and any number of threads.

use std::f64::consts::TAU;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// The finalizer of `SplitMix64` (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
pub(crate) fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number in [0, 1) with the 24 bits that an f32 has there. The kernels of `kernels/cuda/src` compute the same.
pub(crate) fn uniform_f32(seed: u64, index: u64) -> f32 {
    (hash(seed.wrapping_add(index)) >> 40) as f32 / (1u32 << 24) as f32
}

/// In [0, 1).
pub(crate) fn uniform(key: &[u64]) -> f64 {
    unit(key_of(0, key))
}

fn key_of(start: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(start, |key, part| hash(key ^ hash(*part)))
}

fn unit(key: u64) -> f64 {
    (key >> 11) as f64 / (1u64 << 53) as f64
}

/// N(0, 1) for each element.
pub(crate) fn gaussian(like: &Tensor, key: [u64; 3]) -> Result<Tensor> {
    let start = key_of(0, &key);
    each(like, |index| {
        let draw = |half| unit(key_of(start, &[index, half]));
        // Box and Muller: 1 - u is never 0.
        (-2.0 * (1.0 - draw(0)).ln()).sqrt() * (TAU * draw(1)).cos()
    })
}

/// 1 / `keep` with this probability, 0 without.
pub(crate) fn bernoulli(like: &Tensor, keep: f64, key: [u64; 3]) -> Result<Tensor> {
    let start = key_of(0, &key);
    each(like, |index| if unit(key_of(start, &[index])) < keep { 1.0 / keep } else { 0.0 })
}

fn each(like: &Tensor, value: impl Fn(u64) -> f64 + Sync) -> Result<Tensor> {
    let values: Vec<f64> = (0..like.elem_count()).into_par_iter().map(|index| value(index as u64)).collect();
    Tensor::from_vec(values, like.shape(), &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())
}
