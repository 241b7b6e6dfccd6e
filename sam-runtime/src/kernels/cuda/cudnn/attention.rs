//! Attention by cuDNN's fused kernels, in bf16 and f16.
//!
//! Without a plan, and for what is left to this crate's own kernels, the functions return false: tensors of a mask, where
//! a query may see no key, dropout, whose random numbers are this crate's, soft caps, and short texts.

use std::ptr::from_ref;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cudnn::result::get_version;
use candle_core::{DType, Result};

use super::attention_graph::{
    Causal, DELTAS, DK, DQ, DV, DY, K, LOGS, MINUS_INFINITY, OFFSET, ONE, Operation, Q, SCALE, V, Y,
};
use super::plan::{ALIGNMENT, Operand};
use crate::kernels::cuda::context::CudaContext;
use crate::kernels::cuda::launch::attention::{Attention, Given, Rows};

/// Earlier releases give wrong results for some lengths, around which NVIDIA's frontend works.
const OLDEST: usize = 91600;

/// Tokens from which on it is used. Text that grows by a token at a time would need a plan for each length.
const SHORTEST: usize = 32;

/// Dimensions of a head, at most.
const WIDEST: usize = 256;

/// The numbers that a plan reads from the host.
struct Numbers {
    scale: f32,
    minus_infinity: f32,
    one: f32,
    offset: i32,
}

/// The output, and the logarithm of each row's sum in f32.
pub(crate) fn forward(
    context: &mut CudaContext,
    dtype: DType,
    attention: &Attention<'_>,
    y: Rows,
    logs: u64,
) -> Result<bool> {
    let Some(operation) = operation(dtype, attention, y, None) else { return Ok(false) };
    run(context, &operation, attention, &[operand(Y, y), (LOGS, logs)])
}

/// The gradients of q, k and v.
pub(crate) fn backward(
    context: &mut CudaContext,
    dtype: DType,
    attention: &Attention<'_>,
    y: u64,
    given: &Given,
    gradients: [Rows; 3],
) -> Result<bool> {
    // Elsewhere these plans add in any order, or it is not known.
    if context.stream.context().compute_capability().w()?.0 != 9 {
        return Ok(false);
    }
    let operation = operation(dtype, attention, given.dy, Some(gradients));
    let Some(operation) = operation.filter(|_| y.is_multiple_of(ALIGNMENT as u64)) else { return Ok(false) };
    let [dq, dk, dv] = gradients;
    let others = [
        (Y, y),
        operand(DY, given.dy),
        (LOGS, given.logs),
        (DELTAS, given.deltas),
        operand(DQ, dq),
        operand(DK, dk),
        operand(DV, dv),
    ];
    run(context, &operation, attention, &others)
}

/// Both types have two bytes.
fn operand(name: i64, (address, strides): Rows) -> Operand {
    (name, address + 2 * strides.first as u64)
}

/// What is left to cuDNN.
fn operation(dtype: DType, attention: &Attention<'_>, output: Rows, gradients: Option<[Rows; 3]>) -> Option<Operation> {
    let Attention { shape, q, k, v, mask, .. } = *attention;
    let plain = mask.is_none() && shape.drop_p == 0.0 && shape.softcap == 0.0;
    // Each query sees a key.
    let causal = match shape.causal {
        None => Causal::No,
        Some(0) => Causal::Diagonal,
        Some(1..) => Causal::Offset,
        Some(_) => return None,
    };
    let long = shape.queries.min(shape.keys) >= SHORTEST;
    let in_groups = |size: usize| (size * 2).is_multiple_of(ALIGNMENT);
    let fits = |(address, strides): Rows| {
        address.is_multiple_of(ALIGNMENT as u64)
            && [strides.first, strides.batch, strides.head, strides.token].into_iter().all(in_groups)
            && [strides.batch, strides.head, strides.token].into_iter().all(|stride| stride > 0)
    };
    let dims = [shape.dim, shape.v_dim];
    let usable = matches!(dtype, DType::BF16 | DType::F16)
        && plain
        && long
        && dims.into_iter().all(|dim| dim <= WIDEST && in_groups(dim))
        && [q, k, v, output].into_iter().chain(gradients.into_iter().flatten()).all(fits)
        && get_version() >= OLDEST;
    let strides = |rows: [Rows; 3]| rows.map(|(_, strides)| strides);
    usable.then(|| Operation {
        batch: shape.batch,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        queries: shape.queries,
        keys: shape.keys,
        dim: shape.dim,
        v_dim: shape.v_dim,
        causal,
        dtype,
        inputs: strides([q, k, v]),
        output: output.1,
        gradients: gradients.map(strides),
    })
}

fn run(
    context: &mut CudaContext,
    operation: &Operation,
    attention: &Attention<'_>,
    others: &[Operand],
) -> Result<bool> {
    let Attention { shape, q, k, v, .. } = *attention;
    // Further than any key is far enough.
    let offset = shape.causal.unwrap_or(0).min(shape.keys.cast_signed());
    let numbers = Numbers {
        scale: shape.scale as f32,
        minus_infinity: f32::NEG_INFINITY,
        one: 1.0,
        offset: i32::try_from(offset)?,
    };
    let mut operands = vec![operand(Q, q), operand(K, k), operand(V, v), (SCALE, on_host(&numbers.scale))];
    operands.extend_from_slice(others);
    if operation.gradients.is_some() {
        operands.push((ONE, on_host(&numbers.one)));
    }
    if operation.causal != Causal::No {
        operands.push((MINUS_INFINITY, on_host(&numbers.minus_infinity)));
    }
    if operation.causal == Causal::Offset {
        operands.push((OFFSET, on_host(&numbers.offset)));
    }
    let CudaContext { device, stream, plans, .. } = context;
    // SAFETY: the caller holds the tensors, whose sizes and strides are those of the operation. Those that the plan
    // reads from the host live until it returns.
    unsafe { plans.attend(device, stream, operation, &operands) }
}

fn on_host<T>(number: &T) -> u64 {
    from_ref(number).expose_provenance() as u64
}
