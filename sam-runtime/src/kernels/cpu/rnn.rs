//! LSTM and GRU over a batch of sequences.
//!
//! The products with the input are one for all steps, and so are those of the weights' gradients; a step is one product with the
//! state before it, and one pass over the cells. The forward pass keeps the gates, in the order of the steps.
//!
//! Cells are computed in f64, with exponentials that the compiler vectorizes: of a step's time the product has more.
//!
//! A state that is taken out of the result has a gradient as large as all of them; `nn::rnn` has them taken out in a tree.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::exp::exp_f64;
use super::float::{Float, zeros};
use super::matmul::{Matrix, Start, column_sums, multiply};
use crate::kernels::shapes::{RNN_KEPT, RnnCell, RnnShape};

/// Cells that are worth a thread.
const CELLS: usize = 1 << 11;

/// What a layer is applied to. The first state is h, or for an LSTM h and c.
pub(crate) struct RnnArgs<'a, T> {
    /// (batch, steps, inputs)
    pub(crate) x: &'a [T],
    pub(crate) w_ih: &'a [T],
    pub(crate) w_hh: &'a [T],
    pub(crate) state: &'a [&'a [T]],
    pub(crate) b_ih: Option<&'a [T]>,
    pub(crate) b_hh: Option<&'a [T]>,
}

/// The gradients of [`RnnArgs`].
pub(crate) struct RnnGradients<T> {
    pub(crate) x: Vec<T>,
    pub(crate) w_ih: Vec<T>,
    pub(crate) w_hh: Vec<T>,
    pub(crate) state: Vec<Vec<T>>,
    pub(crate) b_ih: Vec<T>,
    pub(crate) b_hh: Vec<T>,
}

/// The h of all steps, and behind them for an LSTM the c; and what the backward pass needs of the gates.
pub(crate) fn forward<T: Float>(shape: &RnnShape, args: &RnnArgs<'_, T>) -> (Vec<T>, Vec<T>) {
    let RnnShape { cell, steps, batch, inputs, hidden } = *shape;
    let (size, gates) = (batch * hidden, cell.gates() * hidden);
    let x = swapped(args.x, batch, steps, inputs);
    let mut from_x = zeros(steps * batch * gates);
    let w_ih = Matrix::new(args.w_ih, gates, inputs).transposed();
    multiply(&mut from_x, Matrix::new(&x, steps * batch, inputs), w_ih, start(args.b_ih));
    let w_hh = Matrix::new(args.w_hh, gates, hidden).transposed();
    let mut kept = zeros(steps * batch * RNN_KEPT * hidden);
    let mut y = zeros(cell.states() * steps * size);
    let (all_h, all_c) = y.split_at_mut(steps * size);
    let mut from_h = vec![T::default(); batch * gates];
    for (step, (from_x, kept)) in
        from_x.chunks_exact(batch * gates).zip(kept.chunks_exact_mut(batch * RNN_KEPT * hidden)).enumerate()
    {
        let (before, h) = all_h.split_at_mut(step * size);
        let before = if step == 0 { args.state[0] } else { &before[(step - 1) * size..] };
        multiply(&mut from_h, Matrix::new(before, batch, hidden), w_hh, start(args.b_hh));
        let rows = from_x.par_chunks_exact(gates).zip(from_h.par_chunks_exact(gates));
        let rows = rows.zip(kept.par_chunks_exact_mut(RNN_KEPT * hidden));
        let rows = rows.zip(h[..size].par_chunks_exact_mut(hidden)).with_min_len(CELLS.div_ceil(hidden));
        match cell {
            RnnCell::Lstm => {
                let (before, c) = all_c.split_at_mut(step * size);
                let before = if step == 0 { args.state[1] } else { &before[(step - 1) * size..] };
                let c = c[..size].par_chunks_exact_mut(hidden).zip(before.par_chunks_exact(hidden));
                rows.zip(c).for_each(|((((from_x, from_h), kept), h), (c, before))| {
                    ARCH.dispatch(Lstm { from_x, from_h, kept, h, c, before });
                });
            }
            RnnCell::Gru => {
                rows.zip(before.par_chunks_exact(hidden)).for_each(|((((from_x, from_h), kept), h), before)| {
                    ARCH.dispatch(Gru { from_x, from_h, kept, h, before });
                });
            }
        }
    }
    (y, kept)
}

