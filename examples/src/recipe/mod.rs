//! What a run is made of, as TOML: a base, what each cell of a table changes, and the recipe that comes out.

mod deviations;
mod fields;
mod scale;
mod spans;
mod table;

pub use deviations::{DEVIATIONS, Deviation, deviations};
pub use fields::{Changes, Recipe, keys};
pub use scale::Scale;
pub use spans::{Blame, line_of};
pub use table::{Cell, Measure, Published, Table, table, tables};
