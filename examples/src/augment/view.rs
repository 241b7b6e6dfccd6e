//! Flips, crops and Cutout.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::operation::Hole;

/// Pixels that a picture is padded with before it is cropped.
const PADDING: usize = 4;

/// A crop of the padded image, and whether it is flipped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    down: usize,
    right: usize,
    flip: bool,
}

impl View {
    pub(crate) const STRAIGHT: Self = Self { down: PADDING, right: PADDING, flip: false };

    pub(crate) fn draw(rng: &mut impl Rng) -> Self {
        let flip = rng.random_bool(0.5);
        let mut shift = || rng.random_range(0..=2 * PADDING);
        Self { down: shift(), right: shift(), flip }
    }

    /// The same flip, without the crop.
    pub(crate) fn flip_only(self) -> Self {
        Self { flip: self.flip, ..Self::STRAIGHT }
    }

    /// The index in the plane that pixel (y, x) is read from.
    pub(crate) fn source(self, y: usize, x: usize, h: usize, w: usize) -> usize {
        let across = reflect(x + self.right, w);
        let across = if self.flip { w - 1 - across } else { across };
        reflect(y + self.down, h) * w + across
    }
}

/// The index in a row of length `n` for an index in the padded row: reflected at the borders, without repeating the pixel at
/// the border.
fn reflect(padded: usize, n: usize) -> usize {
    let index = padded.abs_diff(PADDING);
    if index < n { index } else { (2 * (n - 1)).saturating_sub(index) }
}

/// Cutout: sets a square of all planes to 0.
pub(crate) fn cut_out(image: &mut [f32], side: usize, [height, width]: [usize; 2], rng: &mut ChaCha8Rng) {
    let hole = Hole::draw(side, height, width, rng);
    for plane in image.chunks_exact_mut(height * width) {
        hole.indices(width).for_each(|index| plane[index] = 0.0);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

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

    #[test]
    fn cutout_is_a_square_of_zeros_in_every_plane() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..100 {
            let mut image = vec![1.0; 2 * 32 * 32];
            cut_out(&mut image, 16, [32, 32], &mut rng);
            let holes: Vec<usize> = image.chunks(1024).map(|p| p.iter().filter(|x| **x == 0.0).count()).collect();
            assert!(holes[0] == holes[1] && (64..=256).contains(&holes[0]), "{holes:?}");
        }
    }
}
