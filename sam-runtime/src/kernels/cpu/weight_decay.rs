//! ½ λ ‖w‖² and its gradient.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::float::{Float, for_float, like, output, view};

/// Elements that are added up by one thread, in an order that depends on nothing else.
const CHUNK: usize = 1 << 14;

/// `scale` ‖w‖², a scalar.
pub(crate) fn penalty(w: &Tensor, scale: f64) -> Result<(CpuStorage, Shape)> {
    let (dtype, w) = (w.dtype(), view(w));
    for_float!(dtype, "l2-penalty", |T| {
        let squares = |w: &[T]| w.iter().map(|w| w.wide() * w.wide()).sum::<f64>();
        let parts: Vec<f64> = w.elements::<T>()?.par_chunks(CHUNK).map(squares).collect();
        Ok(output(vec![T::narrow(scale * parts.into_iter().sum::<f64>())], ()))
    })
}

/// `scale` w.
pub(crate) fn times(w: &Tensor, scale: f64) -> Result<Tensor> {
    let elements = view(w);
    for_float!(w.dtype(), "l2-penalty", |T| {
        let scale = T::narrow(scale);
        let dw: Vec<T> = elements.elements::<T>()?.par_iter().with_min_len(CHUNK).map(|w| *w * scale).collect();
        like(dw, w)
    })
}
