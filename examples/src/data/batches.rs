//! Batches of images: in order, shuffled, or made ahead in the background.

use std::any::Any;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use candle_core::{Error, Result, Tensor};
use rand::seq::SliceRandom;

use super::image_set::{Batch, ImageSet, Training};
use crate::augment::Augment;
use crate::util::rng::Stream;
use crate::util::stop::Interrupted;

/// Batches that the thread in the background has ready.
const AHEAD: usize = 2;

impl ImageSet {
    /// All selected images in their order.
    #[must_use]
    pub fn in_order(&self, batch: usize) -> Batches {
        self.batches(self.indices().to_vec(), batch, None, false)
    }

    /// One epoch of training: all images in a random order, the last incomplete batch dropped. The same seed and epoch
    /// give the same batches, for any number of threads.
    #[must_use]
    pub fn shuffled(&self, batch: usize, augment: Augment, seed: u64, epoch: usize) -> Batches {
        let mut order = self.indices().to_vec();
        order.shuffle(&mut Stream::Order { epoch }.rng(seed));
        self.batches(order, batch, Some(Training { augment, seed, epoch }), true)
    }

    fn batches(&self, order: Vec<u32>, batch: usize, training: Option<Training>, whole: bool) -> Batches {
        Batches { images: self.clone(), order, at: 0, batch, part: 0..batch, training, whole }
    }
}

/// Batches of images and labels.
#[derive(Debug)]
pub struct Batches {
    images: ImageSet,
    order: Vec<u32>,
    at: usize,
    batch: usize,
    /// The images of a batch that are loaded.
    part: Range<usize>,
    training: Option<Training>,
    /// Whether a last incomplete batch is dropped.
    whole: bool,
}

impl Batches {
    /// Without the first batches.
    #[must_use]
    pub fn after(mut self, batches: usize) -> Self {
        self.at = (batches * self.batch).min(self.order.len());
        self
    }

    /// Of each batch the images of one of several ranks, which have equally many. The others are not loaded.
    #[must_use]
    pub fn of_rank(mut self, rank: usize, ranks: usize) -> Self {
        let each = self.batch / ranks;
        self.part = rank * each..(rank + 1) * each;
        self
    }

    /// The same batches, made ahead by a thread in the background.
    #[must_use]
    pub fn in_background(mut self) -> Background {
        let (sender, receiver) = sync_channel(AHEAD);
        // It ends with the batches, or when the receiver is dropped.
        let thread = thread::spawn(move || {
            while let Some(batch) = self.next_batch() {
                // On CUDA each thread has its own stream: its work must be finished before another thread uses the tensors.
                let ready = self.images.device().synchronize();
                let batch = batch.and_then(|batch| ready.map(|()| batch));
                if sender.send(batch).is_err() {
                    break;
                }
            }
        });
        Background { receiver, thread: Some(thread) }
    }

    fn next_batch(&mut self) -> Option<Result<Batch>> {
        let end = self.order.len().min(self.at + self.batch);
        let indices = &self.order[self.at..end];
        if indices.is_empty() || (self.whole && indices.len() < self.batch) {
            return None;
        }
        let indices = &indices[self.part.start..self.part.end.min(indices.len())];
        self.at = end;
        // Within an epoch of training the trainer checks this itself.
        if self.training.is_none() && self.images.is_interrupted() {
            self.at = self.order.len();
            return Some(Err(Error::wrap(Interrupted)));
        }
        Some(self.images.tensors(indices, self.training))
    }
}

impl Iterator for Batches {
    type Item = Result<(Tensor, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().map(|batch| batch.map(|batch| (batch.x, batch.y)))
    }
}

/// Batches from another thread. If that thread panics, an error follows the batches that it has made.
#[derive(Debug)]
pub struct Background {
    receiver: Receiver<Result<Batch>>,
    /// Taken when it has ended.
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Images and labels alone.
    pub fn pairs(self) -> impl Iterator<Item = Result<(Tensor, Tensor)>> {
        self.map(|batch| batch.map(|batch| (batch.x, batch.y)))
    }
}

impl Iterator for Background {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.receiver.recv() {
            return Some(batch);
        }
        // The thread has ended: with the epoch, or by a panic.
        let panic = self.thread.take()?.join().err()?;
        Some(Err(Error::msg(format!("the thread that loads images panicked: {}", message(panic.as_ref())))))
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it left no message")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::dataset::{Dataset, MeanStd, Split};
    use super::super::pictures::Pictures;
    use super::super::text::Text;
    use super::*;
    use crate::augment::Policy;

