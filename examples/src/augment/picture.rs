//! Pictures as bytes, plane by plane.

/// The bytes of a picture, plane by plane.
pub(crate) struct Picture<'a> {
    pub(crate) pixels: &'a mut [u8],
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// The value of pixels from outside, for each plane: the mean color of the data set.
    pub(crate) fill: &'a [u8],
}

impl Picture<'_> {
    pub(super) fn planes_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.pixels.chunks_exact_mut(self.height * self.width)
    }

    /// The luma of three planes; of one plane, the plane itself.
    pub(super) fn gray(&self) -> Vec<u8> {
        let plane = self.height * self.width;
        if self.pixels.len() < 3 * plane {
            return self.pixels[..plane].to_vec();
        }
        let at = |channel: usize, i: usize| u32::from(self.pixels[channel * plane + i]);
        // 0.299, 0.587 and 0.114 of 2¹⁶.
        let gray = |i| (at(0, i) * 19_595 + at(1, i) * 38_470 + at(2, i) * 7_471 + 0x8000) >> 16;
        (0..plane).map(|i| gray(i) as u8).collect()
    }

    /// Replaces each pixel by the one at the coordinates that `source` gives for its center.
    #[expect(clippy::cast_sign_loss, reason = "its range is checked first")]
    pub(super) fn warp(&mut self, source: impl Fn(f64, f64) -> (f64, f64)) {
        let (height, width, fill) = (self.height, self.width, self.fill);
        for (plane, fill) in self.planes_mut().zip(fill) {
            let before = plane.to_vec();
            for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                for (x, pixel) in row.iter_mut().enumerate() {
                    let (from_x, from_y) = source(x as f64 + 0.5, y as f64 + 0.5);
                    let inside = (0.0..width as f64).contains(&from_x) && (0.0..height as f64).contains(&from_y);
                    *pixel = if inside { before[from_y as usize * width + from_x as usize] } else { *fill };
                }
            }
        }
    }
}
