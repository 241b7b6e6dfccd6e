//! What the command lines of all programs have in common.

pub mod allocator;
pub mod console;
pub mod device_args;
pub mod options;
pub mod out;
pub mod progress;
pub mod ranks;
pub mod recipe_args;
pub mod repetitions;
