//! Attention has no matrix of all scores in memory.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Result, Var};
use sam_runtime::nn::attention::{AttnMask, self_attention};
use sam_tests::{is_for_the_cpu, tensor};

/// Counts the bytes that are in use, and the most that ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; only numbers are kept beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `alloc` above, so from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 8192;

#[test]
fn peak_is_far_below_a_matrix_of_all_scores() -> Result<()> {
    if is_for_the_cpu("the memory is the host's") {
        return Ok(());
    }
    let qkv = Var::from_tensor(&tensor(&[1, TOKENS, 3 * 16], DType::F32, 1))?;
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let y = self_attention(&qkv, 1, &AttnMask::causal(), None, None)?;
    let grads = y.sum_all()?.backward()?;
    assert!(grads.get(&qkv).is_some());
    let peak = PEAK.load(Relaxed) - before;
    assert!(peak < 4 * TOKENS * TOKENS / 8, "{} MiB", peak >> 20);
    Ok(())
}