    /// Interpolated at the centers of the pixels.
    #[test]
    fn images_are_brought_to_another_size() {
        let set = Arc::new(super::super::embedded::embedded().unwrap());
        let [train, _] = ImageSet::both(&set);
        let large = train.sized(56);
        assert_eq!(large.shape(), [1, 56, 56]);
        let first = |source: &ImageSet| source.in_order(2).next_batch().unwrap().unwrap().x;
        let (small, large) = (first(&train), first(&large));
        assert_eq!(large.dims(), [2, 1, 56, 56]);
        let [small, large] = [small, large].map(|x| x.get(1).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap());
        for (y, x) in [(0, 0), (5, 9), (13, 20), (26, 26)] {
            let near = 0.75 * small[y][x] + 0.25 * small[y][x + 1];
            let far = 0.75 * small[y + 1][x] + 0.25 * small[y + 1][x + 1];
            assert!((large[2 * y + 1][2 * x + 1] - (0.75 * near + 0.25 * far)).abs() < 1e-5);
        }
    }

    fn set() -> Arc<Dataset> {
        let split = Split { images: (0..=250u8).cycle().take(10 * 2 * 6 * 5).collect(), labels: (0..10).collect() };
        let classes = (0..10).map(|c| c.to_string()).collect();
        Arc::new(Dataset {
            name: "test".into(),
            classes,
            channels: 2,
            height: 6,
            width: 5,
            train: split.clone(),
            test: split,
            notes: Vec::new(),
        })
    }

