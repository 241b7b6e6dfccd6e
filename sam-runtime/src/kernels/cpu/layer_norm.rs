//! Layer normalization and RMS normalization of rows on the CPU.
//!
//! A row stays in the cache between the first reading and the last, so memory is read once and written once. Mean and variance
//! are taken in f64, in two passes, and the mean is subtracted in two parts: rows of a large mean lose nothing. The forward
//! pass keeps the mean and 1/σ of each row; the backward pass recomputes the rest, and sums the gradients of γ and β in the
//! same sweep: over [`TILE`] rows in the dtype of x, and in f64 across tiles, and across the parts that threads share, whose size the
//! shape decides. Results are bitwise identical for any number of threads.
//!
//! What was tried, 1024 rows of 256, one core of an Intel Xeon with AVX-512 that others use too, in ms; candle's fused forward
//! pass takes 0.21 to 0.22, a copy 0.04 to 0.05:
//!
//! | what | forward | backward |
//! | --- | --- | --- |
//! | lanes added up as they are widened: the compiler unrolls them into scalars; backward in tiles of 8 rows by 16 columns | 0.32 | 0.38 |
//! | all lanes widened, then all added up; backward row by row, γ and β summed in a row of the dtype of x | 0.17 | 0.23 |
//! | the lanes of both sums added up halves on halves | 0.17 | 0.19 |
//! | the lanes in memory, in loops of a length that the compiler does not know | 0.16 | 0.20 |
//!
//! The last is not used: a group normalization, whose rows are long, takes 1.8 times as long with it. What is left is adding up the
//! lanes, the root and the division of each row, and clearing the output.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, for_float, like, output, view, zeros};
use super::lanes::{LANES, two_run_sums, wide_sum};
use crate::kernels::shapes::RowNormShape;

/// Rows whose gradients of γ and β are added up in the dtype of x.
const TILE: usize = 8;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

/// Parts of the rows that each have sums of their own for the gradients of γ and β, at most.
const PARTS: usize = 64;

/// Of a row: the mean, or 0 if it is not subtracted, and 1/σ.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments {
    mean: f64,
    pub(super) inverse: f64,
}

impl Moments {
    #[inline(always)]
    pub(super) fn of<T: Float>(row: &[T], eps: f64, centered: bool) -> Self {
        let count = row.len() as f64;
        let mean = if centered { wide_sum(row, |x| x) / count } else { 0.0 };
        let square = wide_sum(row, |x| (x - mean) * (x - mean)) / count;
        Self { mean, inverse: (square + eps).sqrt().recip() }
    }

    #[inline(always)]
    pub(super) fn center<T: Float>(self) -> Center<T> {
        let high = T::narrow(self.mean);
        Center { high, low: T::narrow(self.mean - high.wide()) }
    }
}

/// The mean, as a number of the row's dtype and what that leaves.
#[derive(Clone, Copy)]
pub(super) struct Center<T> {
    high: T,
    low: T,
}

impl<T: Float> Center<T> {
    /// The distance from it: the first difference is exact where x is near.
    #[inline(always)]
    pub(super) fn of(self, x: T) -> T {
        (x - self.high) - self.low
    }
}

/// γ (x - mean) / σ + β for each row, and what the backward pass needs.
pub(crate) fn forward(
    norm: RowNormShape,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<((CpuStorage, Shape), Vec<Moments>)> {
    let (x_view, weight, bias) = (view(x), view(weight), bias.map(view));
    for_float!(x.dtype(), "layer-norm", |T| {
        let bias = bias.as_ref().map(|bias| bias.elements::<T>()).transpose()?;
        let (y, moments) = normalized::<T>(norm, x_view.elements()?, weight.elements()?, bias);
        Ok((output(y, x.shape()), moments))
    })
}

/// The wanted gradients of x, γ and β.
pub(crate) fn backward(
    norm: RowNormShape,
    args: &[Tensor],
    moments: &[Moments],
    wanted: &[bool],
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let [x, weight, ..] = args else { candle_core::bail!("expected an input and a weight") };
    let (x_view, weight_view, dy) = (view(x), view(weight), view(dy));
    for_float!(x.dtype(), "layer-norm", |T| {
        let inputs = Inputs { x: x_view.elements::<T>()?, dy: dy.elements()?, weight: weight_view.elements()? };
        let (dx, affine) = gradients(norm, inputs, moments, wanted[0]);
        let (d_weight, d_bias) = affine.split_at(norm.columns);
        let narrow = |sums: &[f64]| sums.iter().map(|sum| *sum as T).collect::<Vec<T>>();
        let mut all = vec![wanted[0].then(|| like(dx, x)).transpose()?];
        for (i, sums) in [d_weight, d_bias].into_iter().enumerate().take(args.len() - 1) {
            all.push(wanted[i + 1].then(|| like(narrow(sums), &args[i + 1])).transpose()?);
        }
        Ok(all)
    })
}

fn normalized<T: Float>(norm: RowNormShape, x: &[T], weight: &[T], bias: Option<&[T]>) -> (Vec<T>, Vec<Moments>) {
    let columns = norm.columns.max(1);
    let mut y = zeros(x.len());
    let mut moments = vec![Moments::default(); x.len() / columns];
    let rows = SHARE.div_ceil(columns);
    let parts = y.par_chunks_mut(rows * columns).zip(x.par_chunks(rows * columns)).zip(moments.par_chunks_mut(rows));
    parts.for_each(|((y, x), moments)| ARCH.dispatch(Forward { norm, x, weight, bias, y, moments }));
    (y, moments)
}

struct Forward<'a, T> {
    norm: RowNormShape,
    x: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
    y: &'a mut [T],
    moments: &'a mut [Moments],
}

