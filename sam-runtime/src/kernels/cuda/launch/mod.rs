//! Which kernels run, on how many blocks and with which arguments: plain arithmetic on sizes and addresses, without
//! CUDA.
//!
//! A [`Launcher`] runs the kernels: a CUDA device, or in the tests an emulator on the CPU.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod branch_mix;
pub(crate) mod channels;
pub(crate) mod cross_entropy;
pub(crate) mod depthwise;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod embedding;
pub(crate) mod group_norm;
pub(crate) mod im2col;
pub(crate) mod layer_norm;
pub(crate) mod optim;
pub(crate) mod params;
pub(crate) mod pool;
pub(crate) mod rnn;
pub(crate) mod rotary_emb;
mod rows;
#[allow(dead_code, reason = "some of it is for the kernels alone")]
pub(crate) mod shared;
pub(crate) mod softmax_dim;
pub(crate) mod upsample;

use candle_core::{DType, Result};

use self::shared::{
    AffineArgs, AttentionArgs, ChannelArgs, ConvArgs, DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_F64, GroupArgs, HeadArgs,
    MaskArgs, PoolArgs, TABLE_CHUNK,
};

/// A kernel argument. Addresses are `U64`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KernelArg<'a> {
    U32(u32),
    U64(u64),
    F64(f64),
    TableChunk(&'a TableChunk),
    Channels(ChannelArgs),
    Affine(AffineArgs),
    Pool(PoolArgs),
    Group(GroupArgs),
    Conv(ConvArgs),
    Attention(AttentionArgs),
    Heads(HeadArgs),
    Mask(MaskArgs),
}

pub(crate) type TableChunk = [u64; TABLE_CHUNK];

/// Persistent device memory, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scratch {
    /// The table of variables.
    Table,
    /// Partial results, one or two per block.
    Partials,
    /// An [`Outcome`](shared::Outcome).
    Outcome,
}

/// Runs kernels in order, in blocks of [`THREADS`](shared::THREADS) threads.
pub(crate) trait Launcher {
    /// Does nothing if there are no blocks.
    fn launch(&mut self, kernel: &'static str, blocks: usize, args: &[KernelArg<'_>]) -> Result<()>;

    /// The address of at least `words` 64-bit words, initially 0. It changes, and the content is lost, when the memory
    /// grows.
    fn scratch(&mut self, purpose: Scratch, words: usize) -> Result<u64>;
}

/// The code of a dtype in the kernels.
pub(crate) fn dtype_code(dtype: DType) -> Result<u32> {
    match dtype {
        DType::F32 => Ok(DTYPE_F32),
        DType::F64 => Ok(DTYPE_F64),
        DType::F16 => Ok(DTYPE_F16),
        DType::BF16 => Ok(DTYPE_BF16),
        dtype => candle_core::bail!("expected a tensor of f32, f64, f16 or bf16, found {dtype:?}"),
    }
}

/// Bytes per element of the dtype with this code.
fn bytes(code: u32) -> usize {
    match code {
        DTYPE_F64 => 8,
        DTYPE_F32 => 4,
        _ => 2,
    }
}

/// A size as the kernels take it.
pub(crate) fn to_u32(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| candle_core::Error::msg(format!("expected at most 2^32 elements, found {n}")))
}
