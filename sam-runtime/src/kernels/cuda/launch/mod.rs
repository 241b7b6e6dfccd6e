//! What a GPU is told to do, apart from the GPU: which kernels run, on how many blocks, with which arguments.
//!
//! A [`Machine`] runs them: a CUDA device, or in the tests the machine's own processor, which a C++ compiler has compiled
//! the same sources for. Memory is named by addresses here, and everything in this folder is plain arithmetic.

pub(crate) mod batch_norm;
pub(crate) mod branch_mix;
pub(crate) mod channels;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod im2col;
pub(crate) mod params;
pub(crate) mod pool;
#[allow(dead_code, reason = "some of it is for the kernels alone")]
pub(crate) mod shared;

use candle_core::{DType, Result};

use self::shared::{
    AffineArgs, ChannelArgs, ConvArgs, DTYPE_BF16, DTYPE_F16, DTYPE_F32, DTYPE_F64, PoolArgs, TABLE_CHUNK,
};

/// An argument of a kernel. Addresses are `U64`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KernelArg<'a> {
    U32(u32),
    U64(u64),
    F64(f64),
    TableChunk(&'a TableChunk),
    Channels(ChannelArgs),
    Affine(AffineArgs),
    Pool(PoolArgs),
    Conv(ConvArgs),
}

pub(crate) type TableChunk = [u64; TABLE_CHUNK];

/// Memory of a machine that stays, for a purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scratch {
    /// Where variables are.
    Table,
    /// What blocks have come to, each by itself.
    Partials,
    /// What has come of a gradient: max, scale, whether there is more to do, and how many were not finite so far.
    Outcome,
}

/// Something that runs kernels one after the other, in blocks of 256 threads.
pub(crate) trait Launcher {
    /// With no blocks nothing is done.
    fn launch(&mut self, kernel: &'static str, blocks: usize, args: &[KernelArg<'_>]) -> Result<()>;

    /// The address of at least so many words, which are 0 at first. It is another one where more are asked for than before.
    fn scratch(&mut self, purpose: Scratch, words: usize) -> Result<u64>;
}

/// A type by the code that the kernels know.
pub(crate) fn dtype_code(dtype: DType) -> Result<u32> {
    match dtype {
        DType::F32 => Ok(DTYPE_F32),
        DType::F64 => Ok(DTYPE_F64),
        DType::F16 => Ok(DTYPE_F16),
        DType::BF16 => Ok(DTYPE_BF16),
        dtype => candle_core::bail!("expected a tensor of f32, f64, f16 or bf16, found {dtype:?}"),
    }
}

/// Bytes of an element of the type with this code.
fn bytes(code: u32) -> usize {
    match code {
        DTYPE_F64 => 8,
        DTYPE_F32 => 4,
        _ => 2,
    }
}

/// A number as the kernels take it.
pub(crate) fn to_u32(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| candle_core::Error::msg(format!("expected at most 2^32 elements, found {n}")))
}
