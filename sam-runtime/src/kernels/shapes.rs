//! The sizes of an operation, shared by all backends.

use std::ops::Range;

/// A dimension of a contiguous tensor, and how many elements lie outside and inside of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DimShape {
    pub(crate) outer: usize,
    pub(crate) size: usize,
    pub(crate) inner: usize,
}

impl DimShape {
    pub(crate) fn new(dims: &[usize], dim: usize) -> Self {
        let product = |dims: &[usize]| dims.iter().product();
        Self { outer: product(&dims[..dim]), size: dims[dim], inner: product(&dims[dim + 1..]) }
    }
}

/// A pooling of images (n, channels, height, width).
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolShape {
    /// The largest element of each window; otherwise their mean.
    pub(crate) max: bool,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    /// Height and width.
    pub(crate) input: [usize; 2],
    /// Rows and columns.
    pub(crate) output: [usize; 2],
    /// n times channels.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) planes: usize,
    /// From one pixel of a plane to the next: 1 in NCHW, the number of channels in NHWC.
    #[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "the kernels of CUDA take it"))]
    pub(crate) step: usize,
}

impl PoolShape {
    /// The rows or columns of the window of an output that lie in the image.
    fn window(&self, output: usize, input: usize) -> Range<usize> {
        let start = output * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(input)
    }

    /// Calls `f` with each output of a plane and the indices of its window.
    pub(super) fn windows(&self, mut f: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
        let ([height, width], [rows, columns]) = (self.input, self.output);
        for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
            let across = self.window(x, width);
            let mut indices = self.window(y, height).flat_map(|y| across.clone().map(move |x| y * width + x));
            f(y * columns + x, &mut indices);
        }
    }

    /// What an element of a window counts in their mean.
    pub(super) fn share(&self) -> f64 {
        1.0 / (self.kernel * self.kernel) as f64
    }
}
