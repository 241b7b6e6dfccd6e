//! The memory layout of images, NCHW or NHWC. Their shape is (images, channels, height, width) in any case, as in PyTorch.

use candle_core::{Layout, Result, Shape, Tensor};

/// The order of their elements in memory, without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ImageLayout {
    /// One channel of an image after the other: what candle calls contiguous.
    Nchw,
    /// All channels of a pixel side by side, as tensor cores want them.
    Nhwc,
}

impl ImageLayout {
    /// None where there are gaps, or another order.
    pub(crate) fn of_layout(layout: &Layout) -> Option<Self> {
        if layout.is_contiguous() {
            return Some(Self::Nchw);
        }
        let (&[n, c, h, w], strides) = (layout.dims(), layout.stride()) else { return None };
        let dense = [(c, 1), (w, c), (h, c * w), (n, c * w * h)];
        let order = [1, 3, 2, 0].map(|axis| strides[axis]);
        let fits = dense.into_iter().zip(order).all(|((size, stride), found)| size <= 1 || stride == found);
        fits.then_some(Self::Nhwc)
    }

    /// [`of_layout`](Self::of_layout), and `Nchw` for what has none.
    pub(crate) fn of(x: &Tensor) -> Self {
        Self::of_layout(x.layout()).unwrap_or(Self::Nchw)
    }

    /// `x` in this format: itself if it is, else a copy.
    pub(crate) fn arrange(self, x: &Tensor) -> Result<Tensor> {
        if Self::of_layout(x.layout()) == Some(self) {
            return Ok(x.clone());
        }
        self.named(&self.in_memory(x)?.contiguous()?)
    }

    /// A view of `x` whose dimensions are in the order of its memory.
    pub(crate) fn in_memory(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Nchw => Ok(x.clone()),
            Self::Nhwc => x.permute((0, 2, 3, 1)),
        }
    }

    /// The inverse of [`in_memory`](Self::in_memory).
    pub(crate) fn named(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Nchw => Ok(x.clone()),
            Self::Nhwc => x.permute((0, 3, 1, 2)),
        }
    }

    /// A shape, with its dimensions in the order of the memory.
    pub(crate) fn shape_in_memory(self, shape: &Shape) -> Result<Shape> {
        match self {
            Self::Nchw => Ok(shape.clone()),
            Self::Nhwc => shape.dims4().map(|(n, c, h, w)| (n, h, w, c).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn formats_are_told_by_their_strides() -> Result<()> {
        let x = Tensor::arange(0f32, 120., &Device::Cpu)?.reshape((2, 3, 4, 5))?;
        let last = ImageLayout::Nhwc.arrange(&x)?;
        assert_eq!((last.dims(), last.stride()), (x.dims(), &[60, 1, 15, 3][..]));
        assert_eq!(last.flatten_all()?.to_vec1::<f32>()?, x.flatten_all()?.to_vec1::<f32>()?);
        assert_eq!(ImageLayout::Nhwc.arrange(&last)?.id(), last.id(), "itself, not a view: that has another gradient");
        let of = |x: &Tensor| ImageLayout::of_layout(x.layout());
        assert_eq!((of(&x), of(&last)), (Some(ImageLayout::Nchw), Some(ImageLayout::Nhwc)));
        assert_eq!(of(&last.narrow(0, 1, 1)?), Some(ImageLayout::Nhwc), "a part of the images");
        assert_eq!(of(&last.narrow(3, 1, 2)?), None, "gaps");
        assert_eq!(of(&x.transpose(2, 3)?), None, "another order");
        assert_eq!(of(&x.flatten_all()?.narrow(0, 3, 20)?), Some(ImageLayout::Nchw));
        // One channel, or one pixel: both at once.
        for shape in [(2, 1, 4, 5), (2, 3, 1, 1)] {
            let x = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
            assert_eq!(of(&ImageLayout::Nhwc.arrange(&x)?), Some(ImageLayout::Nchw));
        }
        assert_eq!(ImageLayout::Nhwc.shape_in_memory(x.shape())?.dims(), [2, 4, 5, 3]);
        Ok(())
    }
}