fn start<T>(bias: Option<&[T]>) -> Start<'_, T> {
    bias.map_or(Start::Zero, Start::Row)
}

/// All gradients, given those of the states of all steps.
pub(crate) fn backward<T: Float>(
    shape: &RnnShape,
    args: &RnnArgs<'_, T>,
    kept: &[T],
    y: &[T],
    dy: &[T],
) -> RnnGradients<T> {
    let RnnShape { cell, steps, batch, inputs, hidden } = *shape;
    let (size, gates, rows) = (batch * hidden, cell.gates() * hidden, steps * batch);
    let w_hh = Matrix::new(args.w_hh, gates, hidden);
    // The gradients of what comes from x, and for a GRU of what comes from h.
    let mut from_x = zeros(rows * gates);
    let mut from_h = zeros(if cell == RnnCell::Gru { rows * gates } else { 0 });
    // Of h through the product, and what goes to the step before directly: c, or the share of h.
    let (mut dh, mut carry) = (vec![T::default(); size], vec![T::default(); size]);
    let ((all_h, all_c), (dy_h, dy_c)) = (y.split_at(steps * size), dy.split_at(steps * size));
    for step in (0..steps).rev() {
        let at = |all| step_of(all, step, size);
        let before = |all, i: usize| if step == 0 { args.state[i] } else { step_of(all, step - 1, size) };
        let kept = step_of(kept, step, batch * RNN_KEPT * hidden).par_chunks_exact(RNN_KEPT * hidden);
        let from_x = &mut from_x[step * batch * gates..][..batch * gates];
        let cells = kept.zip(from_x.par_chunks_exact_mut(gates)).zip(dh.par_chunks_exact(hidden));
        let cells = cells.zip(at(dy_h).par_chunks_exact(hidden)).zip(carry.par_chunks_exact_mut(hidden));
        let cells = cells.with_min_len(CELLS.div_ceil(hidden));
        let from_h = match cell {
            RnnCell::Lstm => {
                let c = at(all_c).par_chunks_exact(hidden).zip(before(all_c, 1).par_chunks_exact(hidden));
                cells.zip(c.zip(at(dy_c).par_chunks_exact(hidden))).for_each(
                    |(((((kept, from_x), dh), dy), carry), ((c, before), dy_c))| {
                        ARCH.dispatch(LstmBack { kept, from_x, dh, dy, carry, c, before, dy_c });
                    },
                );
                &*from_x
            }
            RnnCell::Gru => {
                let from_h = &mut from_h[step * batch * gates..][..batch * gates];
                let more = before(all_h, 0).par_chunks_exact(hidden).zip(from_h.par_chunks_exact_mut(gates));
                cells.zip(more).for_each(|(((((kept, from_x), dh), dy), carry), (before, from_h))| {
                    ARCH.dispatch(GruBack { kept, from_x, from_h, dh, dy, carry, before });
                });
                &*from_h
            }
        };
        multiply(&mut dh, Matrix::new(from_h, batch, gates), w_hh, Start::Zero);
    }
    let from_h = if cell == RnnCell::Gru { &from_h } else { &from_x };
    let x = swapped(args.x, batch, steps, inputs);
    let mut d_w_ih = zeros(gates * inputs);
    multiply(&mut d_w_ih, Matrix::new(&from_x, rows, gates).transposed(), Matrix::new(&x, rows, inputs), Start::Zero);
    let mut d_w_hh = zeros(gates * hidden);
    let (first, others) = from_h.split_at(batch * gates);
    let state = Matrix::new(args.state[0], batch, hidden);
    multiply(&mut d_w_hh, Matrix::new(first, batch, gates).transposed(), state, Start::Zero);
    if steps > 1 {
        let all_h = Matrix::new(&all_h[..(steps - 1) * size], rows - batch, hidden);
        multiply(&mut d_w_hh, Matrix::new(others, rows - batch, gates).transposed(), all_h, Start::Kept);
    }
    let mut dx = zeros(rows * inputs);
    multiply(&mut dx, Matrix::new(&from_x, rows, gates), Matrix::new(args.w_ih, gates, inputs), Start::Zero);
    let sums = |wanted: bool, values| if wanted { column_sums(values, gates) } else { Vec::new() };
    let (b_ih, b_hh) = (sums(args.b_ih.is_some(), &from_x), sums(args.b_hh.is_some(), from_h));
    let state = match cell {
        RnnCell::Lstm => vec![dh, carry],
        RnnCell::Gru => vec![dh.iter().zip(&carry).map(|(dh, carry)| *dh + *carry).collect()],
    };
    RnnGradients { x: swapped(&dx, steps, batch, inputs), w_ih: d_w_ih, w_hh: d_w_hh, state, b_ih, b_hh }
}

