//! The arithmetic on the CPU.

pub(crate) mod batch_norm;
pub(crate) mod branch_mix;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
mod dot;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod matmul;
pub(crate) mod params;
pub(crate) mod pool;
pub(crate) mod reduce;
pub(crate) mod rnn;
pub(crate) mod softmax;
mod storage_float;
pub(crate) mod upsample;
pub(crate) mod weight_decay;

use std::sync::LazyLock;

use pulp::Arch;

/// The widest vectors that this machine has.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