impl<T: Float> NullaryFnOnce for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { norm: RowNormShape { columns, eps, centered }, x, weight, bias, y, moments } = self;
        for ((y, x), moments) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(moments) {
            *moments = Moments::of(x, eps, centered);
            let (center, inverse) = (moments.center::<T>(), T::narrow(moments.inverse));
            let inputs = y.iter_mut().zip(x).zip(weight);
            match bias {
                None => inputs.for_each(|((y, x), weight)| *y = center.of(*x) * inverse * *weight),
                Some(bias) => {
                    inputs
                        .zip(bias)
                        .for_each(|(((y, x), weight), bias)| *y = center.of(*x) * inverse * *weight + *bias);
                }
            }
        }
    }
}

/// Of rows, and γ.
#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    weight: &'a [T],
}

/// The gradient of x if it is wanted, and those of γ and β one after the other.
fn gradients<T: Float>(
    norm: RowNormShape,
    inputs: Inputs<'_, T>,
    moments: &[Moments],
    wanted: bool,
) -> (Vec<T>, Vec<f64>) {
    let columns = norm.columns.max(1);
    let mut dx = zeros(if wanted { inputs.x.len() } else { 0 });
    let rows = SHARE.div_ceil(columns).max(moments.len().div_ceil(PARTS)).next_multiple_of(TILE);
    let (mut parts, mut rest) = (Vec::new(), &mut dx[..]);
    for (i, moments) in moments.chunks(rows).enumerate() {
        let range = i * rows * columns..(i * rows + moments.len()) * columns;
        let (x, dy) = (&inputs.x[range.clone()], &inputs.dy[range]);
        let (dx, others) = rest.split_at_mut(if wanted { x.len() } else { 0 });
        rest = others;
        parts.push(Backward { norm, inputs: Inputs { x, dy, ..inputs }, moments, dx });
    }
    let parts: Vec<Vec<f64>> = parts.into_par_iter().map(|part| ARCH.dispatch(part)).collect();
    let mut sums = vec![0.0; 2 * norm.columns];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    (dx, sums)
}

struct Backward<'a, T> {
    norm: RowNormShape,
    inputs: Inputs<'a, T>,
    moments: &'a [Moments],
    /// Empty if it is not wanted.
    dx: &'a mut [T],
}

impl<T: Float> NullaryFnOnce for Backward<'_, T> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn call(self) -> Vec<f64> {
        let mut sums = vec![0.0; 2 * self.norm.columns];
        if self.dx.is_empty() {
            self.run::<false>(&mut sums);
        } else {
            self.run::<true>(&mut sums);
        }
        sums
    }
}

/// dx = scale γ dy - shift - slope (x - mean) for one row.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<T> {
    pub(super) center: Center<T>,
    pub(super) scale: T,
    pub(super) shift: T,
    pub(super) slope: T,
}

impl<T: Float> Coefficients<T> {
    /// Given Σ γ dy and Σ γ dy (x - mean) of a row of `count` elements.
    #[inline(always)]
    pub(super) fn new(moments: Moments, [sum, moment]: [f64; 2], count: usize, centered: bool) -> Self {
        let (inverse, count) = (moments.inverse, count as f64);
        Self {
            center: moments.center(),
            scale: T::narrow(inverse),
            shift: T::narrow(if centered { inverse * sum / count } else { 0.0 }),
            slope: T::narrow(inverse * inverse * inverse * moment / count),
        }
    }
}

