//! Images in memory or in files, or windows of a text, and how they become tensors.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Error, Result, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use rayon::prelude::*;

use super::dataset::{Dataset, MeanStd, Split};
use super::error::DataError;
use super::pictures::{self, Crop, Pictures};
use super::text::{Text, Windows};
use crate::augment::{Augment, Picture, View, cut_out};
use crate::util::rng::Stream;
use crate::util::stop::Stop;

/// The size of a batch of images where no gradient is taken: in tests, predictions, losses of all images.
pub const TEST_BATCH: usize = 500;

/// The tokens of such a batch of a text.
const TEST_TOKENS: usize = 8192;

/// The training or test images of a data set, or a part of them, and how they become tensors. Clones share the images.
///
/// The examples of a text are windows of it, each with a label for each of its tokens: the one that follows. Of a window,
/// [`labels`](Self::labels) has a 0.
#[derive(Clone, Debug)]
pub struct ImageSet {
    images: Images,
    /// The labels of all images, also of those that are not selected.
    labels: Arc<Vec<u32>>,
    /// The indices of the selected images.
    indices: Arc<Vec<u32>>,
    shape: [usize; 3],
    /// The size in pixels that images are scaled to at the end, on the device.
    side: Option<usize>,
    scale: Arc<MeanStd>,
    device: Device,
    /// Ends iterations in order when the process is told to stop.
    stop: Stop,
    /// The threads that load images; `None` for the global pool.
    workers: Option<Arc<ThreadPool>>,
}

#[derive(Clone, Debug)]
enum Images {
    Memory { set: Arc<Dataset>, half: fn(&Dataset) -> &Split },
    Files(Arc<Vec<PathBuf>>),
    Text { text: Arc<Text>, windows: Windows },
}

impl ImageSet {
    /// The training images of a set and its test images, both normalized by the statistics of the former.
    #[must_use]
    pub fn both(set: &Arc<Dataset>) -> [Self; 2] {
        let (shape, scale) = ([set.channels, set.height, set.width], set.mean_std());
        let halves: [fn(&Dataset) -> &Split; 2] = [|set| &set.train, |set| &set.test];
        halves.map(|half| {
            let images = Images::Memory { set: Arc::clone(set), half };
            Self::new(images, half(set).labels.clone(), shape, scale.clone())
        })
    }

