//! Launches of `rnn.cu`: the cells of a batch, at one step.

use candle_core::Result;

use super::shared::THREADS;
use super::{KernelArg, Launcher, to_u32};

/// Sequences, and cells of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells {
    pub(crate) batch: usize,
    pub(crate) hidden: usize,
    pub(crate) dtype: u32,
}

/// What the gates are made of: what comes from the input and from the state, and a bias with its dtype (address 0: none).
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateSources {
    pub(crate) from_x: u64,
    pub(crate) from_h: u64,
    pub(crate) bias: (u32, u64),
}

impl Cells {
    fn run(self, launcher: &mut impl Launcher, kernel: &'static str, from: &[KernelArg<'_>], to: &[u64]) -> Result<()> {
        let n = self.batch * self.hidden;
        let mut args = vec![KernelArg::U32(self.dtype), KernelArg::U32(to_u32(self.hidden)?)];
        args.extend_from_slice(from);
        args.push(KernelArg::U64(n as u64));
        args.extend(to.iter().map(|address| KernelArg::U64(*address)));
        launcher.launch(kernel, n.div_ceil(THREADS), &args)
    }

    fn gates(sources: GateSources, before: u64) -> [KernelArg<'static>; 5] {
        let GateSources { from_x, from_h, bias: (bias_type, bias) } = sources;
        let [from_x, from_h, bias, before] = [from_x, from_h, bias, before].map(KernelArg::U64);
        [from_x, from_h, KernelArg::U32(bias_type), bias, before]
    }

    /// `to`: the gates, c, and h twice.
    pub(crate) fn lstm(
        self,
        launcher: &mut impl Launcher,
        sources: GateSources,
        before: u64,
        to: [u64; 4],
    ) -> Result<()> {
        self.run(launcher, "lstm_cell", &Self::gates(sources, before), &to)
    }

    /// `from`: the gates, c and the one before, the gradients of h and c, and that of h from the step behind or 0. `to`: the gradient
    /// of c, and those of the gates.
    pub(crate) fn lstm_back(self, launcher: &mut impl Launcher, from: [u64; 6], to: [u64; 2]) -> Result<()> {
        self.run(launcher, "lstm_cell_backward", &from.map(KernelArg::U64), &to)
    }

    /// `to`: what the backward pass needs, and h twice.
    pub(crate) fn gru(
        self,
        launcher: &mut impl Launcher,
        sources: GateSources,
        before: u64,
        to: [u64; 3],
    ) -> Result<()> {
        self.run(launcher, "gru_cell", &Self::gates(sources, before), &to)
    }

    /// `from`: what was kept, the h before, the gradient of h, and that from the step behind or 0. `to`: the share of the h before,
    /// and the gradients of what came from the input and from the state.
    pub(crate) fn gru_back(self, launcher: &mut impl Launcher, from: [u64; 4], to: [u64; 3]) -> Result<()> {
        self.run(launcher, "gru_cell_backward", &from.map(KernelArg::U64), &to)
    }
}
