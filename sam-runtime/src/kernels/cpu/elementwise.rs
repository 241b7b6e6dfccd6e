//! ReLU, sums and conversions: what is done to each element by itself.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::float::{Float, for_float, like, output, view};

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// max(x, 0)
pub(crate) fn relu(x: &Tensor) -> Result<(CpuStorage, Shape)> {
    let elements = view(x);
    for_float!(x.dtype(), "relu", |T| {
        let (values, zero) = (elements.elements::<T>()?, T::default());
        Ok(output(map(values, values, |x, _| if x < zero { zero } else { x }), x.shape()))
    })
}

/// The gradient of x, given the output.
pub(crate) fn relu_back(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (y_view, dy) = (view(y), view(dy));
    for_float!(y.dtype(), "relu", |T| {
        let zero = T::default();
        like(map(dy.elements::<T>()?, y_view.elements()?, |dy, y| if y > zero { dy } else { zero }), y)
    })
}

/// x + y
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<(CpuStorage, Shape)> {
    let (x_view, y) = (view(x), view(y));
    for_float!(x.dtype(), "add", |T| {
        Ok(output(map(x_view.elements::<T>()?, y.elements()?, |x, y| x + y), x.shape()))
    })
}

/// x in another type.
pub(crate) fn to_dtype(x: &Tensor, dtype: DType) -> Result<(CpuStorage, Shape)> {
    match &*x.storage_and_layout().0 {
        Storage::Cpu(storage) => Ok((storage.to_dtype(x.layout(), dtype)?, x.shape().clone())),
        _ => candle_core::bail!("expected a tensor on the CPU"),
    }
}

fn map<T: Float>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    a.par_iter().zip(b).with_min_len(CHUNK).map(|(a, b)| f(*a, *b)).collect()
}
