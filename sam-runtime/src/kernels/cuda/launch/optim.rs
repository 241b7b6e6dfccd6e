//! Optimizers other than SGD over all variables: launches of `optim.cu`.

use candle_core::Result;

use super::params::{Entry, Table};
use super::{KernelArg, Launcher};
use crate::kernels::operands::AdamWStep;

/// One step of AdamW. Pointers of an entry: w, g, and the moments.
pub(crate) fn adamw(launcher: &mut impl Launcher, step: AdamWStep, entries: &[Entry]) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    let AdamWStep { keep, lerp, from_gradient, beta2, rate2, bias2_root, eps, minus_rate } = step;
    let constants = [
        KernelArg::F64(keep),
        KernelArg::F64(lerp),
        KernelArg::U32(from_gradient.into()),
        KernelArg::F64(beta2),
        KernelArg::F64(rate2),
        KernelArg::F64(bias2_root),
        KernelArg::F64(eps),
        KernelArg::F64(minus_rate),
    ];
    launcher.launch("adamw_step", table.chunks, &table.args(constants))
}

/// a ← d a + (1 - d) w. Pointers of an entry, which has the type of w: w and a.
pub(crate) fn ema(launcher: &mut impl Launcher, decay: f64, entries: &[Entry]) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    launcher.launch("ema_step", table.chunks, &table.args([KernelArg::F64(decay)]))
}

/// Each number to the nearest one within ±limit. Pointers of an entry: a.
pub(crate) fn clamp(launcher: &mut impl Launcher, limit: f64, entries: &[Entry]) -> Result<()> {
    let table = Table::write(launcher, entries)?;
    launcher.launch("clamp_to", table.chunks, &table.args([KernelArg::F64(limit)]))
}