    /// The same for pictures in files, normalized by the usual statistics of ImageNet.
    #[must_use]
    pub fn files(pictures: &Pictures) -> [Self; 2] {
        let scale = MeanStd { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] };
        let side = pictures.side as usize;
        [&pictures.train, &pictures.test].map(|half| {
            let (paths, labels) = half.iter().cloned().unzip();
            Self::new(Images::Files(Arc::new(paths)), labels, [3, side, side], scale.clone())
        })
    }

    /// The windows of a text that are trained on, and those that are tested on, each of `length` tokens. With the basic
    /// augmentation a window begins up to as many tokens earlier in each epoch.
    ///
    /// # Errors
    /// If the text is too short for one of each.
    pub fn text(text: &Arc<Text>, length: usize) -> std::result::Result<[Self; 2], DataError> {
        let halves = text.halves(length)?;
        Ok(halves.map(|part| {
            let windows = Windows { part, length };
            let labels = vec![0; windows.count()];
            let scale = MeanStd { mean: vec![0.0], std: vec![1.0] };
            Self::new(Images::Text { text: Arc::clone(text), windows }, labels, [1, 1, length], scale)
        }))
    }

    fn new(images: Images, labels: Vec<u32>, shape: [usize; 3], scale: MeanStd) -> Self {
        let indices = (0..labels.len() as u32).collect();
        let (labels, indices, scale) = (Arc::new(labels), Arc::new(indices), Arc::new(scale));
        Self {
            images,
            labels,
            indices,
            shape,
            side: None,
            scale,
            device: Device::Cpu,
            stop: Stop::default(),
            workers: None,
        }
    }

    /// Channels, height and width of an image; of a text 1, 1 and the length of its windows.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        let [c, h, w] = self.shape;
        self.side.map_or([c, h, w], |side| [c, side, side])
    }

    /// The labels of all images, also of those that are not selected.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The same, to change them.
    pub fn labels_mut(&mut self) -> &mut [u32] {
        Arc::make_mut(&mut self.labels).as_mut_slice()
    }

    /// The indices of the selected images.
    #[must_use]
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// The same set with only these images selected.
    #[must_use]
    pub fn part(&self, indices: Vec<u32>) -> Self {
        Self { indices: Arc::new(indices), ..self.clone() }
    }

    /// The same set with only the first of its images selected, at most so many.
    #[must_use]
    pub fn first(&self, most: usize) -> Self {
        self.part(self.indices[..most.min(self.len())].to_vec())
    }

    /// The same set, whose batches are made on a device.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Self { device: device.clone(), ..self.clone() }
    }

    /// The same set, whose images are scaled to `side` x `side` pixels at the end, bilinearly.
    #[must_use]
    pub fn sized(&self, side: usize) -> Self {
        Self { side: Some(side), ..self.clone() }
    }

    /// The same set, whose [`in_order`](Self::in_order) ends with an error when the process is told to stop.
    pub(crate) fn interrupted_by(&self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self.clone() }
    }

    /// The same set, whose images are loaded by these threads.
    #[must_use]
    pub fn loaded_by(&self, workers: &Arc<ThreadPool>) -> Self {
        Self { workers: Some(Arc::clone(workers)), ..self.clone() }
    }

    /// The statistics that images are normalized by.
    #[must_use]
    pub fn scale(&self) -> &MeanStd {
        &self.scale
    }

    /// [`ControlFlow::Break`] if the process has been told to stop.
    pub(crate) fn until_interrupted(&self) -> ControlFlow<()> {
        if self.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Whether the process has been told to stop.
    pub(super) fn is_interrupted(&self) -> bool {
        self.stop.is_told()
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    #[cfg(test)]
    pub(super) fn set_scale(&mut self, scale: MeanStd) {
        self.scale = Arc::new(scale);
    }

    /// The number of selected images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether no image is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many batches an epoch of training has.
    #[must_use]
    pub fn steps(&self, batch: usize) -> usize {
        self.len() / batch
    }

    /// The size of a batch where no gradient is taken.
    #[must_use]
    pub fn test_batch(&self) -> usize {
        match &self.images {
            Images::Text { windows, .. } => (TEST_TOKENS / windows.length).max(1),
            _ => TEST_BATCH,
        }
    }

    /// How many labels an example has.
    #[must_use]
    pub fn labels_each(&self) -> usize {
        match &self.images {
            Images::Text { windows, .. } => windows.length,
            _ => 1,
        }
    }

    pub(super) fn tensors(&self, indices: &[u32], training: Option<Training>) -> Result<Batch> {
        if let Images::Text { text, windows } = &self.images {
            return self.windows(text, windows, indices, training);
        }
        let [c, h, w] = self.shape;
        let mut pixels = vec![0f32; indices.len() * c * h * w];
        let fill: Vec<u8> = self.scale.mean.iter().map(|mean| byte(255.0 * mean)).collect();
        let mut load = || {
            let work = pixels.par_chunks_mut(c * h * w).zip(indices);
            work.try_for_each(|(out, &index)| self.image(out, index, training, &fill))
        };
        match &self.workers {
            Some(workers) => workers.install(load),
            None => load(),
        }?;
        let labels = indices.iter().map(|&index| self.labels.get(index as usize).copied().ok_or(index));
        let labels =
            labels.collect::<std::result::Result<Vec<u32>, u32>>().map_err(|index| self.out_of_range(index))?;
        let mut x = Tensor::from_vec(pixels, (indices.len(), c, h, w), &self.device)?;
        if let Some(side) = self.side {
            x = x.upsample_bilinear2d(side, side, false)?;
        }
        let y = Tensor::from_slice(&labels, labels.len(), &self.device)?;
        Ok(Batch { x, y, labels, indices: indices.to_vec() })
    }

    fn windows(&self, text: &Text, windows: &Windows, indices: &[u32], training: Option<Training>) -> Result<Batch> {
        let shape = (indices.len(), windows.length);
        let [mut tokens, mut labels] = [0; 2].map(|_: u8| Vec::with_capacity(shape.0 * shape.1));
        for &index in indices {
            let training = training.filter(|training| training.augment.basic);
            let shift = training.map_or(0, |training| training.rng(index).random_range(0..windows.length));
            let window = windows.get(text, index, shift).ok_or_else(|| self.out_of_range(index))?;
            tokens.extend(window[..windows.length].iter().copied().map(u32::from));
            labels.extend(window[1..].iter().copied().map(u32::from));
        }
        let x = Tensor::from_vec(tokens, shape, &self.device)?;
        let y = Tensor::from_slice(&labels, shape, &self.device)?;
        Ok(Batch { x, y, labels, indices: indices.to_vec() })
    }

    fn out_of_range(&self, index: u32) -> Error {
        Error::msg(format!("image {index} is out of range: the set has {} images, counted from 0", self.labels.len()))
    }

    /// One image, processed in the order of the code of Foret et al.: AutoAugment, flip and crop, normalization, Cutout.
    fn image(&self, out: &mut [f32], index: u32, training: Option<Training>, fill: &[u8]) -> Result<()> {
        let [c, h, w] = self.shape;
        let mut rng = training.map(|training| training.rng(index));
        let augment = training.map_or(Augment::NONE, |training| training.augment);
        let mut owned;
        let mut image: &[u8] = match &self.images {
            Images::Memory { set, half } => {
                let image = half(set).images.chunks_exact((c * h * w).max(1)).nth(index as usize);
                image.ok_or_else(|| self.out_of_range(index))?
            }
            Images::Files(paths) => {
                let crop = match rng.as_mut() {
                    Some(rng) if augment.basic => Crop::Random(rng),
                    _ => Crop::Center,
                };
                let path = paths.get(index as usize).ok_or_else(|| self.out_of_range(index))?;
                owned = pictures::read(path, w as u32, crop).map_err(Error::wrap)?;
                &owned
            }
            Images::Text { .. } => candle_core::bail!("a text has no images"),
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

/// The augmentation of an epoch of training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Training {
    pub(super) augment: Augment,
    pub(super) seed: u64,
    pub(super) epoch: usize,
}

impl Training {
    /// The generator of an image: the same whichever thread works on it.
    fn rng(self, index: u32) -> ChaCha8Rng {
        Stream::Augment { epoch: self.epoch, image: index }.rng(self.seed)
    }
}

/// Images (n, channels, height, width) in f32, normalized, their labels (n) in u32, and their indices in the set. Of a text,
/// tokens (n, length) and labels (n, length), both in u32.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Images or tokens.
    pub x: Tensor,
    /// Labels.
    pub y: Tensor,
    /// The same labels on the host.
    pub labels: Vec<u32>,
    /// The indices of the images, or of the windows.
    pub indices: Vec<u32>,
}
