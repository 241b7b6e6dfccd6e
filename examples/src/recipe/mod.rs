//! Recipes in TOML: the settings of one training, and tables of them: a base, and overrides per cell.

mod bases;
mod check;
mod derived;
mod deviations;
mod keys;
mod patterns;
mod scale;
mod spans;
mod table;
mod tables;

pub(crate) use check::MOST_TOKENS;
pub use deviations::{DEVIATIONS, Deviation, deviations};
pub use keys::{AscentDirection, OptimizerKind, Recipe, RecipePatch, keys};
pub use scale::Scale;
pub use spans::{WithSpan, line_of};
pub use table::{Cell, Kept, KeptMeasure, Measure, Published, Table};
pub use tables::{table, tables};
