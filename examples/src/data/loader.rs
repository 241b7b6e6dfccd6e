//! Images in memory or in files, shuffled, augmented and handed out as tensors, if wanted by a thread of its own.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use candle_core::{Device, Error, Result, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::augment::{Augment, Picture, View, cut_out};
use crate::data::{Crop, Dataset, MeanStd, Pictures, Split, read_picture};
use crate::util::stop::{Interrupted, Stop};

/// Batches that a thread in the background has ready.
const AHEAD: usize = 2;

/// One half of a data set, or a part of it, and how its images become numbers. Clones share the images.
#[derive(Clone, Debug)]
pub struct Source {
    images: Images,
    /// Of all images of the half.
    labels: Arc<Vec<u32>>,
    /// Those images that are handed out.
    places: Arc<Vec<u32>>,
    shape: [usize; 3],
    /// The side that images are brought to at last, on the device.
    side: Option<usize>,
    scale: Arc<MeanStd>,
    device: Device,
    /// Who may interrupt those who look at images in order.
    stop: Stop,
    /// The threads that load images; none for those that compute.
    workers: Option<Arc<ThreadPool>>,
}

#[derive(Clone, Debug)]
enum Images {
    Memory { set: Arc<Dataset>, half: fn(&Dataset) -> &Split },
    Files(Arc<Vec<PathBuf>>),
}

impl Source {
    /// The training images of a set and its test images, both normalised by the statistics of the former.
    #[must_use]
    pub fn both(set: &Arc<Dataset>) -> [Self; 2] {
        let (shape, scale) = ([set.channels, set.height, set.width], set.mean_std());
        let halves: [fn(&Dataset) -> &Split; 2] = [|set| &set.train, |set| &set.test];
        halves.map(|half| {
            let images = Images::Memory { set: Arc::clone(set), half };
            Self::new(images, half(set).labels.clone(), shape, scale.clone())
        })
    }

