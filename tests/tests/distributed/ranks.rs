//! Ranks that are threads of this process, and a count of what they send.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use candle_core::{DType, Result, Tensor};
use sam_runtime::distributed::{Collective, Comm};

/// What one rank has sent to be reduced.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) reductions: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
}

/// Where the ranks meet: each puts something down, and when all have, takes everything.
#[derive(Debug)]
struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug)]
struct Table {
    round: usize,
    put: Vec<Option<Vec<u64>>>,
    all: Arc<Vec<Vec<u64>>>,
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    size: usize,
    meeting: Arc<Meeting>,
    sent: Arc<Sent>,
}

impl Thread {
    fn exchange(&self, own: Vec<u64>) -> Result<Arc<Vec<Vec<u64>>>> {
        let mut table = self.meeting.table.lock().unwrap();
        let round = table.round;
        table.put[self.rank] = Some(own);
        if table.put.iter().all(Option::is_some) {
            table.all = Arc::new(table.put.iter_mut().map(|put| put.take().unwrap()).collect());
            table.round += 1;
            self.meeting.changed.notify_all();
            return Ok(Arc::clone(&table.all));
        }
        let wait = Duration::from_secs(30);
        let (table, timeout) =
            self.meeting.changed.wait_timeout_while(table, wait, |table| table.round == round).unwrap();
        if timeout.timed_out() {
            candle_core::bail!("rank {} waited for the others in vain", self.rank)
        }
        Ok(Arc::clone(&table.all))
    }
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, numbers: &[u64]) -> Result<Vec<u64>> {
        Ok(self.exchange(numbers.to_vec())?.concat())
    }

    fn all_reduce_sum(&self, flat: &Tensor) -> Result<Tensor> {
        assert!(flat.rank() == 1 && flat.is_contiguous() && flat.elem_count() > 0);
        assert!(matches!(flat.dtype(), DType::F32 | DType::F64));
        self.sent.reductions.fetch_add(1, Ordering::Relaxed);
        self.sent.bytes.fetch_add(flat.elem_count() * flat.dtype().size_in_bytes(), Ordering::Relaxed);
        let numbers: Vec<f64> = flat.to_dtype(DType::F64)?.to_vec1()?;
        let all = self.exchange(numbers.into_iter().map(f64::to_bits).collect())?;
        let sum = |i: usize| all.iter().map(|numbers| f64::from_bits(numbers[i])).sum::<f64>();
        let sums: Vec<f64> = (0..flat.elem_count()).map(sum).collect();
        Tensor::new(sums, flat.device())?.to_dtype(flat.dtype())
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let all = self.exchange(bytes.iter().map(|byte| u64::from(*byte)).collect())?;
        assert_eq!(all[0].len(), bytes.len());
        bytes.iter_mut().zip(&all[0]).for_each(|(byte, first)| *byte = *first as u8);
        Ok(())
    }
}

/// Runs a training on so many ranks.
pub(crate) fn on_ranks<T: Send>(size: usize, train: impl Fn(&Comm, &Sent) -> T + Sync) -> Vec<T> {
    let table = Table { round: 0, put: vec![None; size], all: Arc::default() };
    let meeting = Arc::new(Meeting { table: Mutex::new(table), changed: Condvar::new() });
    std::thread::scope(|scope| {
        let start = |rank| {
            let (meeting, train) = (Arc::clone(&meeting), &train);
            scope.spawn(move || {
                let sent = Arc::<Sent>::default();
                let comm = Comm::new(Thread { rank, size, meeting, sent: Arc::clone(&sent) });
                train(&comm, &sent)
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
