//! The arithmetic on the CPU.

pub(crate) mod batch_norm;
pub(crate) mod conv;
mod dot;
pub(crate) mod elementwise;
pub(crate) mod float;
pub(crate) mod matmul;
pub(crate) mod params;
pub(crate) mod softmax;

use std::sync::LazyLock;

use pulp::Arch;

/// The widest vectors that this machine has.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
