//! What each rank has of its own, on all ranks.

use candle_core::Result;

use super::action::{Action, Contents};
use super::comm::Comm;

const WORD: usize = size_of::<u64>();

impl Comm {
    /// The bytes of every rank, in the order of the ranks, on all of them: for what a rank has of its own and rank 0 writes to a
    /// checkpoint, such as the state of a variant of SAM. Each may have another number of bytes.
    ///
    /// ```
    /// use sam_runtime::distributed::Comm;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// assert_eq!(Comm::solo().gather_bytes(b"state")?, [b"state"]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the ranks do not all call it.
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.size() == 1 {
            return Ok(vec![bytes.to_vec()]);
        }
        let lens = self.agree(Action::GatherBytes, Contents::default(), bytes.len() as u64)?;
        let words = lens.iter().max().map_or(0, |len| (*len as usize).div_ceil(WORD));
        if words == 0 {
            return Ok(vec![Vec::new(); lens.len()]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(words * WORD, 0);
        let own: Vec<u64> = padded.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let all = self.collective().all_gather(&own)?;
        let of_rank = |(words, len): (&[u64], &u64)| {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            bytes.take(*len as usize).collect()
        };
        Ok(all.chunks_exact(words).zip(&lens).map(of_rank).collect())
    }
}
