//! Files that programs write: TensorBoard events and leases of folders.

pub mod lease;
pub mod tensorboard;