    #[test]
    fn every_image_once_an_epoch_and_the_same_batches_for_the_same_seed() {
        let [source, _] = ImageSet::both(&set());
        let labels = |seed, epoch| -> Vec<u32> {
            let batches = source.shuffled(3, Augment::BASIC, seed, epoch);
            batches.flat_map(|batch| batch.unwrap().1.to_vec1::<u32>().unwrap()).collect()
        };
        let first = labels(1, 0);
        assert_eq!((first.len(), source.steps(3)), (9, 3));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 9);
        assert_eq!(labels(1, 0), first);
        assert_ne!(labels(1, 1), first);
        assert_ne!(labels(2, 0), first);
    }

    /// The batches of two ranks, one behind the other, are those of one.
    #[test]
    fn ranks_have_parts_of_a_batch() {
        let [source, _] = ImageSet::both(&set());
        let batches = || source.shuffled(4, Augment::BASIC, 5, 1);
        let of =
            |rank| batches().of_rank(rank, 2).in_background().map(|batch| bits(&batch.unwrap())).collect::<Vec<_>>();
        let whole: Vec<_> = batches().in_background().map(|batch| bits(&batch.unwrap())).collect();
        assert_eq!(whole.len(), 2);
        for ((whole, first), second) in whole.into_iter().zip(of(0)).zip(of(1)) {
            assert_eq!(whole, [first, second].concat());
        }
    }

    #[test]
    fn pixels_are_normalized_and_in_place() {
        let set = set();
        let [_, source] = ImageSet::both(&set);
        let batches: Vec<_> = source.in_order(4).map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|(x, _)| x.dims()[0]).collect::<Vec<_>>(), [4, 4, 2]);
        let x: Vec<f32> =
            batches.iter().flat_map(|(x, _)| x.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
        let MeanStd { mean, std } = set.mean_std();
        for (i, x) in x.iter().enumerate() {
            let channel = i / 30 % 2;
            let expected = (f64::from(set.test.images[i]) / 255. - mean[channel]) / std[channel];
            assert!((f64::from(*x) - expected).abs() < 1e-5);
        }
    }

    fn bits(batch: &Batch) -> Vec<u32> {
        batch.x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Bitwise identical from one thread, from three, in the background and from the middle of an epoch.
    #[test]
    fn whoever_makes_them_batches_are_the_same() {
        let [source, _] = ImageSet::both(&set());
        let augment = Augment { basic: true, auto: Some(Policy::Code95), cutout: 2 };
        let batches = || source.shuffled(2, augment, 5, 3);
        let made_by = |threads| -> Vec<Vec<u32>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut batches = batches();
                std::iter::from_fn(|| batches.next_batch()).map(|batch| bits(&batch.unwrap())).collect()
            })
        };
        let one = made_by(1);
        assert_eq!(one.len(), 5);
        assert_eq!(made_by(3), one);
        let background: Vec<_> = batches().in_background().map(|batch| bits(&batch.unwrap())).collect();
        assert_eq!(background, one);
        let later: Vec<_> = batches().after(2).in_background().map(|batch| bits(&batch.unwrap())).collect();
        assert_eq!(later, one[2..]);
        let otherwise: Vec<_> = source.shuffled(2, augment, 5, 4).in_background().map(|b| bits(&b.unwrap())).collect();
        assert_ne!(otherwise, one);
    }

    #[test]
    fn a_part_hands_out_its_images_with_their_labels() {
        let [mut source, _] = ImageSet::both(&set());
        source.labels_mut()[7] = 0;
        let part = source.part(vec![7, 2, 5]);
        assert_eq!((part.len(), part.steps(2), part.labels().len()), (3, 1, 10));
        let labels: Vec<u32> = part.in_order(2).flat_map(|b| b.unwrap().1.to_vec1::<u32>().unwrap()).collect();
        assert_eq!(labels, [0, 2, 5]);
        let batch = part.shuffled(3, Augment::NONE, 0, 0).in_background().next().unwrap().unwrap();
        let mut places = batch.indices.clone();
        places.sort_unstable();
        assert_eq!(places, [2, 5, 7]);
    }

    /// Each label is the token that follows, and each epoch begins the windows elsewhere.
    #[test]
    fn windows_of_a_text_are_tokens_and_the_tokens_after_them() {
        let text = Arc::new(Text { name: "test".into(), bytes: (0..200).collect() });
        let [train, test] = ImageSet::text(&text, 16).unwrap();
        assert_eq!((train.len(), test.len(), train.shape(), train.labels_each()), (11, 1, [1, 1, 16], 16));
        let rows = |batch: &Batch| (batch.x.to_vec2::<u32>().unwrap(), batch.y.to_vec2::<u32>().unwrap());
        let batches = |epoch, augment| -> Vec<_> {
            train.shuffled(5, augment, 3, epoch).in_background().map(|batch| rows(&batch.unwrap())).collect()
        };
        for (x, y) in batches(0, Augment::BASIC).into_iter().chain(batches(0, Augment::NONE)) {
            assert_eq!((x.len(), x[0].len()), (5, 16));
            for (x, y) in x.iter().flatten().zip(y.iter().flatten()) {
                assert_eq!(*y, x + 1);
            }
        }
        let starts = |epoch, augment| -> Vec<u32> {
            batches(epoch, augment).iter().flat_map(|(x, _)| x.iter().map(|x| x[0])).collect()
        };
        assert!(starts(0, Augment::NONE).iter().all(|start| start % 16 == 0));
        assert!(starts(0, Augment::BASIC).iter().any(|start| start % 16 != 0));
        assert_eq!(starts(1, Augment::BASIC), starts(1, Augment::BASIC));
        let (x, y) = test.in_order(test.test_batch()).next().unwrap().unwrap();
        assert_eq!((x.to_vec2::<u32>().unwrap()[0][0], y.dims()), (180, &[1, 16][..]));
    }

    #[test]
    fn a_place_out_of_range_is_an_error() {
        let [train, _] = ImageSet::both(&set());
        for place in [10, u32::MAX] {
            let part = train.part(vec![3, place]);
            let expected = format!("image {place} is out of range: the set has 10 images");
            let error = part.in_order(2).next().unwrap().unwrap_err().to_string();
            assert!(error.contains(&expected), "{error}");
            let mut batches = part.shuffled(1, Augment::BASIC, 0, 0).in_background();
            let errors: Vec<_> = batches.by_ref().filter_map(Result::err).collect();
            assert!(matches!(&errors[..], [error] if error.to_string().contains(&expected)), "{errors:?}");
            assert!(batches.next().is_none());
        }
        // A set with fewer pixels than its labels need.
        let mut short = Dataset::clone(&set());
        short.train.images.pop();
        let [train, _] = ImageSet::both(&Arc::new(short));
        let error = train.in_order(10).next().unwrap().unwrap_err().to_string();
        assert!(error.contains("image 9 is out of range"), "{error}");
    }

    /// A panic in the thread is one error, and then the end: not the end of the epoch, and not an endless loop.
    #[test]
    fn a_panic_of_the_thread_that_loads_images_is_an_error() {
        // Two channels and the statistics of one: the second has no mean.
        let [mut train, _] = ImageSet::both(&set());
        train.set_scale(MeanStd { mean: vec![0.5], std: vec![0.5] });
        let mut batches = train.shuffled(2, Augment::NONE, 0, 0).in_background();
        let error = batches.next().unwrap().unwrap_err().to_string();
        let expected = "the thread that loads images panicked: index out of bounds: the len is 1 but the index is 1";
        assert!(error.contains(expected), "{error}");
        assert!(batches.next().is_none() && batches.next().is_none());
    }

    #[test]
    fn pictures_of_a_folder_are_read_when_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        for (half, class, value) in [("train", "a", 10), ("train", "b", 200), ("test", "a", 10), ("test", "b", 200)] {
            std::fs::create_dir_all(dir.path().join(half).join(class)).unwrap();
            let picture = image::RgbImage::from_pixel(20, 20, image::Rgb([value; 3]));
            picture.save(dir.path().join(half).join(class).join("0.png")).unwrap();
        }
        let [train, test] = ImageSet::files(&Pictures::list(dir.path(), 8).unwrap());
        let batch = train.shuffled(2, Augment::BASIC, 1, 0).in_background().next().unwrap().unwrap();
        assert_eq!(batch.x.dims(), [2, 3, 8, 8]);
        let (x, y) = test.in_order(1).next().unwrap().unwrap();
        assert_eq!(y.to_vec1::<u32>().unwrap(), [0]);
        let first = x.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((first - (10.0 / 255.0 - 0.485) / 0.229).abs() < 1e-5);
        std::fs::write(dir.path().join("test/a/0.png"), "no picture").unwrap();
        let error = test.in_order(1).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("0.png"), "{error}");
    }
}