fn step_of<T>(all: &[T], step: usize, size: usize) -> &[T] {
    &all[step * size..][..size]
}

/// From (a, b, row) to (b, a, row).
fn swapped<T: Float>(x: &[T], a: usize, b: usize, row: usize) -> Vec<T> {
    let mut y = Vec::with_capacity(x.len());
    for j in 0..b {
        (0..a).for_each(|i| y.extend_from_slice(&x[(i * b + j) * row..][..row]));
    }
    y
}

#[inline(always)]
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + exp_f64(-x))
}

#[inline(always)]
fn tanh(x: f64) -> f64 {
    1.0 - 2.0 / (1.0 + exp_f64(2.0 * x))
}

/// A row in parts of equal length.
#[inline(always)]
fn parts<T, const N: usize>(row: &[T]) -> [&[T]; N] {
    let n = row.len() / N;
    let mut parts = [row; N];
    for (i, part) in parts.iter_mut().enumerate() {
        *part = &row[i * n..][..n];
    }
    parts
}

#[inline(always)]
fn four_mut<T>(row: &mut [T]) -> [&mut [T]; 4] {
    let n = row.len() / 4;
    let (first, rest) = row.split_at_mut(n);
    let (second, rest) = rest.split_at_mut(n);
    let (third, fourth) = rest.split_at_mut(n);
    [first, second, third, &mut fourth[..n]]
}

#[inline(always)]
fn three_mut<T>(row: &mut [T]) -> [&mut [T]; 3] {
    let n = row.len() / 3;
    let (first, rest) = row.split_at_mut(n);
    let (second, third) = rest.split_at_mut(n);
    [first, second, &mut third[..n]]
}

/// The cells of one sequence, at one step: c = f c' + i g, h = o tanh(c).
struct Lstm<'a, T> {
    from_x: &'a [T],
    from_h: &'a [T],
    kept: &'a mut [T],
    h: &'a mut [T],
    c: &'a mut [T],
    before: &'a [T],
}

impl<T: Float> NullaryFnOnce for Lstm<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { from_x, from_h, kept, h, c, before } = self;
        let n = h.len();
        let ([xi, xf, xg, xo], [hi, hf, hg, ho]) = (parts::<T, 4>(from_x), parts::<T, 4>(from_h));
        let ([i, f, g, o], c, before) = (four_mut(kept), &mut c[..n], &before[..n]);
        for k in 0..n {
            i[k] = T::narrow(sigmoid(xi[k].wide() + hi[k].wide()));
            f[k] = T::narrow(sigmoid(xf[k].wide() + hf[k].wide()));
            g[k] = T::narrow(tanh(xg[k].wide() + hg[k].wide()));
            o[k] = T::narrow(sigmoid(xo[k].wide() + ho[k].wide()));
            let next = f[k].wide() * before[k].wide() + i[k].wide() * g[k].wide();
            c[k] = T::narrow(next);
            h[k] = T::narrow(o[k].wide() * tanh(next));
        }
    }
}

struct LstmBack<'a, T> {
    kept: &'a [T],
    from_x: &'a mut [T],
    dh: &'a [T],
    dy: &'a [T],
    /// The gradient of c, and then of the c before.
    carry: &'a mut [T],
    c: &'a [T],
    before: &'a [T],
    dy_c: &'a [T],
}

