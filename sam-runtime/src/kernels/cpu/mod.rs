//! The arithmetic on the CPU.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod branch_mix;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
mod curves;
mod dot;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod elementwise_loss;
pub(crate) mod embedding;
mod exp;
pub(crate) mod float;
mod gemm;
pub(crate) mod group_norm;
mod lanes;
pub(crate) mod layer_norm;
pub(crate) mod matmul;
mod matrix;
pub(crate) mod optim;
pub(crate) mod params;
pub(crate) mod pool;
pub(crate) mod prelu;
mod real;
pub(crate) mod reduce;
pub(crate) mod rnn;
pub(crate) mod rotary_emb;
pub(crate) mod softmax;
pub(crate) mod softmax_dim;
mod storage_float;
pub(crate) mod upsample;
pub(crate) mod weight_decay;

use std::sync::LazyLock;

use pulp::Arch;

/// The widest vectors that this machine has.
static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
