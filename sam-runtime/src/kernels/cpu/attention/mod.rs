//! Attention by tiles, without a matrix of all scores (`FlashAttention-2`, Dao 2023): the forward pass keeps the logarithm of
//! each row's sum, and the backward pass computes the probabilities again.
//!
//! A thread takes a head of k and v and all queries that use it; where there are few such heads, parts of the queries, or in the
//! backward pass of the keys. k (and v in the backward pass) are transposed once for each, so that the lanes of all products
//! are side by side in memory. Parts depend on shapes only, and each sum is taken by one thread in a fixed order: results
//! are bitwise identical for any number of threads.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

mod backward;
mod forward;
mod product;
mod scores;
mod tiles;

pub(crate) use self::backward::attention_back;
pub(crate) use self::forward::attention;
