//! SAM's arithmetic and SGD over all variables: launches of `params.cu`.

use std::mem::offset_of;

use candle_core::Result;

use super::shared::{
    CHUNK, COLUMN_FIRST_BLOCK, COLUMN_KIND, COLUMN_POINTER, COLUMN_SIZE, DTYPE_F64, METRIC_GIVEN, METRIC_NUMBER,
    METRIC_ONE, METRIC_WEIGHTS, NORM_INFINITY, NORM_L2, NORM_LP, NORM_NONE, Outcome, POWER_INFINITY, POWER_ONE,
    POWER_REAL, POWER_ROOT, POWER_SQUARE, POWER_ZERO, TABLE_CHUNK,
};
use super::{KernelArg, Launcher, Scratch, to_u32};
use crate::core::norm_ball::Ball;
use crate::core::norm_ball::Power;
use crate::kernels::operands::SgdStep;

/// 64-bit words of an outcome.
pub(crate) const OUTCOME_WORDS: usize = size_of::<Outcome>() / size_of::<u64>();

/// The word of an outcome that counts gradients that were not finite.
pub(crate) const NOT_FINITE: usize = offset_of!(Outcome, not_finite) / size_of::<u64>();

/// Columns of a table before those of the pointers.
const COLUMNS: usize = COLUMN_POINTER as usize;

/// A tensor, or several of one dtype and size, in the table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The [`dtype_code`](super::dtype_code) of the tensors.
    pub(crate) dtype: u32,
    /// Elements.
    pub(crate) size: usize,
    pub(crate) metric: Metric,
    pub(crate) pointers: Vec<u64>,
}

/// The metric T, which scales the ball.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Metric {
    One,
    /// |w| + η
    Weights(f64),
    /// The address of a number for each element, in f64 for f64 variables and f32 for others.
    Given(u64),
    /// The address of one such number for all.
    Number(u64),
}

