//! Attention has no matrix of all scores in memory.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Var};
use sam_runtime::nn::attention::{AttnMask, self_attention};
use sam_tests::counting::{Counting, peak_of};
use sam_tests::{is_for_the_cpu, tensor};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 8192;

#[test]
fn peak_is_far_below_a_matrix_of_all_scores() -> Result<()> {
    if is_for_the_cpu("the memory is the host's") {
        return Ok(());
    }
    let qkv = Var::from_tensor(&tensor(&[1, TOKENS, 3 * 16], DType::F32, 1))?;
    let peak = peak_of(|| {
        let y = self_attention(&qkv, 1, &AttnMask::causal(), None, None).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&qkv).is_some());
    });
    assert!(peak < 4 * TOKENS * TOKENS / 8, "{} MiB", peak >> 20);
    Ok(())
}
