//! The operation graphs of attention, in the patterns that cuDNN fuses into one kernel: those that NVIDIA's frontend
//! makes of its node "scaled dot-product attention".
//! <https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html>

use candle_core::cuda::cudarc::cudnn::sys::{
    cudnnDataType_t as Kind, cudnnPointwiseMode_t as Pointwise, cudnnReduceTensorOp_t as Reduction,
};
use candle_core::{DType, Result};

use super::backend::{Descriptor, integer, integers};
use super::nodes::{Node, Nodes, Sizes, exchanged, in_memory, number};
use super::plan::{self, Notes, Plan, Target, data_type};
use crate::kernels::shapes::HeadStrides;

/// What a plan depends on: the key of the plan cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operation {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) dim: usize,
    pub(super) v_dim: usize,
    pub(super) causal: Causal,
    pub(super) dtype: DType,
    pub(super) inputs: [HeadStrides; 3],
    pub(super) output: HeadStrides,
    /// Those of the inputs, for a backward pass.
    pub(super) gradients: Option<[HeadStrides; 3]>,
}

/// The keys that a query sees: all, those up to its own index, or to that plus [`OFFSET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Causal {
    No,
    Diagonal,
    Offset,
}

// The unique ids of what is in memory: inputs, output, and the logarithm of each row's sum in f32.
pub(super) const Q: i64 = 1;
pub(super) const K: i64 = 2;
pub(super) const V: i64 = 3;
pub(super) const Y: i64 = 4;
pub(super) const LOGS: i64 = 5;
// For the backward pass, with room for Σ dy y of each row in f32.
pub(super) const DY: i64 = 6;
pub(super) const DELTAS: i64 = 7;
pub(super) const DQ: i64 = 8;
pub(super) const DK: i64 = 9;
pub(super) const DV: i64 = 10;
// Numbers: f32, and the offset in i32.
pub(super) const SCALE: i64 = 11;
pub(super) const MINUS_INFINITY: i64 = 12;
pub(super) const ONE: i64 = 13;
pub(super) const OFFSET: i64 = 14;

const F32: Kind = Kind::CUDNN_DATA_FLOAT;

impl Operation {
    /// cuDNN's plans, best first by its heuristic, and its errors. All of them are compiled at run time.
    pub(super) fn plans(&self, target: Target<'_>) -> Result<impl Iterator<Item = Result<Plan>>> {
        let mut parts = Parts { operation: self, nodes: Nodes::default(), dtype: data_type(self.dtype)? };
        let graph = match self.gradients {
            None => parts.forward(target)?,
            Some(gradients) => parts.backward(gradients, target)?,
        };
        Ok(plan::plans(graph, target, Notes::is_exact))
    }
}

struct Parts<'a> {
    operation: &'a Operation,
    nodes: Nodes,
    dtype: Kind,
}

