//! Files that programs write: atomically, line by line, under locks; tables and charts.

pub mod atomic;
pub(crate) mod files;
pub mod jsonl;
pub mod lease;
mod lease_file;
pub mod plot;
pub mod table;
pub mod tensorboard;
