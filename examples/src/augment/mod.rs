//! What is done to training images: Basic, Cutout and AutoAugment, in the order of the authors' code.

mod operation;
mod policies;

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::operation::Hole;
use self::policies::{CODE, PAPER, SVHN, Step};

/// Pixels that a picture is padded with before it is cropped.
const PADDING: usize = 4;

/// What is done to training images. Everything is drawn for each image and epoch anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Augment {
    /// A horizontal flip with probability one half, and a crop of the image padded by four reflected pixels on each side.
    pub basic: bool,
    /// AutoAugment's operations before that.
    pub auto: Option<Policy>,
    /// The side of the square that is set to 0 after normalisation (Cutout); 0 for none.
    pub cutout: usize,
}

/// Which of AutoAugment's lists of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The 25 sub-policies of its publication.
    Paper25,
    /// The 95 sub-policies of the code of SAM's authors.
    Code95,
    /// The 25 sub-policies of its publication for SVHN.
    Svhn25,
}

impl Augment {
    /// Nothing is done.
    pub const NONE: Self = Self { basic: false, auto: None, cutout: 0 };

    /// Flip and crop.
    pub const BASIC: Self = Self { basic: true, auto: None, cutout: 0 };
}

impl Policy {
    fn sub_policies(self) -> &'static [[Step; 2]] {
        match self {
            Self::Paper25 => &PAPER,
            Self::Code95 => &CODE,
            Self::Svhn25 => &SVHN,
        }
    }

    /// Draws a sub-policy, and applies each of its operations with its probability.
    pub(crate) fn apply(self, picture: &mut Picture<'_>, rng: &mut impl Rng) {
        let policies = self.sub_policies();
        for (operation, tenths, level) in policies[rng.random_range(0..policies.len())] {
            if rng.random_ratio(tenths, 10) {
                operation.apply(level, picture, rng);
            }
        }
    }
}

/// The bytes of a picture, plane by plane.
pub(crate) struct Picture<'a> {
    pub(crate) pixels: &'a mut [u8],
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// What comes in from outside, for each plane: the data set's mean colour.
    pub(crate) fill: &'a [u8],
}

impl Picture<'_> {
    fn planes_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.pixels.chunks_exact_mut(self.height * self.width)
    }

    /// Of three planes the brightness, of one the plane itself.
    fn grey(&self) -> Vec<u8> {
        let plane = self.height * self.width;
        if self.pixels.len() < 3 * plane {
            return self.pixels[..plane].to_vec();
        }
        let at = |channel: usize, i: usize| u32::from(self.pixels[channel * plane + i]);
        // 0.299, 0.587 and 0.114 of 2¹⁶.
        let grey = |i| (at(0, i) * 19_595 + at(1, i) * 38_470 + at(2, i) * 7_471 + 0x8000) >> 16;
        (0..plane).map(|i| grey(i) as u8).collect()
    }

    /// Takes each pixel from the place, in pixels, that `source` gives for its centre.
    #[expect(clippy::cast_sign_loss, reason = "it is looked at first")]
    fn warp(&mut self, source: impl Fn(f64, f64) -> (f64, f64)) {
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

/// How an image is looked at: a shift within the padded image, and whether it is mirrored.
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

    /// Mirrored or not, and not shifted.
    pub(crate) fn flip_only(self) -> Self {
        Self { flip: self.flip, ..Self::STRAIGHT }
    }

    /// The place in the plane that pixel (y, x) shows.
    pub(crate) fn source(self, y: usize, x: usize, h: usize, w: usize) -> usize {
        let across = reflect(x + self.right, w);
        let across = if self.flip { w - 1 - across } else { across };
        reflect(y + self.down, h) * w + across
    }
}

/// A place in a padded row of length `n`, mirrored at the borders without repeating the border's pixel.
fn reflect(padded: usize, n: usize) -> usize {
    let place = padded.abs_diff(PADDING);
    if place < n { place } else { (2 * (n - 1)).saturating_sub(place) }
}

/// Sets a square of all planes to 0.
pub(crate) fn cut_out(image: &mut [f32], side: usize, [height, width]: [usize; 2], rng: &mut ChaCha8Rng) {
    let hole = Hole::draw(side, height, width, rng);
    for plane in image.chunks_exact_mut(height * width) {
        hole.places(width).for_each(|place| plane[place] = 0.0);
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

    /// The policies' figures, checked by the sums of the tables' columns.
    #[test]
    fn policies_are_those_of_the_tables() {
        let sums = |policies: &[[Step; 2]]| {
            let steps = policies.iter().flatten();
            steps.fold((0, 0), |(tenths, levels), step| (tenths + step.1, levels + u32::from(step.2)))
        };
        assert_eq!((sums(&PAPER), sums(&CODE), sums(&SVHN)), ((265, 267), (902, 890), (329, 143)));
        assert!(CODE.iter().flatten().chain(PAPER.iter().flatten()).all(|step| step.1 <= 10 && step.2 <= 10));
        assert_eq!(PAPER[0], [(operation::Operation::Invert, 1, 7), (operation::Operation::Contrast, 2, 6)]);
        assert_eq!(CODE[94], [(operation::Operation::Equalize, 6, 9), (operation::Operation::Equalize, 4, 4)]);
    }

    /// Every sub-policy on coloured and on grey pictures; the same seed gives the same picture.
    #[test]
    fn policies_run_and_repeat() {
        let run = |policy: Policy, channels: usize, seed| {
            let mut pixels: Vec<u8> = (0..channels * 32 * 32).map(|i| (i * 31 % 253) as u8).collect();
            let fill = vec![125; channels];
            let mut picture = Picture { pixels: &mut pixels, height: 32, width: 32, fill: &fill };
            policy.apply(&mut picture, &mut ChaCha8Rng::seed_from_u64(seed));
            pixels
        };
        for (policy, channels) in [(Policy::Paper25, 3), (Policy::Paper25, 1), (Policy::Code95, 3), (Policy::Svhn25, 3)]
        {
            let pictures: Vec<_> = (0..400).map(|seed| run(policy, channels, seed)).collect();
            assert_eq!(run(policy, channels, 7), pictures[7]);
            let changed = pictures.iter().filter(|picture| **picture != pictures[0]).count();
            assert!(changed > 200, "{changed}");
        }
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
