//! Before anything is sent, the ranks agree on what it is. Without that, ranks that differ would hang or mix up their numbers.

use std::time::Instant;

use candle_core::Result;

use super::action::{Action, Contents, Failure};
use super::comm::Comm;
use crate::core::error::Error;

/// Words of a record: action, status, contents, a number.
const LEN: usize = 6;
const FAILED: u64 = 1;
const OVERFLOW: u64 = 2;
/// Words of the message of a rank that failed.
const TEXT: usize = 32;

impl Comm {
    /// A number of each rank, if all are about to do the same with the same contents.
    pub(super) fn agree(&self, action: Action, contents: Contents, number: u64) -> Result<Vec<u64>> {
        let Contents { tensors, elements, digest } = contents;
        let records = self.records([action as u64, 0, tensors, elements, digest, number], "")?;
        let Some(first) = records.first() else { return Ok(Vec::new()) };
        let differing = |field: usize| (0..records.len()).find(|rank| records[*rank][field] != first[field]);
        let report = |rank: usize, what: &dyn Fn(&[u64; LEN]) -> String, hint: &str| {
            let (zero, other) = (what(first), what(&records[rank]));
            Error::Ranks(format!("rank 0 is at {zero}, rank {rank} at {other}: {hint}"))
        };
        if let Some(rank) = differing(0) {
            let hint = "every rank needs the same number of steps, and the same calls in the same order";
            Err(report(rank, &|record| Action::describe(record[0]).to_owned(), hint))?;
        }
        if let Some(rank) = (2..5).filter_map(differing).min() {
            let what = |record: &[u64; LEN]| {
                let action = Action::describe(record[0]);
                format!("{action} with {} tensors, {} elements", record[2], record[3])
            };
            let hint = "every rank needs the same tensors, of the same shapes and dtypes, on devices of the same \
                        kind; a layer that a rank skips has no gradient there";
            Err(report(rank, &what, hint))?;
        }
        self.note_agreement();
        Ok(records.iter().map(|record| record[5]).collect())
    }

    /// Takes part in what the others are about to do, only to say that this rank cannot.
    pub(crate) fn report_failure(&self, failure: &Failure) {
        if self.size() > 1 {
            let status = if failure.is_overflow { OVERFLOW } else { FAILED };
            // This rank has an error already.
            let _ = self.records([0, status, 0, 0, 0, 0], &failure.why);
        }
    }

    fn records(&self, own: [u64; LEN], why: &str) -> Result<Vec<[u64; LEN]>> {
        let since = Instant::now();
        let all = self.collective().all_gather(&own)?;
        self.note_waiting(since.elapsed());
        let records = all.as_chunks().0.to_vec();
        let Some(rank) = records.iter().position(|record| record[1] != 0) else { return Ok(records) };
        let texts = self.collective().all_gather(&to_words(why))?;
        let why = texts.as_chunks().0.get(rank).map_or_else(String::new, from_words);
        if own[1] == 0 {
            self.note_failure_elsewhere();
        }
        Err(Error::OtherRank { rank, why, is_overflow: records[rank][1] == OVERFLOW }.into())
    }
}

/// The beginning of a text.
fn to_words(text: &str) -> [u64; TEXT] {
    let mut end = text.len().min(8 * TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = [0; 8 * TEXT];
    bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
    std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j])))
}

fn from_words(words: &[u64; TEXT]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        for text in ["", "the loss is NaN", &"ε".repeat(128), &"ε".repeat(129), &format!("a{}", "ε".repeat(200))] {
            let kept = from_words(&to_words(text));
            assert!(text.starts_with(&kept) && kept.len() + 1 >= text.len().min(8 * TEXT), "{text}: {kept}");
        }
    }
}
