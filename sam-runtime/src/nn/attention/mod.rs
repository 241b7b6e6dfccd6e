//! Scaled dot product attention, forward and backward, without a matrix of all scores: `FlashAttention-2` (Dao 2023). And
//! `candle_nn::attention`, with a gradient everywhere.
//!
//! | function | inputs | output |
//! | --- | --- | --- |
//! | [`self_attention`] | q, k and v in one tensor (batch, tokens, 3 heads dim), as a `Linear` makes it | (batch, tokens, heads dim) |
//! | [`multi_head_attention`] | (batch, tokens, heads dim) each | (batch, tokens, heads dim) |
//! | [`scaled_dot_product_attention`] | (batch, heads, tokens, dim) each, any strides | (batch, heads, tokens, dim) |
//!
//! The first two are one operation between two linear layers. For the last one, models transpose before and after: candle's
//! transpositions copy nothing in the forward pass, but add to zeros in the backward pass.
//!
//! # Masks
//!
//! [`AttnMask::Causal`] lets query i see the keys up to i + `kv_offset`, and skips the others. [`AttnMask::Mask`] can be
//! broadcast to (batch, heads, queries, keys): of u8, 1 where a query sees a key, as in PyTorch; of floats, it is added to the
//! scores, and gets a gradient if it depends on a variable, as a relative position bias. On the CPU and on CUDA the output
//! and the gradients of a query that sees no key are 0, as in PyTorch; on other devices NaN.

pub mod cpu_flash;
mod fused;
pub mod varlen;

pub use candle_nn::attention::*;

pub use self::cpu_flash::flash_attn;
pub use self::cpu_flash::varlen::flash_attn_varlen_cpu;
pub use self::fused::{multi_head_attention, scaled_dot_product_attention, sdpa, self_attention};
pub use self::varlen::flash_attn_varlen_unfused;
