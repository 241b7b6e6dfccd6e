//! Layer normalization and RMS normalization of rows on the CPU.
//!
//! A row stays in the cache between the first reading and the last, so memory is read once and written once. Mean and variance
//! are taken in f64, in two passes, and the mean is subtracted in two parts: rows of a large mean lose nothing. The forward
//! pass keeps the mean and 1/σ of each row; the backward pass recomputes the rest, and sums the gradients of γ and β in the
//! same sweep: over [`TILE`] rows in the dtype of x, and in f64 across tiles, and across the parts that threads share, whose size the
//! shape decides. Results are bitwise identical for any number of threads.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, for_float, like, output, view, zeros};

/// Partial sums of a row.
pub(super) const LANES: usize = 32;

/// Elements that are added up in their own dtype, lane by lane, before f64.
const RUN: usize = 256;

/// Rows whose gradients of γ and β are added up in the dtype of x.
const TILE: usize = 8;

/// Neighboring columns of a tile that are computed together.
const WIDTH: usize = 16;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

/// Parts of the rows that each have sums of their own for the gradients of γ and β, at most.
const PARTS: usize = 64;

/// How to normalize rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowNorm {
    pub(crate) columns: usize,
    pub(crate) eps: f64,
    /// Whether the mean is subtracted.
    pub(crate) centered: bool,
}

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
        let mean = if centered { sum(row, |x| x) / count } else { 0.0 };
        let square = sum(row, |x| (x - mean) * (x - mean)) / count;
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
    norm: RowNorm,
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
    norm: RowNorm,
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

fn normalized<T: Float>(norm: RowNorm, x: &[T], weight: &[T], bias: Option<&[T]>) -> (Vec<T>, Vec<Moments>) {
    let columns = norm.columns.max(1);
    let mut y = zeros(x.len());
    let mut moments = vec![Moments::default(); x.len() / columns];
    let rows = SHARE.div_ceil(columns);
    let parts = y.par_chunks_mut(rows * columns).zip(x.par_chunks(rows * columns)).zip(moments.par_chunks_mut(rows));
    parts.for_each(|((y, x), moments)| ARCH.dispatch(Forward { norm, x, weight, bias, y, moments }));
    (y, moments)
}

struct Forward<'a, T> {
    norm: RowNorm,
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
        let Self { norm: RowNorm { columns, eps, centered }, x, weight, bias, y, moments } = self;
        for ((y, x), moments) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(moments) {
            *moments = Moments::of(x, eps, centered);
            let (center, inverse) = (moments.center::<T>(), T::narrow(moments.inverse));
            let inputs = y.iter_mut().zip(x).zip(weight);
            match bias {
                None => inputs.for_each(|((y, x), weight)| *y = center.of(*x) * inverse * *weight),
                Some(bias) => inputs
                    .zip(bias)
                    .for_each(|(((y, x), weight), bias)| *y = center.of(*x) * inverse * *weight + *bias),
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
fn gradients<T: Float>(norm: RowNorm, inputs: Inputs<'_, T>, moments: &[Moments], wanted: bool) -> (Vec<T>, Vec<f64>) {
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
    norm: RowNorm,
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
        if self.dx.is_empty() { self.run::<false>(&mut sums) } else { self.run::<true>(&mut sums) }
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
        let Self { norm: RowNorm { columns, centered, .. }, inputs: Inputs { x, dy, weight }, moments, dx } = self;
        let (d_weight, d_bias) = sums.split_at_mut(columns);
        let (weights, weight_rest) = weight.as_chunks::<LANES>();
        let size = TILE * columns;
        for (i, moments) in moments.chunks(TILE).enumerate() {
            let (x, dy) = (&x[i * size..][..moments.len() * columns], &dy[i * size..][..moments.len() * columns]);
            let dx = if DX { &mut dx[i * size..][..x.len()] } else { &mut [] };
            let mut rows = [Coefficients::new(moments[0], [0.0; 2], columns, centered); TILE];
            for (row, (moments, (x, dy))) in
                rows.iter_mut().zip(moments.iter().zip(x.chunks_exact(columns).zip(dy.chunks_exact(columns))))
            {
                let center = moments.center();
                let sums = if DX { two_sums(x, dy, center, weights.iter(), weight_rest) } else { [0.0; 2] };
                *row = Coefficients::new(*moments, sums, columns, centered);
            }
            let mut tile = Tile { rows: &rows[..moments.len()], columns, x, dy, weight, dx, d_weight, d_bias };
            let whole = columns / WIDTH * WIDTH;
            for column in (0..whole).step_by(WIDTH) {
                tile.at::<DX, WIDTH>(column);
            }
            for column in whole..columns {
                tile.at::<DX, 1>(column);
            }
        }
    }
}

struct Tile<'a, T> {
    rows: &'a [Coefficients<T>],
    columns: usize,
    x: &'a [T],
    dy: &'a [T],
    weight: &'a [T],
    dx: &'a mut [T],
    d_weight: &'a mut [f64],
    d_bias: &'a mut [f64],
}