    /// The same of pictures in files, by the usual statistics of ImageNet.
    #[must_use]
    pub fn files(pictures: &Pictures) -> [Self; 2] {
        let scale = MeanStd { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] };
        let side = pictures.side as usize;
        [&pictures.train, &pictures.test].map(|half| {
            let (paths, labels) = half.iter().cloned().unzip();
            Self::new(Images::Files(Arc::new(paths)), labels, [3, side, side], scale.clone())
        })
    }

    fn new(images: Images, labels: Vec<u32>, shape: [usize; 3], scale: MeanStd) -> Self {
        let places = (0..labels.len() as u32).collect();
        let (labels, places, scale) = (Arc::new(labels), Arc::new(places), Arc::new(scale));
        Self {
            images,
            labels,
            places,
            shape,
            side: None,
            scale,
            device: Device::Cpu,
            stop: Stop::default(),
            workers: None,
        }
    }

    /// Channels, height and width of an image.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        let [c, h, w] = self.shape;
        self.side.map_or([c, h, w], |side| [c, side, side])
    }

    /// The labels of all images of the half, also of those that are not handed out.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The labels that are trained on, for whoever wants to put noise on them.
    pub fn labels_mut(&mut self) -> &mut [u32] {
        Arc::make_mut(&mut self.labels).as_mut_slice()
    }

    /// Those images of the half that are handed out.
    #[must_use]
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// The same half, of which only these images are handed out.
    #[must_use]
    pub fn part(&self, places: Vec<u32>) -> Self {
        Self { places: Arc::new(places), ..self.clone() }
    }

    /// The same, whose batches are handed out on a device.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Self { device: device.clone(), ..self.clone() }
    }

    /// The same, whose images are brought to so many pixels a side after all else, bilinearly.
    #[must_use]
    pub fn sized(&self, side: usize) -> Self {
        Self { side: Some(side), ..self.clone() }
    }

    /// The same, whose images in order end with an error when the process is told to stop.
    pub(crate) fn interrupted_by(&self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self.clone() }
    }

    /// The same, whose images are loaded by these threads.
    #[must_use]
    pub fn loaded_by(&self, workers: &Arc<ThreadPool>) -> Self {
        Self { workers: Some(Arc::clone(workers)), ..self.clone() }
    }

    /// By which images are normalised.
    #[must_use]
    pub fn scale(&self) -> &MeanStd {
        &self.scale
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All images in their order.
    #[must_use]
    pub fn in_order(&self, batch: usize) -> Batches {
        self.batches(self.places.to_vec(), batch, None, false)
    }

    /// One epoch of training: all images in a random order, the last incomplete batch dropped. The same seed and epoch
    /// give the same batches, for any number of threads.
    #[must_use]
    pub fn shuffled(&self, batch: usize, augment: Augment, seed: u64, epoch: usize) -> Batches {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1 + epoch as u64);
        let mut order = self.places.to_vec();
        order.shuffle(&mut rng);
        self.batches(order, batch, Some(Training { augment, seed, epoch }), true)
    }

    fn batches(&self, order: Vec<u32>, batch: usize, training: Option<Training>, whole: bool) -> Batches {
        Batches { source: self.clone(), order, at: 0, batch, training, whole }
    }

    /// How many batches an epoch of training has.
    #[must_use]
    pub fn steps(&self, batch: usize) -> usize {
        self.len() / batch
    }

    fn tensors(&self, places: &[u32], training: Option<Training>) -> Result<Batch> {
        let [c, h, w] = self.shape;
        let mut pixels = vec![0f32; places.len() * c * h * w];
        let fill: Vec<u8> = self.scale.mean.iter().map(|mean| byte(255.0 * mean)).collect();
        let mut load = || {
            let work = pixels.par_chunks_mut(c * h * w).zip(places);
            work.try_for_each(|(out, &place)| self.image(out, place, training, &fill))
        };
        match &self.workers {
            Some(workers) => workers.install(load),
            None => load(),
        }?;
        let labels = places.iter().map(|&place| self.labels.get(place as usize).copied().ok_or(place));
        let labels =
            labels.collect::<std::result::Result<Vec<u32>, u32>>().map_err(|place| self.out_of_range(place))?;
        let mut x = Tensor::from_vec(pixels, (places.len(), c, h, w), &self.device)?;
        if let Some(side) = self.side {
            x = x.upsample_bilinear2d(side, side, false)?;
        }
        let y = Tensor::from_slice(&labels, labels.len(), &self.device)?;
        Ok(Batch { x, y, labels, places: places.to_vec() })
    }

    fn out_of_range(&self, place: u32) -> Error {
        Error::msg(format!("image {place} is out of range: the set has {} images, counted from 0", self.labels.len()))
    }

    /// One image, in the order of the authors' code: AutoAugment, flip and crop, normalisation, Cutout.
    fn image(&self, out: &mut [f32], place: u32, training: Option<Training>, fill: &[u8]) -> Result<()> {
        let [c, h, w] = self.shape;
        let mut rng = training.map(|training| training.rng(place));
        let augment = training.map_or(Augment::NONE, |training| training.augment);
        let mut owned;
        let mut image: &[u8] = match &self.images {
            Images::Memory { set, half } => {
                let image = half(set).images.chunks_exact((c * h * w).max(1)).nth(place as usize);
                image.ok_or_else(|| self.out_of_range(place))?
            }
            Images::Files(paths) => {
                let crop = match rng.as_mut() {
                    Some(rng) if augment.basic => Crop::Random(rng),
                    _ => Crop::Centre,
                };
                let path = paths.get(place as usize).ok_or_else(|| self.out_of_range(place))?;
                owned = read_picture(path, w as u32, crop).map_err(Error::wrap)?;
                &owned
            }
        };
        let mut view = View::STRAIGHT;
        if let Some(rng) = rng.as_mut() {
            if let Some(policy) = augment.auto {
                owned = image.to_vec();
                policy.apply(&mut Picture { pixels: &mut owned, height: h, width: w, fill }, rng);
                image = &owned;
            }
            if augment.basic {
                view = View::draw(rng);
                if let Images::Files(_) = self.images {
                    view = view.flip_only();
                }
            }
        }
        for (channel, (out, plane)) in out.chunks_mut(h * w).zip(image.chunks(h * w)).enumerate() {
            let (mean, std) = (self.scale.mean[channel] as f32, self.scale.std[channel] as f32);
            for (y, row) in out.chunks_mut(w).enumerate() {
                for (x, value) in row.iter_mut().enumerate() {
                    *value = (f32::from(plane[view.source(y, x, h, w)]) / 255.0 - mean) / std;
                }
            }
        }
        if let Some(rng) = rng.as_mut().filter(|_| augment.cutout > 0) {
            cut_out(out, augment.cutout, [h, w], rng);
        }
        Ok(())
    }
}

