//! LSTM and GRU on tensors: products by cuBLAS, cells by a kernel for each step.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::channels::Channels;
use super::launch::dtype_code;
use super::launch::rnn::{Cells, GateSources};
use super::linear::{bias_back, product};
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::{RNN_KEPT, RnnCell, RnnShape};

/// The address of a step's rows.
fn row(all: u64, step: usize, elements: usize, tensor: &Tensor) -> u64 {
    all + (step * elements * tensor.dtype().size_in_bytes()) as u64
}

/// (steps, batch, inputs) as rows.
fn rows_of(shape: &RnnShape, x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()?.reshape((shape.steps * shape.batch, shape.inputs))
}

/// The h of all steps, and behind them the c. The arguments are x, the weights, the tensors of the first state, and those biases
/// that have an index.
pub(crate) fn rnn(
    shape: &RnnShape,
    args: &[Tensor],
    [b_ih, b_hh]: [Option<usize>; 2],
    kept: &OnceLock<Tensor>,
) -> Result<Output> {
    let RnnShape { cell, steps, batch, hidden, .. } = *shape;
    let (x, size, gates) = (&args[0], batch * hidden, cell.gates() * hidden);
    let from_x = product(&rows_of(shape, x)?, &args[1], b_ih.map(|bias| &args[bias]))?.tensor()?;
    let w_hh = args[2].to_dtype(x.dtype())?.t()?;
    let keep = UninitTensor::new(device(x)?, x.dtype(), steps * batch * RNN_KEPT * hidden)?.tensor()?;
    let y = UninitTensor::new(device(x)?, x.dtype(), (cell.states() * steps, batch, hidden))?;
    let [from_x_all, keep_all, y_all] = [device_ptr(&from_x)?.address, device_ptr(&keep)?.address, y.address()?];
    let bias = match b_hh {
        Some(bias) => (device_ptr(&args[bias])?.dtype, device_ptr(&args[bias])?.address),
        None => (0, 0),
    };
    let cells = Cells { batch, hidden, dtype: dtype_code(x.dtype())? };
    let mut h = args[3].clone();
    for step in 0..steps {
        let from_h = h.matmul(&w_hh)?;
        let next = UninitTensor::new(device(x)?, x.dtype(), (batch, hidden))?;
        let from_x = row(from_x_all, step, batch * gates, x);
        let sources = GateSources { from_x, from_h: device_ptr(&from_h)?.address, bias };
        let (kept, again) = (row(keep_all, step, batch * RNN_KEPT * hidden, x), next.address()?);
        let at = |step: usize| row(y_all, step, size, x);
        match cell {
            RnnCell::Lstm => {
                let before = if step == 0 { device_ptr(&args[4])?.address } else { at(steps + step - 1) };
                let to = [kept, at(steps + step), at(step), again];
                with_context(device(x)?, |context| cells.lstm(context, sources, before, to))?;
            }
            RnnCell::Gru => {
                let before = device_ptr(&h)?.address;
                with_context(device(x)?, |context| cells.gru(context, sources, before, [kept, at(step), again]))?;
            }
        }
        h = next.tensor()?;
    }
    kept.get_or_init(|| keep);
    Ok(y.output())
}

/// The requested gradients of the arguments.
pub(crate) fn rnn_back(
    shape: &RnnShape,
    args: &[Tensor],
    [b_ih, b_hh]: [Option<usize>; 2],
    kept: &Tensor,
    wanted: &[bool],
    y: &Tensor,
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    let RnnShape { cell, steps, batch, inputs, hidden } = *shape;
    let (x, size, gates) = (&args[0], batch * hidden, cell.gates() * hidden);
    let [w_ih, w_hh] = [args[1].to_dtype(x.dtype())?, args[2].to_dtype(x.dtype())?];
    let gradient = || UninitTensor::new(device(x)?, x.dtype(), (steps * batch, gates))?.tensor();
    let from_x = gradient()?;
    let from_h = if cell == RnnCell::Gru { gradient()? } else { from_x.clone() };
    let carry = UninitTensor::new(device(x)?, x.dtype(), (batch, hidden))?.tensor()?;
    let [kept, y_all, dy, from_x_all, from_h_all, carry_at] = [kept, y, dy, &from_x, &from_h, &carry].map(device_ptr);
    let (kept, y_all, dy) = (kept?.address, y_all?.address, dy?.address);
    let (from_x_all, from_h_all, carry_at) = (from_x_all?.address, from_h_all?.address, carry_at?.address);
    let cells = Cells { batch, hidden, dtype: dtype_code(x.dtype())? };
    let mut dh: Option<Tensor> = None;
    for step in (0..steps).rev() {
        let at = |all: u64, step: usize| row(all, step, size, x);
        let before = |first: usize, arg: &Tensor| match step {
            0 => Ok::<_, candle_core::Error>(device_ptr(arg)?.address),
            _ => Ok(at(y_all, first + step - 1)),
        };
        let behind = match &dh {
            Some(dh) => device_ptr(dh)?.address,
            None => 0,
        };
        let kept = row(kept, step, batch * RNN_KEPT * hidden, x);
        let [to_x, to_h] = [from_x_all, from_h_all].map(|all| row(all, step, batch * gates, x));
        match cell {
            RnnCell::Lstm => {
                let (c, dy_c) = (at(y_all, steps + step), at(dy, steps + step));
                let from = [kept, c, before(steps, &args[4])?, at(dy, step), dy_c, behind];
                with_context(device(x)?, |context| cells.lstm_back(context, from, [carry_at, to_x]))?;
            }
            RnnCell::Gru => {
                let from = [kept, before(0, &args[3])?, at(dy, step), behind];
                with_context(device(x)?, |context| cells.gru_back(context, from, [carry_at, to_x, to_h]))?;
            }
        }
        dh = Some(from_h.narrow(0, step * batch, batch)?.matmul(&w_hh)?);
    }
    let sums = Channels { images: steps * batch, channels: gates, plane: 1, format: ImageLayout::Nchw };
    let gradient = |(i, arg): (usize, &Tensor)| {
        let found = match i {
            _ if !wanted[i] => return Ok(None),
            0 => from_x.matmul(&w_ih)?.reshape((steps, batch, inputs))?.transpose(0, 1)?.contiguous()?,
            1 => from_x.t()?.matmul(&rows_of(shape, x)?)?,
            2 => {
                let before = Tensor::cat(&[&args[3].unsqueeze(0)?, &y.narrow(0, 0, steps - 1)?], 0)?;
                from_h.t()?.matmul(&before.reshape((steps * batch, hidden))?)?
            }
            3 => match (&dh, cell) {
                (Some(dh), RnnCell::Gru) => (dh + &carry)?,
                (Some(dh), RnnCell::Lstm) => dh.clone(),
                (None, _) => carry.clone(),
            },
            4 if cell == RnnCell::Lstm => carry.clone(),
            _ if Some(i) == b_ih => bias_back(arg, &from_x, sums)?,
            _ if Some(i) == b_hh => bias_back(arg, &from_h, sums)?,
            _ => return Ok(None),
        };
        found.to_dtype(arg.dtype()).map(Some)
    };
    args.iter().enumerate().map(gradient).collect()
}
