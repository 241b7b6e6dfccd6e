//! The cells of recurrent layers, against the CPU's whole layer in f64: at one step its products are with the unit matrix.

use super::super::launch::dtype_code;
use super::super::launch::rnn::{Cells, GateSources};
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, tolerance};
use crate::kernels::cpu::rnn::{self, RnnArgs};
use crate::kernels::shapes::{RnnCell, RnnShape};

/// A unit matrix.
fn unit(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect()
}

#[test]
fn recurrent_cells() {
    let (batch, hidden) = (3, 50);
    for (dtype, cell) in FLOATS.into_iter().flat_map(|dtype| [RnnCell::Lstm, RnnCell::Gru].map(|cell| (dtype, cell))) {
        let (gates, size) = (cell.gates() * hidden, batch * hidden);
        let buffer = |n: usize, seed| Buffer::new(dtype, &numbers(n, seed));
        let [from_x, w_hh] = [buffer(batch * gates, 1), buffer(gates * hidden, 2)];
        let bias = buffer(gates, 3);
        let [h, c, dy, dy_c] = [4, 5, 6, 7].map(|seed| buffer(size, seed));
        // The input is what the gates get of it.
        let shape = RnnShape { cell, steps: 1, batch, inputs: gates, hidden };
        let state = [h.values(), c.values()];
        let state: Vec<&[f64]> = state.iter().map(|values| &values[..]).collect();
        let (x, unit, weights, b_hh) = (from_x.values(), unit(gates), w_hh.values(), bias.values());
        let b_hh = Some(&b_hh[..]);
        let args = RnnArgs { x: &x, w_ih: &unit, w_hh: &weights, state: &state, b_ih: None, b_hh };
        let (y, kept) = rnn::forward(&shape, &args);
        let dy_all = match cell {
            RnnCell::Lstm => [dy.values(), dy_c.values()].concat(),
            RnnCell::Gru => dy.values(),
        };
        let back = rnn::backward(&shape, &args, &kept, &y, &dy_all);
        // What the product with the state gives, without the bias.
        let from_h: Vec<f64> = state[0]
            .chunks(hidden)
            .flat_map(|h| weights.chunks(hidden).map(move |w| w.iter().zip(h).map(|(w, h)| w * h).sum()))
            .collect();
        let from_h = Buffer::new(dtype, &from_h);
        let (kept, c_next) = (Buffer::new(dtype, &kept), Buffer::new(dtype, &y[y.len() - size..]));
        let Some(found) = in_both_orders(|launcher| {
            let code = dtype_code(dtype)?;
            let cells = Cells { batch, hidden, dtype: code };
            let [kept_found, next_h, again, next_c, carry] =
                [4 * size, size, size, size, size].map(|n| Buffer::empty(dtype, n));
            let [d_x, d_h] = [(); 2].map(|()| Buffer::empty(dtype, batch * gates));
            let sources =
                GateSources { from_x: from_x.address(), from_h: from_h.address(), bias: (code, bias.address()) };
            let at = [&kept_found, &next_c, &next_h, &again].map(Buffer::address);
            Ok(match cell {
                RnnCell::Lstm => {
                    cells.lstm(launcher, sources, c.address(), at)?;
                    let from = [&kept, &c_next, &c, &dy, &dy_c].map(Buffer::address);
                    let [a, b, d, e, f] = from;
                    cells.lstm_back(launcher, [a, b, d, e, f, 0], [carry.address(), d_x.address()])?;
                    vec![kept_found, next_h, again, d_x, carry, next_c]
                }
                RnnCell::Gru => {
                    cells.gru(launcher, sources, h.address(), [at[0], at[2], at[3]])?;
                    let from = [kept.address(), h.address(), dy.address(), 0];
                    cells.gru_back(launcher, from, [carry.address(), d_x.address(), d_h.address()])?;
                    vec![kept_found, next_h, again, d_x, d_h]
                }
            })
        }) else {
            return;
        };
        let mut expected = vec![kept.values(), y[..size].to_vec(), y[..size].to_vec(), back.x];
        match cell {
            RnnCell::Lstm => expected.extend([back.state[1].clone(), y[size..].to_vec()]),
            RnnCell::Gru => {
                let mut d_h = expected[3].clone();
                let r = kept.values();
                for (row, kept) in d_h.chunks_mut(gates).zip(r.chunks(4 * hidden)) {
                    row[2 * hidden..].iter_mut().zip(kept).for_each(|(d, r)| *d *= r);
                }
                expected.push(d_h);
            }
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, 8.0 * tolerance(dtype), &format!("{dtype:?}, {cell:?}"));
        }
    }
}