#[expect(clippy::cast_sign_loss, reason = "it is clamped to bytes")]
fn byte(x: f64) -> u8 {
    x.round().clamp(0.0, 255.0) as u8
}

/// How an epoch of training changes its images.
#[derive(Clone, Copy, Debug)]
struct Training {
    augment: Augment,
    seed: u64,
    epoch: usize,
}

impl Training {
    /// A stream for each image and epoch: whoever works on it, it is the same. Those below 2⁶³ are of the orders.
    fn rng(self, place: u32) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream((1 << 63) | ((self.epoch as u64) << 32) | u64::from(place));
        rng
    }
}

/// Some images (n, channels, height, width) in f32, normalised, their labels (n) in u32, and their places in the set.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Images.
    pub x: Tensor,
    /// Labels.
    pub y: Tensor,
    /// The same labels, for the host.
    pub labels: Vec<u32>,
    /// Which images they are.
    pub places: Vec<u32>,
}

/// Batches of images and labels.
#[derive(Debug)]
pub struct Batches {
    source: Source,
    order: Vec<u32>,
    at: usize,
    batch: usize,
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

    /// Made by a thread of its own, some ahead of whoever takes them.
    #[must_use]
    pub fn in_background(mut self) -> Background {
        let (sender, receiver) = sync_channel(AHEAD);
        // It ends with the batches, or when nobody takes them any more.
        let thread = thread::spawn(move || {
            while let Some(batch) = self.next_batch() {
                // A thread has a stream of its own on CUDA: what it has begun must be done before another one looks.
                let ready = self.source.device.synchronize();
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
        let places = &self.order[self.at..end];
        if places.is_empty() || (self.whole && places.len() < self.batch) {
            return None;
        }
        self.at = end;
        // In the middle of a training the one who trains looks.
        if self.training.is_none() && self.source.stop.is_told() {
            self.at = self.order.len();
            return Some(Err(Error::wrap(Interrupted)));
        }
        Some(self.source.tensors(places, self.training))
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
    /// Until its end has been seen.
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

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it left no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Policy;

    /// By the values at which the pixels' centres are.
    #[test]
    fn images_are_brought_to_another_size() {
        let set = Arc::new(crate::data::embedded().unwrap());
        let [train, _] = Source::both(&set);
        let large = train.sized(56);
        assert_eq!(large.shape(), [1, 56, 56]);
        let first = |source: &Source| source.in_order(2).next_batch().unwrap().unwrap().x;
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
        let [source, _] = Source::both(&set());
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

    #[test]
    fn pixels_are_normalised_and_in_place() {
        let set = set();
        let [_, source] = Source::both(&set);
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

    /// The same bits from one thread, from three, from a thread in the background and from the middle of an epoch.
    #[test]
    fn whoever_makes_them_batches_are_the_same() {
        let [source, _] = Source::both(&set());
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
        let [mut source, _] = Source::both(&set());
        source.labels_mut()[7] = 0;
        let part = source.part(vec![7, 2, 5]);
        assert_eq!((part.len(), part.steps(2), part.labels().len()), (3, 1, 10));
        let labels: Vec<u32> = part.in_order(2).flat_map(|b| b.unwrap().1.to_vec1::<u32>().unwrap()).collect();
        assert_eq!(labels, [0, 2, 5]);
        let batch = part.shuffled(3, Augment::NONE, 0, 0).in_background().next().unwrap().unwrap();
        let mut places = batch.places.clone();
        places.sort_unstable();
        assert_eq!(places, [2, 5, 7]);
    }

    #[test]
    fn a_place_out_of_range_is_an_error() {
        let [train, _] = Source::both(&set());
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
        let [train, _] = Source::both(&Arc::new(short));
        let error = train.in_order(10).next().unwrap().unwrap_err().to_string();
        assert!(error.contains("image 9 is out of range"), "{error}");
    }

    /// A panic in the thread is one error, and then the end: not the end of the epoch, and not an endless loop.
    #[test]
    fn a_panic_of_the_thread_that_loads_images_is_an_error() {
        // Two channels and the statistics of one: the second has no mean.
        let [mut train, _] = Source::both(&set());
        train.scale = Arc::new(MeanStd { mean: vec![0.5], std: vec![0.5] });
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
        let [train, test] = Source::files(&Pictures::list(dir.path(), 8).unwrap());
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
