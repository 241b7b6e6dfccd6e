//! Launches of `embedding.cu`.

use candle_core::Result;

use super::shared::THREADS;
use super::{KernelArg, Launcher, Scratch, to_u32};

/// The gradient of a table (rows, columns) from which rows were taken by i64 ids, one for each token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) dtype: u32,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) tokens: usize,
}

impl Table {
    /// Writes the rows that have a gradient. The table has been cleared.
    pub(crate) fn backward(&self, launcher: &mut impl Launcher, [ids, dy, table]: [u64; 3]) -> Result<()> {
        let order = KernelArg::U64(launcher.scratch(Scratch::Partials, self.tokens)?);
        let (ids, rows) = (KernelArg::U64(ids), KernelArg::U32(to_u32(self.rows)?));
        let args = [ids, KernelArg::U32(to_u32(self.tokens)?), rows, order];
        launcher.launch("embedding_order", self.tokens.div_ceil(THREADS), &args)?;
        let across = self.columns.div_ceil(THREADS);
        let args = [
            KernelArg::U32(self.dtype),
            order,
            ids,
            rows,
            KernelArg::U32(to_u32(self.columns)?),
            KernelArg::U32(to_u32(across)?),
            KernelArg::U64(dy),
            KernelArg::U64(table),
        ];
        launcher.launch("embedding_backward", self.tokens * across, &args)
    }
}
