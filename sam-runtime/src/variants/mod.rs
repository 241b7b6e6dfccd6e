//! The pieces that sharpness-aware methods differ in, and the published methods.
//!
#![doc = include_str!("../rustdoc_links.md")]
#![doc = include_str!("../../docs/variants.md")]

mod combination;
mod direction;
mod factor;
mod functional;
mod metric;
mod radius;
mod schedule;
mod state;

pub use crate::optim::MomentumBuffers;
pub use combination::Combination;
pub use direction::Direction;
pub use functional::FunctionalSam;
pub use metric::{Mask, Metric, Scope};
pub use radius::{Radius, Rho};
pub use schedule::Schedule;

pub(crate) use combination::second_order_direction;
pub(crate) use factor::LossFactor;
pub(crate) use state::State;

use candle_core::Var;
use candle_nn::VarMap;

use crate::core::names::Names;

/// The variables whose names are kept, in the order of their names: for [`Sam::vars`](crate::Sam::vars) and
/// [`Sam::metric_for`](crate::Sam::metric_for). Also [registers](crate::name_variables) the names.
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
/// // SAM-ON: only the normalization layers are perturbed.
/// let sam = Sam::new(0.5).vars(named(&vars, |name| name.contains("norm")));
/// # assert_eq!(named(&vars, |name| name.contains("norm")).len(), 2);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn named(vars: &VarMap, keep: impl Fn(&str) -> bool) -> Vec<Var> {
    Names::of(vars).into_vars().into_iter().filter(|(name, _)| keep(name)).map(|(_, var)| var).collect()
}
