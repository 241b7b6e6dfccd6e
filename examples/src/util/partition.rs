//! The partition of a batch: micro-batches whose gradients are averaged, and the shards of m-sharpness.

use std::ops::Range;

use anyhow::{Result, ensure};

/// How a batch is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Micro-batches, all of one size.
    pub micro_batches: usize,
    /// Images of a shard; 0 for one shard.
    pub m: usize,
    /// Whether SAM divides each micro-batch into shards. Where it does not (ρ = 0), each shard is a micro-batch: else batch
    /// normalization would see `m` images with SAM and the whole batch without.
    pub is_sam: bool,
}

impl Partition {
    /// The micro-batches of a batch of `rows` images.
    ///
    /// # Errors
    /// If `rows` is not a multiple of their number.
    pub fn micro_batches(self, rows: usize) -> Result<Vec<Range<usize>>> {
        let count = self.micro_batches;
        ensure!(
            count > 0 && rows.is_multiple_of(count),
            "a batch of {rows} images cannot be cut into {count} equal parts: change `accumulate`"
        );
        let size = rows / count;
        let shard = if !self.is_sam && self.m > 0 { self.m } else { size.max(1) };
        Ok((0..count).flat_map(|i| cut(i * size..(i + 1) * size, shard)).collect())
    }

    /// The images of a batch that are normalized together: the shards.
    ///
    /// # Errors
    /// As [`micro_batches`](Self::micro_batches).
    pub fn shards(self, rows: usize) -> Result<Vec<Range<usize>>> {
        let shard = if self.m == 0 { usize::MAX } else { self.m };
        Ok(self.micro_batches(rows)?.into_iter().flat_map(|part| cut(part, shard)).collect())
    }
}

/// Shards of `m`, as SAM has them: a single image that remains joins the shard before it.
fn cut(range: Range<usize>, m: usize) -> Vec<Range<usize>> {
    let mut shards: Vec<_> = range.clone().step_by(m).map(|at| at..range.end.min(at.saturating_add(m))).collect();
    if m > 1
        && shards.len() > 1
        && shards.pop_if(|last| last.len() == 1).is_some()
        && let Some(last) = shards.last_mut()
    {
        last.end = range.end;
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SGD and SAM normalize over as many images.
    #[test]
    fn plain_gradients_are_taken_in_shards_too() {
        let parts = |micro_batches, m, is_sam, rows| {
            let partition = Partition { micro_batches, m, is_sam };
            partition.micro_batches(rows).unwrap().into_iter().map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(parts(1, 4, true, 10), [(0, 10)]);
        assert_eq!(parts(1, 4, false, 10), [(0, 4), (4, 8), (8, 10)]);
        assert_eq!(parts(1, 4, false, 9), [(0, 4), (4, 9)]);
        assert_eq!(parts(2, 4, true, 12), [(0, 6), (6, 12)]);
        assert_eq!(parts(2, 4, false, 12), [(0, 4), (4, 6), (6, 10), (10, 12)]);
        assert_eq!(parts(1, 0, false, 12), [(0, 12)]);
        let error = Partition { micro_batches: 2, m: 0, is_sam: false }.micro_batches(3).unwrap_err();
        assert!(error.to_string().contains("2 equal parts"));
    }
}
