//! What the command lines of all programs have in common.

pub mod console;
pub mod options;
pub mod recipe_args;
