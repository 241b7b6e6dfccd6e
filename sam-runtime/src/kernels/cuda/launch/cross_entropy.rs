//! Cross entropy.

use candle_core::Result;

use super::{Arg, Machine, Memory, word};

/// What the rows of logits should be: labels in i64, of which a share is spread evenly, or probabilities.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Labels { address: u64, smoothing: f64 },
    Probabilities { address: u64, dtype: u32 },
}

/// The mean cross entropy of logits (rows, classes).
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    pub(crate) rows: usize,
    pub(crate) classes: usize,
    pub(crate) dtype: u32,
    pub(crate) target: Target,
}

impl CrossEntropy {
    fn args(&self, logits: u64) -> Result<[Arg<'static>; 7]> {
        let (labels, dtype, probabilities, smoothing) = match self.target {
            Target::Labels { address, smoothing } => (address, 0, 0, smoothing),
            Target::Probabilities { address, dtype } => (0, dtype, address, 0.0),
        };
        Ok([
            Arg::U32(self.dtype),
            Arg::U64(logits),
            Arg::U64(labels),
            Arg::U32(dtype),
            Arg::U64(probabilities),
            Arg::F64(smoothing),
            Arg::U32(word(self.classes)?),
        ])
    }

    /// A label that is no class makes the loss NaN: looking would wait for the device.
    pub(crate) fn forward(&self, machine: &mut impl Machine, [logits, loss]: [u64; 2]) -> Result<()> {
        let costs = Arg::U64(machine.memory(Memory::Parts, self.rows)?);
        machine.launch("nn_costs", self.rows, &[&self.args(logits)?[..], &[costs]].concat())?;
        let args = [costs, Arg::U32(word(self.rows)?), Arg::U32(self.dtype), Arg::U64(loss)];
        machine.launch("nn_mean_cost", 1, &args)
    }

    pub(crate) fn backward(&self, machine: &mut impl Machine, [logits, dy, dx]: [u64; 3]) -> Result<()> {
        let more = [Arg::U32(word(self.rows)?), Arg::U64(dy), Arg::U64(dx)];
        machine.launch("nn_costs_back", self.rows, &[&self.args(logits)?[..], &more].concat())
    }
}