impl Metric {
    fn code(self) -> u32 {
        match self {
            Self::One => METRIC_ONE,
            Self::Weights(_) => METRIC_WEIGHTS,
            Self::Given(_) => METRIC_GIVEN,
            Self::Number(_) => METRIC_NUMBER,
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

/// A table on the device.
pub(super) struct Table {
    address: u64,
    count: u32,
    /// Blocks of a launch over all entries.
    pub(super) chunks: usize,
}

impl Table {
    pub(super) fn write(launcher: &mut impl Launcher, entries: &[Entry]) -> Result<Self> {
        let (count, pointers) = (entries.len(), entries.first().map_or(0, |entry| entry.pointers.len()));
        let words = count * (COLUMNS + pointers);
        let mut columns = vec![0; words];
        let mut chunks = 0;
        for (i, entry) in entries.iter().enumerate() {
            let mut set = |column: usize, word: u64| columns[column * count + i] = word;
            set(COLUMN_FIRST_BLOCK as usize, chunks as u64);
            set(COLUMN_SIZE as usize, entry.size as u64);
            set(COLUMN_KIND as usize, (entry.dtype | entry.metric.code() << 8).into());
            for (k, pointer) in entry.pointers.iter().enumerate() {
                set(COLUMNS + k, *pointer);
            }
            chunks += entry.size.div_ceil(CHUNK);
        }
        let address = launcher.scratch(Scratch::Table, words)?;
        for (i, words) in columns.chunks(TABLE_CHUNK).enumerate() {
            let mut chunk = [0; TABLE_CHUNK];
            chunk[..words.len()].copy_from_slice(words);
            let (begin, count) = (to_u32(i * TABLE_CHUNK)?, to_u32(words.len())?);
            launcher.launch(
                "write_table",
                1,
                &[KernelArg::U64(address), KernelArg::U32(begin), KernelArg::U32(count), KernelArg::TableChunk(&chunk)],
            )?;
        }
        Ok(Self { address, count: to_u32(count)?, chunks })
    }

    pub(super) fn args<const N: usize>(&self, more: [KernelArg<'static>; N]) -> Vec<KernelArg<'static>> {
        [KernelArg::U64(self.address), KernelArg::U32(self.count)].into_iter().chain(more).collect()
    }
}

/// The code of a power, and its exponent.
fn power(power: Power) -> [KernelArg<'static>; 2] {
    let (kind, exponent) = match power {
        Power::One => (POWER_ZERO, 0.0),
        Power::Same => (POWER_ONE, 1.0),
        Power::Square => (POWER_SQUARE, 2.0),
        Power::Root => (POWER_ROOT, 0.5),
        Power::Largest => (POWER_INFINITY, f64::INFINITY),
        Power::Whole(e) => (POWER_REAL, f64::from(e)),
        Power::Real(e) => (POWER_REAL, e),
    };
    [KernelArg::U32(kind), KernelArg::F64(exponent)]
}

/// g ← w + ε̂. Pointers of an entry: w, g, and a mask or 0.
pub(crate) fn perturb(launcher: &mut impl Launcher, ball: Ball, mut entries: Vec<Entry>) -> Result<()> {
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
    let table = Table::write(launcher, &entries)?;
    let (partials, outcome) =
        (launcher.scratch(Scratch::Partials, 2 * table.chunks)?, launcher.scratch(Scratch::Outcome, OUTCOME_WORDS)?);
    let (partials, outcome) = (KernelArg::U64(partials), KernelArg::U64(outcome));
    let (pointers, chunks) =
        (KernelArg::U32(2 + u32::from(scaled) + u32::from(masked)), KernelArg::U32(to_u32(table.chunks)?));
    let (norm, rho) = (ball.norm(), KernelArg::F64(ball.rho));
    let linear = !ball.normalized || norm.size() == Power::Same;
    let kind = match norm.size() {
        _ if !ball.normalized => NORM_NONE,
        Power::Same => NORM_L2,
        Power::One => NORM_INFINITY,
        _ => NORM_LP,
    };

    launcher.launch("measure_gradient", table.chunks, &table.args([pointers, partials]))?;
    launcher.launch("perturbation_scale", 1, &[partials, chunks, KernelArg::U32(kind), rho, outcome])?;
    // The squares of f64 may overflow; then the sum is taken over ratios instead.
    if kind == NORM_LP || kind == NORM_L2 && entries.iter().any(|entry| entry.dtype == DTYPE_F64) {
        let [power, exponent] = power(norm.term());
        let terms = table.args([pointers, power, exponent, outcome, partials]);
        launcher.launch("lp_terms", table.chunks, &terms)?;
        launcher.launch("lp_scale", 1, &[partials, chunks, KernelArg::F64(norm.root()), rho, outcome])?;
    }
    if linear {
        launcher.launch("perturb_linear", table.chunks, &table.args([pointers, outcome]))
    } else {
        let [power, exponent] = power(norm.size());
        launcher.launch("perturb_lp", table.chunks, &table.args([pointers, power, exponent, outcome]))
    }
}

/// One SGD step. Pointers of an entry: w, g, and the velocity or 0.
pub(crate) fn sgd(launcher: &mut impl Launcher, params: SgdStep, entries: &[Entry]) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    let SgdStep { lr, momentum, nesterov, weight_decay } = params;
    let constants =
        [KernelArg::F64(lr), KernelArg::F64(momentum), KernelArg::F64(weight_decay), KernelArg::U32(nesterov.into())];
    launcher.launch("sgd_step", table.chunks, &table.args(constants))
}

/// Σ a b over all entries, times a factor, to a number of this dtype at `total`. Pointers of an entry: a, b.
pub(crate) fn dot(launcher: &mut impl Launcher, entries: &[Entry], factor: f64, dtype: u32, total: u64) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    let partials = KernelArg::U64(launcher.scratch(Scratch::Partials, 2 * table.chunks)?);
    launcher.launch("dot_chunks", table.chunks, &table.args([partials]))?;
    let chunks = KernelArg::U32(to_u32(table.chunks)?);
    launcher.launch(
        "sum_chunks",
        1,
        &[partials, chunks, KernelArg::F64(factor), KernelArg::U32(dtype), KernelArg::U64(total)],
    )
}

/// a ← α a + β b for all entries, with numbers of this dtype at `alpha` and `beta`. Pointers of an entry: a, b.
pub(crate) fn mix(launcher: &mut impl Launcher, entries: &[Entry], dtype: u32, [alpha, beta]: [u64; 2]) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    let numbers = [KernelArg::U32(dtype), KernelArg::U64(alpha), KernelArg::U64(beta)];
    launcher.launch("axpby", table.chunks, &table.args(numbers))
}
