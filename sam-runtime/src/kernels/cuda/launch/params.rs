//! SAM's arithmetic over all variables, as launches of the kernels of `sam.cu`.

use candle_core::Result;

use super::{Arg, Machine, Memory, PIECE, word};
use crate::core::norm_ball::Ball;
use crate::core::norm_ball::Power;
use crate::kernels::operands::SgdStep;

/// Elements that one block takes.
const CHUNK: usize = 1 << 14;

/// Columns of a table before those of the pointers.
const COLUMNS: usize = 3;

/// A variable, or another tensor that is worked on: contiguous memory.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Of the tensors, see [`code`](super::code).
    pub(crate) dtype: u32,
    /// Elements.
    pub(crate) size: usize,
    pub(crate) metric: Metric,
    pub(crate) pointers: Vec<u64>,
}

/// T, by which the ball is scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Metric {
    One,
    /// |w| + η
    Weights(f64),
    /// The address of a number for each element, f64 for variables of f64 and f32 for others.
    Given(u64),
    /// The address of one such number for all.
    Number(u64),
}

impl Metric {
    fn code(self) -> u64 {
        match self {
            Self::One => 0,
            Self::Weights(_) => 1,
            Self::Given(_) => 2,
            Self::Number(_) => 3,
        }
    }

    fn value(self) -> u64 {
        match self {
            Self::One => 0,
            Self::Weights(eta) => eta.to_bits(),
            Self::Given(address) | Self::Number(address) => address,
        }
    }
}

/// A table in the machine's memory.
struct Table {
    address: u64,
    count: u32,
    /// Blocks that a launch over all entries has.
    chunks: usize,
}

impl Table {
    fn write(machine: &mut impl Machine, entries: &[Entry]) -> Result<Self> {
        let (count, pointers) = (entries.len(), entries.first().map_or(0, |entry| entry.pointers.len()));
        let words = count * (COLUMNS + pointers);
        let mut columns = vec![0; words];
        let mut chunks = 0;
        for (i, entry) in entries.iter().enumerate() {
            columns[i] = chunks as u64;
            columns[count + i] = entry.size as u64;
            columns[2 * count + i] = u64::from(entry.dtype) | entry.metric.code() << 8;
            for (k, pointer) in entry.pointers.iter().enumerate() {
                columns[(COLUMNS + k) * count + i] = *pointer;
            }
            chunks += entry.size.div_ceil(CHUNK);
        }
        let address = machine.memory(Memory::Table, words)?;
        for (i, words) in columns.chunks(PIECE).enumerate() {
            let mut piece = [0; PIECE];
            piece[..words.len()].copy_from_slice(words);
            let (begin, count) = (word(i * PIECE)?, word(words.len())?);
            machine.launch(
                "sam_table",
                1,
                &[Arg::U64(address), Arg::U32(begin), Arg::U32(count), Arg::Piece(&piece)],
            )?;
        }
        Ok(Self { address, count: word(count)?, chunks })
    }

