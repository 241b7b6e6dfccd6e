//! The operation behind the recurrent layers, and how its output becomes states.

use std::ops::Range;
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::autograd::fused_op::FusedOp;
use crate::autograd::tape::apply;
use crate::kernels::cpu::float::{View, for_float, like, output, view};
use crate::kernels::cpu::rnn::{self, RnnArgs};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::prepare::{to_compute_dtype, weight_for};
use crate::kernels::shapes::{RnnCell, RnnShape};
use crate::kernels::{has_fused_kernels, portable};

#[derive(Clone, Debug)]
pub(super) struct Weights {
    cell: RnnCell,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Option<Tensor>,
    b_hh: Option<Tensor>,
}

impl Weights {
    /// The variables whose names end so.
    pub(super) fn new(
        cell: RnnCell,
        [in_dim, hidden_dim]: [usize; 2],
        end: &str,
        [w_ih, w_hh]: [Init; 2],
        [b_ih, b_hh]: [Option<Init>; 2],
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let gates = cell.gates() * hidden_dim;
        let w_ih = vb.get_with_hints((gates, in_dim), &format!("weight_ih_{end}"), w_ih)?;
        let w_hh = vb.get_with_hints((gates, hidden_dim), &format!("weight_hh_{end}"), w_hh)?;
        let bias = |what: &str, init: Option<Init>| {
            init.map(|init| vb.get_with_hints(gates, &format!("bias_{what}_{end}"), init)).transpose()
        };
        Ok(Self { cell, w_ih, w_hh, b_ih: bias("ih", b_ih)?, b_hh: bias("hh", b_hh)? })
    }

    /// What comes from the input and from the state, by candle's operations.
    pub(super) fn products(&self, x: &Tensor, h: &Tensor) -> Result<[Tensor; 2]> {
        let of = |x, w, bias: &Option<Tensor>| portable::rnn::product(x, w, bias.as_ref());
        Ok([of(x, &self.w_ih, &self.b_ih)?, of(h, &self.w_hh, &self.b_hh)?])
    }

    /// The h of all steps of (batch, steps, inputs) as (steps, batch, hidden), and behind them the c. None where there are no
    /// kernels, or nothing to compute.
    pub(super) fn run(&self, x: &Tensor, state: &[&Tensor]) -> Result<Option<Tensor>> {
        let ((batch, steps, inputs), (_, hidden)) = (x.dims3()?, self.w_hh.dims2()?);
        if !has_fused_kernels(x.device()) || batch * steps * inputs * hidden == 0 {
            return Ok(None);
        }
        if self.w_ih.dim(1)? != inputs {
            candle_core::bail!("expected inputs of {}, found {:?}", self.w_ih.dim(1)?, x.dims())
        }
        let wide = to_compute_dtype(x)?;
        let mut args = vec![wide, weight_for(x, &self.w_ih)?, weight_for(x, &self.w_hh)?];
        for state in state {
            if state.dims() != [batch, hidden] {
                candle_core::bail!("expected a state of {:?}, found {:?}", [batch, hidden], state.dims())
            }
            args.push(state.to_dtype(args[0].dtype())?.contiguous()?);
        }
        for bias in [&self.b_ih, &self.b_hh].into_iter().flatten() {
            args.push(weight_for(x, bias)?);
        }
        let shape = RnnShape { cell: self.cell, steps, batch, inputs, hidden };
        let biases = [self.b_ih.is_some(), self.b_hh.is_some()];
        let y = apply(Recurrent { shape, biases, kept: OnceLock::new() }, &args.iter().collect::<Vec<_>>())?;
        Ok(Some(y.to_dtype(x.dtype())?))
    }
}

/// The tensors in a range of the first dimension, without it.
///
/// The gradient of one is as large as all. A tree, whose nodes propagate the gradients of their parts, keeps that from being
/// quadratic in the number of steps.
pub(super) fn states_of(all: &Tensor, range: Range<usize>) -> Result<Vec<Tensor>> {
    const BRANCHES: usize = 4;
    if !all.track_op() {
        return range.map(|i| all.get(i)).collect();
    }
    let mut states = Vec::with_capacity(range.len());
    // What is left to be done, the first on top.
    let mut left = vec![(all.clone(), range)];
    while let Some((tensors, range)) = left.pop() {
        if range.len() == 1 {
            states.push(apply(Part { range, drop_dim: true }, &[&tensors])?);
            continue;
        }
        let tensors = if range.len() == tensors.dim(0)? {
            tensors
        } else {
            apply(Part { range: range.clone(), drop_dim: false }, &[&tensors])?
        };
        let (n, branches) = (range.len(), BRANCHES.min(range.len()));
        left.extend((0..branches).rev().map(|i| (tensors.clone(), i * n / branches..(i + 1) * n / branches)));
    }
    Ok(states)
}