impl<T: Float> NullaryFnOnce for LstmBack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { kept, from_x, dh, dy, carry, c, before, dy_c } = self;
        let n = dh.len();
        let ([i, f, g, o], [di, df, dg, d_o]) = (parts::<T, 4>(kept), four_mut(from_x));
        let (dy, carry, c, before, dy_c) = (&dy[..n], &mut carry[..n], &c[..n], &before[..n], &dy_c[..n]);
        for k in 0..n {
            let (gate_i, gate_f, gate_g, gate_o) = (i[k].wide(), f[k].wide(), g[k].wide(), o[k].wide());
            let (dh, t) = (dh[k].wide() + dy[k].wide(), tanh(c[k].wide()));
            let dc = carry[k].wide() + dy_c[k].wide() + dh * gate_o * (1.0 - t * t);
            di[k] = T::narrow(dc * gate_g * gate_i * (1.0 - gate_i));
            df[k] = T::narrow(dc * before[k].wide() * gate_f * (1.0 - gate_f));
            dg[k] = T::narrow(dc * gate_i * (1.0 - gate_g * gate_g));
            d_o[k] = T::narrow(dh * t * gate_o * (1.0 - gate_o));
            carry[k] = T::narrow(dc * gate_f);
        }
    }
}

/// The cells of one sequence, at one step: h = z h' + (1 - z) n, where n = tanh(x + r h').
struct Gru<'a, T> {
    from_x: &'a [T],
    from_h: &'a [T],
    kept: &'a mut [T],
    h: &'a mut [T],
    before: &'a [T],
}

impl<T: Float> NullaryFnOnce for Gru<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { from_x, from_h, kept, h, before } = self;
        let n = h.len();
        let ([xr, xz, xn], [hr, hz, hn]) = (parts::<T, 3>(from_x), parts::<T, 3>(from_h));
        let ([r, z, new, inner], before) = (four_mut(kept), &before[..n]);
        for k in 0..n {
            r[k] = T::narrow(sigmoid(xr[k].wide() + hr[k].wide()));
            z[k] = T::narrow(sigmoid(xz[k].wide() + hz[k].wide()));
            inner[k] = hn[k];
            new[k] = T::narrow(tanh(xn[k].wide() + r[k].wide() * hn[k].wide()));
            h[k] = T::narrow(z[k].wide() * before[k].wide() + (1.0 - z[k].wide()) * new[k].wide());
        }
    }
}

struct GruBack<'a, T> {
    kept: &'a [T],
    from_x: &'a mut [T],
    from_h: &'a mut [T],
    dh: &'a [T],
    dy: &'a [T],
    /// What h gets of the next step directly, and then what the h before gets of this one.
    carry: &'a mut [T],
    before: &'a [T],
}

impl<T: Float> NullaryFnOnce for GruBack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { kept, from_x, from_h, dh, dy, carry, before } = self;
        let n = dh.len();
        let [r, z, new, inner] = parts::<T, 4>(kept);
        let ([xr, xz, xn], [hr, hz, hn]) = (three_mut(from_x), three_mut(from_h));
        let (dy, carry, before) = (&dy[..n], &mut carry[..n], &before[..n]);
        for k in 0..n {
            let (gate_r, gate_z, gate_n) = (r[k].wide(), z[k].wide(), new[k].wide());
            let dh = dh[k].wide() + dy[k].wide() + carry[k].wide();
            let dn = dh * (1.0 - gate_z) * (1.0 - gate_n * gate_n);
            let dz = T::narrow(dh * (before[k].wide() - gate_n) * gate_z * (1.0 - gate_z));
            let dr = T::narrow(dn * inner[k].wide() * gate_r * (1.0 - gate_r));
            (xr[k], xz[k], xn[k]) = (dr, dz, T::narrow(dn));
            (hr[k], hz[k], hn[k]) = (dr, dz, T::narrow(dn * gate_r));
            carry[k] = T::narrow(dh * gate_z);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials() {
        for i in -70_000..=70_000 {
            let x = f64::from(i) * 0.01;
            assert!((exp_f64(x) / x.exp() - 1.0).abs() < 1e-14, "{x}");
        }
        assert!(exp_f64(f64::NAN).is_nan());
        let saturated = [sigmoid(f64::INFINITY), sigmoid(f64::NEG_INFINITY), tanh(-f64::INFINITY)];
        assert!(saturated.iter().zip([1.0, 0.0, -1.0]).all(|(a, b)| (a - b).abs() < 1e-300));
    }
}