impl Parts<'_> {
    fn forward(&mut self, target: Target<'_>) -> Result<Descriptor> {
        let Operation { heads, kv_heads, queries, keys, dim, v_dim, inputs, output, .. } = *self.operation;
        let q = self.rows(Q, [heads, queries, dim], inputs[0], false)?;
        let k = self.rows(K, [kv_heads, keys, dim], inputs[1], true)?;
        let v = self.rows(V, [kv_heads, keys, v_dim], inputs[2], false)?;
        let y = self.rows(Y, [heads, queries, v_dim], output, false)?;
        let scores = self.scores(&q, &k)?;
        let scores = self.masked(scores)?;

        let most = self.of_rows()?;
        let most = self.nodes.reduction(Reduction::CUDNN_REDUCE_TENSOR_MAX, &scores, most)?;
        let shifted = self.like(Pointwise::CUDNN_POINTWISE_SUB, &[&scores, &most])?;
        let powers = self.like(Pointwise::CUDNN_POINTWISE_EXP, &[&shifted])?;
        let sums = self.of_rows()?;
        let sums = self.nodes.reduction(Reduction::CUDNN_REDUCE_TENSOR_ADD, &powers, sums)?;
        let log = self.like(Pointwise::CUDNN_POINTWISE_LOG, &[&sums])?;
        let logs = self.row_sums(LOGS)?;
        self.nodes.elementwise(Pointwise::CUDNN_POINTWISE_ADD, &[&most, &log], logs)?;

        let weights = self.nodes.between(self.dtype, scores.sizes)?;
        let weights = self.nodes.elementwise(Pointwise::CUDNN_POINTWISE_DIV, &[&powers, &sums], weights)?;
        self.nodes.product(&weights, &v, y)?;
        self.nodes.graph(target)
    }

    fn backward(&mut self, gradients: [HeadStrides; 3], target: Target<'_>) -> Result<Descriptor> {
        let Operation { heads, kv_heads, queries, keys, dim, v_dim, inputs, output, .. } = *self.operation;
        let q = self.rows(Q, [heads, queries, dim], inputs[0], false)?;
        let k = self.rows(K, [kv_heads, keys, dim], inputs[1], true)?;
        let v = self.rows(V, [kv_heads, keys, v_dim], inputs[2], true)?;
        let [y, dy] = [
            self.rows(Y, [heads, queries, v_dim], output, false)?,
            self.rows(DY, [heads, queries, v_dim], output, false)?,
        ];
        let dq = self.rows(DQ, [heads, queries, dim], gradients[0], false)?;
        let dk = self.rows(DK, [kv_heads, keys, dim], gradients[1], false)?;
        let dv = self.rows(DV, [kv_heads, keys, v_dim], gradients[2], false)?;

        // Multiplied with 1: the pattern has a factor for dropout here.
        let products = self.like(Pointwise::CUDNN_POINTWISE_MUL, &[&dy, &y])?;
        let sums = self.of_rows()?;
        let sums = self.nodes.reduction(Reduction::CUDNN_REDUCE_TENSOR_ADD, &products, sums)?;
        let (one, deltas) = (number(ONE, F32)?, self.row_sums(DELTAS)?);
        let deltas = self.nodes.elementwise(Pointwise::CUDNN_POINTWISE_MUL, &[&sums, &one], deltas)?;

        let scores = self.scores(&q, &k)?;
        let logs = self.row_sums(LOGS)?;
        let shifted = self.like(Pointwise::CUDNN_POINTWISE_SUB, &[&scores, &logs])?;
        let shifted = self.masked(shifted)?;
        let weights = self.like(Pointwise::CUDNN_POINTWISE_EXP, &[&shifted])?;
        let weights_t = self.nodes.transposed(&weights, self.dtype)?;
        self.of_all_heads(&weights_t, &dy, dv)?;

        let slopes = self.nodes.between(F32, scores.sizes)?;
        let slopes = self.nodes.product(&dy, &v, slopes)?;
        let slopes = self.like(Pointwise::CUDNN_POINTWISE_SUB, &[&slopes, &deltas])?;
        let slopes = self.like(Pointwise::CUDNN_POINTWISE_MUL, &[&slopes, &weights])?;
        let scale = number(SCALE, F32)?;
        let slopes = self.like(Pointwise::CUDNN_POINTWISE_MUL, &[&slopes, &scale])?;
        let slopes_t = self.nodes.transposed(&slopes, self.dtype)?;
        self.of_all_heads(&slopes_t, &q, dk)?;

        // Straight to dq, not through sums in f32 in memory, to which blocks would add in any order.
        let k = self.nodes.transposed(&k, self.dtype)?;
        self.nodes.product(&slopes, &k, dq)?;
        self.nodes.graph(target)
    }

    /// scale q kᵀ
    fn scores(&mut self, q: &Node, k: &Node) -> Result<Node> {
        let Operation { batch, heads, queries, keys, .. } = *self.operation;
        let products = self.nodes.between(F32, integers([batch, heads, queries, keys])?)?;
        let products = self.nodes.product(q, k, products)?;
        let scale = number(SCALE, F32)?;
        self.like(Pointwise::CUDNN_POINTWISE_MUL, &[&products, &scale])
    }

    /// -∞ where the query does not see the key.
    fn masked(&mut self, scores: Node) -> Result<Node> {
        if self.operation.causal == Causal::No {
            return Ok(scores);
        }
        let [mut row, column] = [self.nodes.index(&scores, 2)?, self.nodes.index(&scores, 3)?];
        if self.operation.causal == Causal::Offset {
            let offset = number(OFFSET, Kind::CUDNN_DATA_INT32)?;
            let last = self.nodes.between(Kind::CUDNN_DATA_INT32, scores.sizes)?;
            row = self.nodes.elementwise(Pointwise::CUDNN_POINTWISE_ADD, &[&row, &offset], last)?;
        }
        let seen = self.nodes.between(Kind::CUDNN_DATA_BOOLEAN, scores.sizes)?;
        let seen = self.nodes.elementwise(Pointwise::CUDNN_POINTWISE_CMP_GE, &[&row, &column], seen)?;
        let hidden = number(MINUS_INFINITY, F32)?;
        self.like(Pointwise::CUDNN_POINTWISE_BINARY_SELECT, &[&scores, &hidden, &seen])
    }

    /// The product, summed over the heads that share one of k and v. Those are rounded to the type first.
    fn of_all_heads(&mut self, a: &Node, b: &Node, to: Node) -> Result<Node> {
        let Operation { batch, heads, kv_heads, .. } = *self.operation;
        if heads == kv_heads {
            return self.nodes.product(a, b, to);
        }
        let [_, _, keys, dim] = to.sizes;
        let each = self.nodes.between(self.dtype, [integer(batch)?, integer(heads)?, keys, dim])?;
        let each = self.nodes.product(a, b, each)?;
        self.nodes.reduction(Reduction::CUDNN_REDUCE_TENSOR_ADD, &each, to)
    }

    /// A function of the elements of tensors, in f32 and of the first one's sizes.
    fn like(&mut self, mode: Pointwise, from: &[&Node]) -> Result<Node> {
        let to = self.nodes.between(F32, from[0].sizes)?;
        self.nodes.elementwise(mode, from, to)
    }

    /// q, k, v, the output or a gradient, as (batch, heads, tokens, dim), or with the last two exchanged.
    fn rows(&self, name: i64, sizes: [usize; 3], strides: HeadStrides, transposed: bool) -> Result<Node> {
        let ([heads, tokens, dim], HeadStrides { batch, head, token, .. }) = (sizes, strides);
        let mut of: [Sizes; 2] =
            [integers([self.operation.batch, heads, tokens, dim])?, integers([batch, head, token, 1])?];
        if transposed {
            of = of.map(exchanged);
        }
        in_memory(name, self.dtype, of[0], of[1])
    }

    /// A number in f32 for each row of scores, in memory.
    fn row_sums(&self, name: i64) -> Result<Node> {
        let Operation { batch, heads, queries, .. } = *self.operation;
        let strides = integers([heads * queries, queries, 1, 1])?;
        in_memory(name, F32, integers([batch, heads, queries, 1])?, strides)
    }

    fn of_rows(&mut self) -> Result<Node> {
        let Operation { batch, heads, queries, .. } = *self.operation;
        self.nodes.between(F32, integers([batch, heads, queries, 1])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// q, k and v (batch, tokens, heads dim), or parts of one tensor.
    fn operation(sizes: [usize; 7], causal: Causal, dtype: DType, packed: bool, backward: bool) -> Operation {
        let [batch, heads, kv_heads, queries, keys, dim, v_dim] = sizes;
        let rows = |tokens: usize, heads: usize, dim: usize| {
            let token = if packed { 3 * heads * dim } else { heads * dim };
            HeadStrides { first: 0, batch: tokens * token, head: dim, token }
        };
        let inputs = [rows(queries, heads, dim), rows(keys, kv_heads, dim), rows(keys, kv_heads, v_dim)];
        let token = heads * v_dim;
        let output = HeadStrides { first: 0, batch: queries * token, head: v_dim, token };
        let gradients = backward.then_some(inputs);
        Operation { batch, heads, kv_heads, queries, keys, dim, v_dim, causal, dtype, inputs, output, gradients }
    }

    /// Against NVIDIA's library: it accepts the graphs, and compiles a kernel for each. The kernels go to a driver that
    /// does not look at them.
    #[test]
    #[ignore = "it takes cuDNN and NVRTC, but no GPU: `tests/gpu.sh plans`"]
    fn plans_for_a_device_that_is_not_here() {
        let device = plan::h200();
        // Batch, heads, heads of k and v, queries, keys, dimensions: models of two sizes, grouped heads, lengths that
        // are no multiples of a tile, and other dimensions.
        let shapes = [
            [8, 12, 12, 1024, 1024, 64, 64],
            [2, 16, 16, 2048, 2048, 128, 128],
            [2, 32, 8, 1024, 1024, 128, 128],
            [3, 4, 1, 197, 197, 64, 64],
            [2, 4, 2, 70, 333, 72, 64],
            [1, 2, 2, 256, 256, 256, 256],
        ];
        for sizes in shapes {
            let packed = sizes[1] == sizes[2] && sizes[5] == 64;
            let dtypes: &[DType] = if sizes == shapes[0] { &[DType::BF16, DType::F16] } else { &[DType::BF16] };
            for &dtype in dtypes {
                for causal in [Causal::No, Causal::Diagonal, Causal::Offset] {
                    for backward in [false, true] {
                        let operation = operation(sizes, causal, dtype, packed, backward);
                        let plans: Vec<Plan> =
                            operation.plans(Target::Described(&device)).unwrap().take(1).flatten().collect();
                        assert_eq!(plans.len(), 1, "{operation:?}");
                        let [batch, heads, _, queries, keys, ..] = sizes;
                        println!("{sizes:?} {dtype:?} {causal:?} {backward}: {} bytes", plans[0].bytes);
                        // The gradient of each score is in memory, so that dq is a sum in a fixed order.
                        assert!(!backward || plans[0].bytes >= batch * heads * queries * keys * 2, "{operation:?}");
                    }
                }
            }
        }
    }
}