/// Some of the tensors along the first dimension.
struct Part {
    range: Range<usize>,
    /// Of a single one.
    drop_dim: bool,
}

impl Part {
    fn shape(&self, x: &Tensor) -> Shape {
        let mut dims = x.dims().to_vec();
        if self.drop_dim {
            dims.remove(0);
        } else {
            dims[0] = self.range.len();
        }
        dims.into()
    }
}

impl FusedOp for Part {
    fn name(&self) -> &'static str {
        "state"
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let x = view(&args[0]);
        let row = args[0].dims()[1..].iter().product::<usize>();
        for_float!(args[0].dtype(), self.name(), |T| {
            let part = &x.elements::<T>()?[self.range.start * row..self.range.end * row];
            Ok(output(part.to_vec(), self.shape(&args[0])))
        })
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dy = if self.drop_dim { dy.unsqueeze(0)? } else { dy.clone() };
        let dx = dy.pad_with_zeros(0, self.range.start, args[0].dim(0)? - self.range.end)?;
        Ok(vec![Some(dx.contiguous()?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let part = args[0].narrow(0, self.range.start, self.range.len())?;
        cuda::copy(&part, self.shape(&args[0]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.backward(args, wanted, y, dy)
    }
}

/// Of x, the weights, the tensors of the first state, and the biases that there are.
struct Recurrent {
    shape: RnnShape,
    biases: [bool; 2],
    /// What the backward pass needs of the gates.
    kept: OnceLock<Tensor>,
}

impl Recurrent {
    fn output_shape(&self) -> Shape {
        let RnnShape { cell, steps, batch, hidden, .. } = self.shape;
        (cell.states() * steps, batch, hidden).into()
    }

    /// The indices of the biases.
    fn bias_args(&self) -> [Option<usize>; 2] {
        let first = 3 + self.shape.cell.states();
        let [ih, hh] = self.biases;
        [ih.then_some(first), hh.then_some(first + usize::from(ih))]
    }

    /// Calls a function with the arguments' elements.
    fn with_args<T: candle_core::WithDType, R>(
        &self,
        args: &[Tensor],
        f: impl FnOnce(&RnnArgs<'_, T>) -> Result<R>,
    ) -> Result<R> {
        let views: Vec<View<'_>> = args.iter().map(view).collect();
        let all = views.iter().map(View::elements::<T>).collect::<Result<Vec<_>>>()?;
        let [b_ih, b_hh] = self.bias_args().map(|bias| bias.map(|bias| all[bias]));
        let state = &all[3..3 + self.shape.cell.states()];
        f(&RnnArgs { x: all[0], w_ih: all[1], w_hh: all[2], state, b_ih, b_hh })
    }

    fn kept(&self) -> Result<&Tensor> {
        self.kept.get().map_or_else(|| candle_core::bail!("expected a forward pass before the backward pass"), Ok)
    }
}

impl FusedOp for Recurrent {
    fn name(&self) -> &'static str {
        match self.shape.cell {
            RnnCell::Lstm => "lstm",
            RnnCell::Gru => "gru",
        }
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        for_float!(args[0].dtype(), self.name(), |T| {
            let (y, kept) = self.with_args::<T, _>(args, |args| Ok(rnn::forward(&self.shape, args)))?;
            let n = kept.len();
            let kept = Tensor::from_vec(kept, n, &Device::Cpu)?;
            self.kept.get_or_init(|| kept);
            Ok(output(y, self.output_shape()))
        })
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (kept, y, dy) = (view(self.kept()?), view(y), view(dy));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (kept, y, dy) = (kept.elements::<T>()?, y.elements::<T>()?, dy.elements::<T>()?);
            let found = self.with_args::<T, _>(args, |args| Ok(rnn::backward(&self.shape, args, kept, y, dy)))?;
            let biases = [(self.biases[0], found.b_ih), (self.biases[1], found.b_hh)];
            let biases = biases.into_iter().filter_map(|(is_there, bias)| is_there.then_some(bias));
            let all = [found.x, found.w_ih, found.w_hh].into_iter().chain(found.state).chain(biases);
            let gradients = all.zip(args).zip(wanted);
            gradients.map(|((values, arg), wanted)| wanted.then(|| like(values, arg)).transpose()).collect()
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::rnn(&self.shape, args, self.bias_args(), &self.kept)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::rnn_back(&self.shape, args, self.bias_args(), self.kept()?, wanted, y, dy)
    }
}
