//! Convolutions without cuDNN: matrix products by cuBLAS, with the patches of some images at a time. NCHW only.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Storage, Tensor};

use super::buffers::{UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::im2col::Patches;
use crate::kernels::shapes::ConvShape;

/// Elements of patches in memory at a time, at most.
const MAX_PATCH_ELEMENTS: usize = 1 << 27;

/// The convolution of x with w, both of one dtype.
pub(super) fn forward(conv: &ConvShape, x: &Tensor, w: &Tensor) -> Result<UninitTensor> {
    let ConvShape { images, filters, height, width, .. } = *conv;
    let pixels = height.output * width.output;
    let mut y = UninitTensor::new(device(x)?, x.dtype(), (images, filters, height.output, width.output))?;
    for (first, count) in image_ranges(conv) {
        let some = conv.some(count);
        let products = some.weight(w)?.matmul(&some.patches(&x.narrow(0, first, count)?)?)?;
        let products = products.reshape((filters, count, pixels))?.transpose(0, 1)?;
        let (storage, layout) = products.storage_and_layout();
        if let Storage::Cuda(products) = &*storage {
            products.copy_strided_src(&mut y.storage, first * filters * pixels, layout)?;
        }
    }
    Ok(y)
}

/// The gradient of x.
pub(super) fn backward_data(conv: &ConvShape, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let ConvShape { images, channels, height, width, .. } = *conv;
    let size = channels * height.input * width.input;
    let dx = UninitTensor::new(device(w)?, w.dtype(), (images, channels, height.input, width.input))?;
    let address = dx.address()?;
    for (first, count) in image_ranges(conv) {
        let some = conv.some(count);
        let dy = some.products(&dy.narrow(0, first, count)?)?;
        let patches = some.weight(w)?.transpose(1, 2)?.matmul(&dy)?.contiguous()?;
        let patches = device_ptr(&patches)?;
        let target = address + (first * size * w.dtype().size_in_bytes()) as u64;
        with_context(device(w)?, |context| some.sizes().col2im(context, patches.dtype, [patches.address, target]))?;
    }
    dx.tensor()
}

/// The gradient of w.
pub(super) fn backward_filter(conv: &ConvShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (first, count) in image_ranges(conv) {
        let some = conv.some(count);
        let patches = some.patches(&x.narrow(0, first, count)?)?;
        let part = some.products(&dy.narrow(0, first, count)?)?.matmul(&patches.transpose(1, 2)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    let ConvShape { channels, filters, groups, height, width, .. } = *conv;
    let shape = (filters, channels / groups, height.kernel, width.kernel);
    sum.map_or_else(|| Tensor::zeros(shape, x.dtype(), x.device()), |sum| sum.reshape(shape))
}

/// Ranges of images whose patches fit: the first image, and how many.
fn image_ranges(conv: &ConvShape) -> impl Iterator<Item = (usize, usize)> + use<> {
    let [rows, columns] = conv.some(1).sizes().matrix();
    let (images, step) = (conv.images, (MAX_PATCH_ELEMENTS / (rows * columns).max(1)).max(1));
    (0..images).step_by(step).map(move |first| (first, step.min(images - first)))
}

impl ConvShape {
    /// The same convolution, of fewer images.
    fn some(&self, images: usize) -> Self {
        Self { images, ..*self }
    }

    fn sizes(&self) -> Patches {
        Patches::new(self)
    }

    /// (groups, filters per group, elements of a filter)
    fn weight(&self, w: &Tensor) -> Result<Tensor> {
        w.reshape((self.groups, self.filters / self.groups, ()))
    }

    /// (groups, elements of a filter, images and pixels)
    fn patches(&self, x: &Tensor) -> Result<Tensor> {
        let sizes = self.sizes();
        let [rows, columns] = sizes.matrix();
        let patches = UninitTensor::new(device(x)?, x.dtype(), (self.groups, rows / self.groups, columns))?;
        let (x_ptr, address) = (device_ptr(x)?, patches.address()?);
        with_context(device(x)?, |context| sizes.im2col(context, x_ptr.dtype, [x_ptr.address, address]))?;
        patches.tensor()
    }

    /// (groups, filters per group, images and pixels), from (images, filters, height, width).
    fn products(&self, dy: &Tensor) -> Result<Tensor> {
        let pixels = self.height.output * self.width.output;
        let dy = dy.reshape((self.images, self.filters, pixels))?.transpose(0, 1)?.contiguous()?;
        dy.reshape((self.groups, self.filters / self.groups, self.images * pixels))
    }
}
