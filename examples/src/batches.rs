//! Images in memory, shuffled, augmented and handed out as tensors.

use candle_core::{Device, Result, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::data::{Dataset, MeanStd, Split};

/// Pixels that [`Augment`] pads with before it crops.
const PADDING: usize = 4;

/// One half of a data set, and how its images become numbers.
#[derive(Debug)]
pub struct Source<'a> {
    images: &'a [u8],
    labels: Vec<u32>,
    shape: [usize; 3],
    scale: MeanStd,
    device: Device,
}

impl<'a> Source<'a> {
    /// The training images of a set and its test images, both normalised by the statistics of the former.
    #[must_use]
    pub fn both(set: &'a Dataset) -> [Self; 2] {
        let (shape, scale) = ([set.channels, set.height, set.width], set.mean_std());
        let source = |split: &'a Split| {
            let (images, labels) = (split.images.as_slice(), split.labels.clone());
            Self { images, labels, shape, scale: scale.clone(), device: Device::Cpu }
        };
        [source(&set.train), source(&set.test)]
    }

    /// With its batches on this device.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// The labels that are trained on, for whoever wants to put noise on them.
    pub fn labels_mut(&mut self) -> &mut [u32] {
        &mut self.labels
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// All images in their order.
    #[must_use]
    pub fn in_order(&self, batch: usize) -> Batches<'_> {
        Batches { source: self, order: (0..self.len()).collect(), at: 0, batch, augment: None, whole: false }
    }

    /// One epoch of training: all images in a random order, the last incomplete batch dropped. The same seed and epoch
    /// give the same batches.
    #[must_use]
    pub fn shuffled(&self, batch: usize, augment: bool, seed: u64, epoch: usize) -> Batches<'_> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1 + epoch as u64);
        let mut order: Vec<_> = (0..self.len()).collect();
        order.shuffle(&mut rng);
        let augment = augment.then(|| Augment { rng });
        Batches { source: self, order, at: 0, batch, augment, whole: true }
    }

    /// How many batches an epoch of training has.
    #[must_use]
    pub fn steps(&self, batch: usize) -> usize {
        self.len() / batch
    }
}

/// Batches of images (n, channels, height, width) in f32, normalised, and their labels (n) in u32.
#[derive(Debug)]
pub struct Batches<'a> {
    source: &'a Source<'a>,
    order: Vec<usize>,
    at: usize,
    batch: usize,
    augment: Option<Augment>,
    /// Whether a last incomplete batch is dropped.
    whole: bool,
}

impl Iterator for Batches<'_> {
    type Item = Result<(Tensor, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.order.len().min(self.at + self.batch);
        let places = &self.order[self.at..end];
        if places.is_empty() || (self.whole && places.len() < self.batch) {
            return None;
        }
        self.at = end;
        let views: Vec<_> =
            places.iter().map(|_| self.augment.as_mut().map_or(View::STRAIGHT, Augment::draw)).collect();
        Some(self.source.tensors(places, &views))
    }
}

impl Source<'_> {
    fn tensors(&self, places: &[usize], views: &[View]) -> Result<(Tensor, Tensor)> {
        let [c, h, w] = self.shape;
        let mut pixels = vec![0f32; places.len() * c * h * w];
        pixels.par_chunks_mut(c * h * w).zip(places).zip(views).for_each(|((out, &place), view)| {
            let image = &self.images[place * c * h * w..][..c * h * w];
            for (channel, (out, plane)) in out.chunks_mut(h * w).zip(image.chunks(h * w)).enumerate() {
                let (mean, std) = (self.scale.mean[channel] as f32, self.scale.std[channel] as f32);
                for (y, row) in out.chunks_mut(w).enumerate() {
                    for (x, value) in row.iter_mut().enumerate() {
                        *value = (f32::from(plane[view.source(y, x, h, w)]) / 255.0 - mean) / std;
                    }
                }
            }
        });
        let labels: Vec<u32> = places.iter().map(|&place| self.labels[place]).collect();
        let x = Tensor::from_vec(pixels, (places.len(), c, h, w), &self.device)?;
        Ok((x, Tensor::from_vec(labels, places.len(), &self.device)?))
    }
}

/// The paper's basic augmentation: a horizontal flip with probability one half, and a crop of the image padded by four
/// reflected pixels on each side.
#[derive(Debug)]
struct Augment {
    rng: ChaCha8Rng,
}

impl Augment {
    fn draw(&mut self) -> View {
        let mut shift = || self.rng.random_range(0..=2 * PADDING);
        View { down: shift(), right: shift(), flip: self.rng.random_bool(0.5) }
    }
}

/// How an image is looked at: a shift within the padded image, and whether it is mirrored.
#[derive(Clone, Copy, Debug)]
struct View {
    down: usize,
    right: usize,
    flip: bool,
}

impl View {
    const STRAIGHT: Self = Self { down: PADDING, right: PADDING, flip: false };

    /// The place in the plane that pixel (y, x) shows.
    fn source(self, y: usize, x: usize, h: usize, w: usize) -> usize {
        let x = if self.flip { w - 1 - x } else { x };
        reflect(y + self.down, h) * w + reflect(x + self.right, w)
    }
}

/// A place in a padded row of length `n`, mirrored at the borders without repeating the border's pixel.
fn reflect(padded: usize, n: usize) -> usize {
    let place = padded.abs_diff(PADDING);
    if place < n { place } else { (2 * (n - 1)).saturating_sub(place) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Dataset {
        let split = Split { images: (0..=250u8).cycle().take(10 * 2 * 6 * 5).collect(), labels: (0..10).collect() };
        let classes = (0..10).map(|c| c.to_string()).collect();
        Dataset { name: "test".into(), classes, channels: 2, height: 6, width: 5, train: split.clone(), test: split }
    }

    #[test]
    fn every_image_once_an_epoch_and_the_same_batches_for_the_same_seed() {
        let set = set();
        let [source, _] = Source::both(&set);
        let labels = |seed, epoch| -> Vec<u32> {
            let batches = source.shuffled(3, true, seed, epoch);
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

    #[test]
    fn padding_reflects() {
        let row: Vec<_> = (0..13).map(|i| reflect(i, 5)).collect();
        assert_eq!(row, [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]);
        let flipped = View { flip: true, ..View::STRAIGHT };
        assert_eq!((0..5).map(|x| flipped.source(0, x, 6, 5)).collect::<Vec<_>>(), [4, 3, 2, 1, 0]);
        assert_eq!(View::STRAIGHT.source(2, 3, 6, 5), 13);
        // Images smaller than the padding still give a place inside.
        assert!((0..=8).all(|i| reflect(i, 1) == 0));
    }
}