impl<T: Float> Backward<'_, T> {
    #[inline(always)]
    fn run<const DX: bool>(self, sums: &mut [f64]) {
        let Self { norm: RowNormShape { columns, centered, .. }, inputs: Inputs { x, dy, weight }, moments, dx } = self;
        let (weights, weight_rest) = weight.as_chunks::<LANES>();
        let size = TILE * columns;
        let mut of_tile = vec![T::default(); 2 * columns];
        for (i, moments) in moments.chunks(TILE).enumerate() {
            of_tile.fill(T::default());
            let (d_weight, d_bias) = of_tile.split_at_mut(columns);
            let first = i * size;
            for (row, moments) in moments.iter().enumerate() {
                let start = first + row * columns;
                let (x, dy) = (&x[start..][..columns], &dy[start..][..columns]);
                let inputs = x.iter().zip(dy).zip(d_weight.iter_mut().zip(d_bias.iter_mut()));
                let center = moments.center::<T>();
                if DX {
                    let sums = two_run_sums(x, dy, |x| center.of(x), weights.iter(), weight_rest);
                    let row = Coefficients::<T>::new(*moments, sums, columns, centered);
                    let outputs = dx[start..][..columns].iter_mut().zip(weight);
                    for ((dx, weight), ((x, dy), (d_weight, d_bias))) in outputs.zip(inputs) {
                        let distance = row.center.of(*x);
                        *dx = *dy * *weight * row.scale - row.shift - distance * row.slope;
                        *d_weight += *dy * (distance * row.scale);
                        *d_bias += *dy;
                    }
                } else {
                    let scale = T::narrow(moments.inverse);
                    for ((x, dy), (d_weight, d_bias)) in inputs {
                        *d_weight += *dy * (center.of(*x) * scale);
                        *d_bias += *dy;
                    }
                }
            }
            sums.iter_mut().zip(&of_tile).for_each(|(sum, of_tile)| *sum += of_tile.wide());
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Rows in f64, by the definition: y and the gradients of x, γ and β.
    fn by_definition(norm: RowNormShape, x: &[f64], dy: &[f64], weight: &[f64], bias: &[f64]) -> [Vec<f64>; 4] {
        let n = norm.columns as f64;
        let mut all = [vec![], vec![], vec![0.0; norm.columns], vec![0.0; norm.columns]];
        for (x, dy) in x.chunks(norm.columns).zip(dy.chunks(norm.columns)) {
            let mean = if norm.centered { x.iter().sum::<f64>() / n } else { 0.0 };
            let inverse = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + norm.eps).sqrt();
            let normal: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
            let slope: Vec<f64> = dy.iter().zip(weight).map(|(dy, weight)| dy * weight).collect();
            let sum = if norm.centered { slope.iter().sum::<f64>() / n } else { 0.0 };
            let moment = slope.iter().zip(&normal).map(|(slope, normal)| slope * normal).sum::<f64>() / n;
            for i in 0..norm.columns {
                all[0].push(normal[i] * weight[i] + bias[i]);
                all[1].push(inverse * (slope[i] - sum - normal[i] * moment));
                all[2][i] += dy[i] * normal[i];
                all[3][i] += dy[i];
            }
        }
        all
    }

    #[test]
    fn as_by_definition_also_far_from_zero() {
        for (rows, columns) in [(1, 1), (3, 5), (17, 33), (70, 257), (2, 1000)] {
            for (mean, centered) in [(0.0, true), (1e4, true), (0.3, false)] {
                let norm = RowNormShape { columns, eps: 1e-5, centered };
                let random = |n: usize, seed: u64| -> Vec<f64> {
                    let mut state = seed;
                    let step = |_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        f64::from((state >> 40) as u32) / f64::from(1 << 23) - 1.0
                    };
                    (0..n).map(step).collect()
                };
                let x = random(rows * columns, 1).into_iter().map(|x| x + mean).collect();
                let all = [x, random(rows * columns, 2), random(columns, 3), random(columns, 4)];
                for dtype in [DType::F32, DType::F64] {
                    let tensor = |i: usize| {
                        let shape = if i < 2 { vec![rows, columns] } else { vec![columns] };
                        Tensor::from_vec(all[i].clone(), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
                    };
                    let [x, dy, weight, bias] = [0, 1, 2, 3].map(tensor);
                    let rounded = [&x, &dy, &weight, &bias].map(values);
                    let expected = by_definition(norm, &rounded[0], &rounded[1], &rounded[2], &rounded[3]);
                    let (y, moments) = forward(norm, &x, &weight, Some(&bias)).unwrap();
                    let args = [x, weight, bias];
                    let gradients = backward(norm, &args, &moments, &[true; 3], &dy).unwrap();
                    let y = Tensor::from_storage(
                        candle_core::Storage::Cpu(y.0),
                        y.1,
                        candle_core::op::BackpropOp::none(),
                        false,
                    );
                    let found = std::iter::once(y).chain(gradients.into_iter().flatten());
                    // σ is 0 where there is one column, and all that is left of x is rounding.
                    let tolerance = if dtype == DType::F32 { 2e-6 } else { 1e-11 };
                    for (i, (found, expected)) in found.zip(&expected).enumerate() {
                        let scale = expected.iter().fold(1.0, |scale: f64, x| scale.max(x.abs()));
                        for (found, expected) in values(&found).iter().zip(expected) {
                            let what = format!("{dtype:?}, {rows} of {columns}, mean {mean}, output {i}");
                            assert!((found - expected).abs() <= tolerance * scale, "{found}, {expected}: {what}");
                        }
                    }
                    let some = backward(norm, &args, &moments, &[false, true, false], &dy).unwrap();
                    assert_eq!([some[0].is_some(), some[1].is_some(), some[2].is_some()], [false, true, false]);
                }
            }
        }
    }
}