    fn args<const N: usize>(&self, more: [Arg<'static>; N]) -> Vec<Arg<'static>> {
        [Arg::U64(self.address), Arg::U32(self.count)].into_iter().chain(more).collect()
    }
}

/// A power by the code that the kernels know, and its exponent.
fn power(power: Power) -> [Arg<'static>; 2] {
    let (kind, exponent) = match power {
        Power::One => (0, 0.0),
        Power::Same => (1, 1.0),
        Power::Square => (2, 2.0),
        Power::Root => (3, 0.5),
        Power::Largest => (4, f64::INFINITY),
        Power::Whole(e) => (5, f64::from(e)),
        Power::Real(e) => (5, e),
    };
    [Arg::U32(kind), Arg::F64(exponent)]
}

/// g ← w + ε̂. Pointers of an entry: w, g, and, where any entry has them, the place of the metric, and a mask or 0.
pub(crate) fn perturb(machine: &mut impl Machine, ball: Ball, mut entries: Vec<Entry>) -> Result<()> {
    let masked = entries.iter().any(|entry| entry.pointers.get(2).is_some_and(|mask| *mask != 0));
    let scaled = masked || entries.iter().any(|entry| !matches!(entry.metric, Metric::One));
    for entry in &mut entries {
        let mask = entry.pointers.get(2).copied().unwrap_or_default();
        entry.pointers.truncate(2);
        if scaled {
            entry.pointers.push(entry.metric.value());
        }
        if masked {
            entry.pointers.push(mask);
        }
    }
    let table = Table::write(machine, &entries)?;
    let (parts, outcome) = (machine.memory(Memory::Parts, 2 * table.chunks)?, machine.memory(Memory::Outcome, 4)?);
    let (parts, outcome) = (Arg::U64(parts), Arg::U64(outcome));
    let (pointers, chunks) = (Arg::U32(2 + u32::from(scaled) + u32::from(masked)), Arg::U32(word(table.chunks)?));
    let (norm, rho) = (ball.norm(), Arg::F64(ball.rho));
    let straight = !ball.normalised || norm.size() == Power::Same;
    let kind = match norm.size() {
        _ if !ball.normalised => 0,
        Power::Same => 1,
        Power::One => 2,
        _ => 3,
    };

    machine.launch("sam_measure", table.chunks, &table.args([pointers, parts]))?;
    machine.launch("sam_scale", 1, &[parts, chunks, Arg::U32(kind), rho, outcome])?;
    // The squares of f64 may overflow, and then they are taken again as ratios.
    if kind == 3 || kind == 1 && entries.iter().any(|entry| entry.dtype == 1) {
        let [power, exponent] = power(norm.term());
        let terms = table.args([pointers, power, exponent, outcome, parts]);
        machine.launch("sam_terms", table.chunks, &terms)?;
        machine.launch("sam_scale_of_terms", 1, &[parts, chunks, Arg::F64(norm.root()), rho, outcome])?;
    }
    if straight {
        machine.launch("sam_climb", table.chunks, &table.args([pointers, outcome]))
    } else {
        let [power, exponent] = power(norm.size());
        machine.launch("sam_climb_bent", table.chunks, &table.args([pointers, power, exponent, outcome]))
    }
}

/// A step of stochastic gradient descent. Pointers of an entry: w, g, and its velocity or 0.
pub(crate) fn sgd(machine: &mut impl Machine, params: SgdStep, entries: &[Entry]) -> Result<()> {
    let table = Table::write(machine, entries)?;
    let SgdStep { lr, momentum, nesterov, weight_decay } = params;
    let constants = [Arg::F64(lr), Arg::F64(momentum), Arg::F64(weight_decay), Arg::U32(nesterov.into())];
    machine.launch("sam_sgd", table.chunks, &table.args(constants))
}

/// Σ a b over all entries, times a factor, to a number of this type at `total`. Pointers of an entry: a, b.
pub(crate) fn dot(machine: &mut impl Machine, entries: &[Entry], factor: f64, dtype: u32, total: u64) -> Result<()> {
    let table = Table::write(machine, entries)?;
    let parts = Arg::U64(machine.memory(Memory::Parts, 2 * table.chunks)?);
    machine.launch("sam_dot", table.chunks, &table.args([parts]))?;
    let chunks = Arg::U32(word(table.chunks)?);
    machine.launch("sam_total", 1, &[parts, chunks, Arg::F64(factor), Arg::U32(dtype), Arg::U64(total)])
}

/// a ← α a + β b for all entries, with numbers of this type at `alpha` and `beta`. Pointers of an entry: a, b.
pub(crate) fn mix(machine: &mut impl Machine, entries: &[Entry], dtype: u32, [alpha, beta]: [u64; 2]) -> Result<()> {
    let table = Table::write(machine, entries)?;
    let numbers = [Arg::U32(dtype), Arg::U64(alpha), Arg::U64(beta)];
    machine.launch("sam_mix", table.chunks, &table.args(numbers))
}