impl<T: Float> Tile<'_, T> {
    /// N neighboring columns of all rows.
    #[inline(always)]
    fn at<const DX: bool, const N: usize>(&mut self, column: usize) {
        let zeros = [T::default(); N];
        let weight = self.weight[column..].first_chunk::<N>().unwrap_or(&zeros);
        let (mut moments, mut sums) = (zeros, zeros);
        for (i, row) in self.rows.iter().enumerate() {
            let start = i * self.columns + column;
            let (Some(x), Some(dy)) = (self.x[start..].first_chunk::<N>(), self.dy[start..].first_chunk::<N>()) else {
                return;
            };
            let mut distance = zeros;
            for k in 0..N {
                distance[k] = row.center.of(x[k]);
            }
            for k in 0..N {
                sums[k] += dy[k];
            }
            for k in 0..N {
                moments[k] += dy[k] * (distance[k] * row.scale);
            }
            if DX {
                let to = &mut self.dx[start..][..N];
                for k in 0..N {
                    to[k] = dy[k] * weight[k] * row.scale - row.shift - distance[k] * row.slope;
                }
            }
        }
        let totals = self.d_weight[column..][..N].iter_mut().zip(&mut self.d_bias[column..][..N]);
        for ((d_weight, d_bias), (moment, sum)) in totals.zip(moments.into_iter().zip(sums)) {
            *d_weight += moment.wide();
            *d_bias += sum.wide();
        }
    }
}

/// Σ γ dy and Σ γ dy (x - mean) of a row, with γ in chunks and a rest.
#[inline(always)]
pub(super) fn two_sums<'a, T: Float>(
    x: &[T],
    dy: &[T],
    center: Center<T>,
    weights: impl Iterator<Item = &'a [T; LANES]>,
    weight_rest: &[T],
) -> [f64; 2] {
    let ([x_chunks, dy_chunks], [x_rest, dy_rest]) = {
        let ((x, x_rest), (dy, dy_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        ([x, dy], [x_rest, dy_rest])
    };
    let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
    let mut weights = weights;
    let run = RUN / LANES;
    for (x, dy) in x_chunks.chunks(run).zip(dy_chunks.chunks(run)) {
        let (mut sums, mut moments) = ([T::default(); LANES], [T::default(); LANES]);
        for ((x, dy), weight) in x.iter().zip(dy).zip(&mut weights) {
            // One thing at a time, so that the compiler makes vectors of the lanes.
            let mut slope = [T::default(); LANES];
            for i in 0..LANES {
                slope[i] = dy[i] * weight[i];
            }
            for i in 0..LANES {
                sums[i] += slope[i];
            }
            for i in 0..LANES {
                moments[i] += slope[i] * center.of(x[i]);
            }
        }
        for i in 0..LANES {
            first[i] += sums[i].wide();
        }
        for i in 0..LANES {
            second[i] += moments[i].wide();
        }
    }
    for (i, (x, (dy, weight))) in x_rest.iter().zip(dy_rest.iter().zip(weight_rest)).enumerate() {
        let slope = *dy * *weight;
        first[i] += slope.wide();
        second[i] += (slope * center.of(*x)).wide();
    }
    [total(first), total(second)]
}

/// Σ f(x), in f64.
#[inline(always)]
fn sum<T: Float>(row: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] += f(x[i].wide());
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += f(x.wide()));
    total(lanes)
}

/// Halves on halves: one lane after the other would take as long as a short row.
#[inline(always)]
fn total(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        let (left, right) = lanes.split_at_mut(half);
        left.iter_mut().zip(right).for_each(|(left, right)| *left += *right);
        half /= 2;
    }
    lanes[0]
}
