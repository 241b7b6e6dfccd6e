//! Launches of `layer_norm.cu`.

use candle_core::Result;

use super::shared::{AffineArgs, NORM_COLUMNS, THREADS};
use super::{KernelArg, Launcher, Scratch, rows, to_u32};

/// Blocks that sums over rows aim at: enough to fill a large GPU.
const TARGET_BLOCKS: usize = 512;

/// Rows that a block adds up at least.
const ROWS_PER_BLOCK: usize = 64;

/// Layer or RMS normalization of rows. γ and β are of the dtype of x, or f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNorm {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) eps: f64,
    pub(crate) centered: bool,
    pub(crate) dtype: u32,
    pub(crate) affine_dtype: u32,
    /// γ
    pub(crate) weight: u64,
    /// β, or 0.
    pub(crate) bias: u64,
    /// Memory for [`ROW_STATISTICS`](super::shared::ROW_STATISTICS) f64 per row.
    pub(crate) statistics: u64,
}

impl LayerNorm {
    fn affine(&self) -> KernelArg<'static> {
        KernelArg::Affine(AffineArgs { dtype: self.affine_dtype, weight: self.weight, bias: self.bias })
    }

    /// y, and the statistics.
    pub(crate) fn forward(&self, launcher: &mut impl Launcher, [x, y]: [u64; 2]) -> Result<()> {
        let rows_args = rows::args(self.dtype, self.rows, self.columns, &[x, y])?;
        let args = [
            KernelArg::F64(self.eps),
            KernelArg::U32(self.centered.into()),
            self.affine(),
            KernelArg::U64(self.statistics),
            KernelArg::U64(y),
        ];
        let args = [&[KernelArg::U32(self.dtype), KernelArg::U64(x)], &rows_args[..], &args[..]].concat();
        launcher.launch("layer_norm", rows::blocks(self.rows, self.columns), &args)
    }

    /// The gradients of x, γ and β. Those that are not wanted are 0.
    pub(crate) fn backward(
        &self,
        launcher: &mut impl Launcher,
        [x, dy]: [u64; 2],
        [dx, d_weight, d_bias]: [u64; 3],
    ) -> Result<()> {
        let inputs = [KernelArg::U32(self.dtype), KernelArg::U64(x), KernelArg::U64(dy)];
        if dx != 0 {
            let rows_args = rows::args(self.dtype, self.rows, self.columns, &[x, dy, dx])?;
            let args = [
                KernelArg::U32(self.centered.into()),
                self.affine(),
                KernelArg::U64(self.statistics),
                KernelArg::U64(dx),
            ];
            let args = [&inputs[..], &rows_args, &args].concat();
            launcher.launch("layer_norm_backward", rows::blocks(self.rows, self.columns), &args)?;
        }
        if d_weight == 0 && d_bias == 0 {
            return Ok(());
        }
        let strips = self.columns.div_ceil(NORM_COLUMNS);
        let splits = TARGET_BLOCKS.div_ceil(strips.max(1)).min(self.rows.div_ceil(ROWS_PER_BLOCK)).max(1);
        let partials = KernelArg::U64(launcher.scratch(Scratch::Partials, 2 * splits * self.columns)?);
        let (columns, splits_arg) = (KernelArg::U32(to_u32(self.columns)?), KernelArg::U32(to_u32(splits)?));
        let sizes = [KernelArg::U64(self.rows as u64), columns, splits_arg, KernelArg::U64(self.statistics), partials];
        launcher.launch("layer_norm_columns", strips * splits, &[&inputs[..], &sizes].concat())?;
        let outputs = [KernelArg::U32(self.affine_dtype), KernelArg::U64(d_weight), KernelArg::U64(d_bias)];
        let args = [&[partials, columns, splits_arg], &outputs[..]].concat();
        launcher.launch("layer_norm_affine", self.columns.div_ceil(THREADS), &args)
    }
}
