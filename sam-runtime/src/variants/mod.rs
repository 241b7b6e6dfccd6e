//! What sharpness-aware methods differ in, piece by piece.

mod combination;
mod direction;
mod functional;
mod metric;
mod noise;
mod published;
mod radius;
mod state;
mod when;

pub use combination::Combination;
pub use direction::{Direction, Velocities};
pub use functional::Functional;
pub use metric::{Mask, Metric, Scope};
pub use radius::Radius;
pub use when::When;

pub(crate) use combination::{mix_all, paired, ratio, second_order_direction};
pub(crate) use noise::mix;
pub(crate) use state::{Kept, State};

use candle_core::Var;
use candle_nn::VarMap;

/// The variables whose names are kept, in the order of their names: for [`Sam::vars`](crate::Sam::vars) and
/// [`Sam::metric_for`](crate::Sam::metric_for).
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{VarBuilder, VarMap};
/// use sam_runtime::Sam;
/// use sam_runtime::variants::named;
///
/// # fn main() -> Result<()> {
/// # let vars = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// # let _ = (candle_nn::linear(2, 2, vb.pp("head"))?, candle_nn::layer_norm(2, 1e-5, vb.pp("norm"))?);
/// // SAM-ON: only the normalisation layers are perturbed.
/// let sam = Sam::new(0.5).vars(named(&vars, |name| name.contains("norm")));
/// # assert_eq!(named(&vars, |name| name.contains("norm")).len(), 2);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn named(vars: &VarMap, keep: impl Fn(&str) -> bool) -> Vec<Var> {
    let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut named: Vec<_> = vars.iter().filter(|(name, _)| keep(name)).collect();
    named.sort_by_key(|(name, _)| *name);
    named.into_iter().map(|(_, var)| var.clone()).collect()
}
