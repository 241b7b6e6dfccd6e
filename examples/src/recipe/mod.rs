//! What a run is made of, as TOML: a base, what each cell of a table changes, and the recipe that comes out.

mod deviations;
mod fields;
mod place;
mod scale;
mod table;
mod told;

pub use deviations::{DEVIATIONS, Deviation, deviations};
pub use fields::{Changes, Recipe, keys};
pub use place::{Blame, line_of};
pub use scale::Scale;
pub use table::{Cell, Measure, Published, Table, table, tables};
pub use told::Told;
