//! Data-parallel training: several processes (ranks), each with its share of every batch, one gradient.
//!
#![doc = include_str!("../rustdoc_links.md")]
#![doc = include_str!("../../docs/distributed.md")]

mod action;
mod agreement;
mod collective;
mod comm;
mod device;
mod digest;
mod gather;
mod launch;
mod launcher;
mod mean;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod replicas;
mod solo;
#[cfg(feature = "mpi")]
mod watchdog;

pub use collective::Collective;
pub use comm::{Comm, Communicator};
pub use launch::run;

pub(crate) use action::{Action, Failure};
