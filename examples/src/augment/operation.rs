//! AutoAugment's operations on pictures of bytes, with the magnitudes of the original code for CIFAR.

use rand::{Rng, RngExt};

use super::picture::Picture;

/// An operation on a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    AutoContrast,
    Equalize,
    Invert,
    Solarize,
    Posterize,
    Contrast,
    Color,
    Brightness,
    Sharpness,
    Cutout,
}

impl Operation {
    /// Applies it at a level from 0 to 10.
    pub(super) fn apply(self, level: u8, picture: &mut Picture<'_>, rng: &mut impl Rng) {
        let magnitude = f64::from(level);
        // What the blending operations make of their two pictures: 0.1 at level 0, the picture itself at 5, 1.9 at 10.
        let factor = f64::from(18 * u32::from(level) + 10) / 100.0;
        let mut sign = || if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        match self {
            Self::ShearX => {
                let slope = sign() * 0.03 * magnitude;
                picture.warp(|x, y| (x + slope * y, y));
            }
            Self::ShearY => {
                let slope = sign() * 0.03 * magnitude;
                picture.warp(|x, y| (x, y + slope * x));
            }
            Self::TranslateX => {
                let pixels = sign() * magnitude;
                picture.warp(|x, y| (x + pixels, y));
            }
            Self::TranslateY => {
                let pixels = sign() * magnitude;
                picture.warp(|x, y| (x, y + pixels));
            }
            Self::Rotate => {
                let (sin, cos) = (sign() * 3.0 * magnitude).to_radians().sin_cos();
                let (cx, cy) = (picture.width as f64 / 2.0, picture.height as f64 / 2.0);
                picture.warp(|x, y| {
                    let (x, y) = (x - cx, y - cy);
                    (cx + cos * x - sin * y, cy + sin * x + cos * y)
                });
            }
            Self::AutoContrast => picture.planes_mut().for_each(auto_contrast),
            Self::Equalize => picture.planes_mut().for_each(equalize),
            Self::Invert => picture.pixels.iter_mut().for_each(|x| *x = 255 - *x),
            Self::Solarize => {
                let threshold = 256.0 - (25.6 * magnitude).floor();
                picture.pixels.iter_mut().filter(|x| f64::from(**x) >= threshold).for_each(|x| *x = 255 - *x);
            }
            Self::Posterize => {
                // The four levels of the original lose 0 to 4 of the upper half of the bits.
                let kept = 4 - u32::from(level) * 2 / 5;
                let mask = 0xff_u8.checked_shl(8 - kept).unwrap_or(0);
                picture.pixels.iter_mut().for_each(|x| *x &= mask);
            }
            Self::Brightness => picture.pixels.iter_mut().for_each(|x| *x = blend(0.0, *x, factor)),
            Self::Contrast => {
                let gray = picture.gray();
                let mean = gray.iter().map(|x| f64::from(*x)).sum::<f64>() / gray.len() as f64;
                let mean = (mean + 0.5).floor();
                picture.pixels.iter_mut().for_each(|x| *x = blend(mean, *x, factor));
            }
            Self::Color => {
                let gray = picture.gray();
                for plane in picture.planes_mut() {
                    plane.iter_mut().zip(&gray).for_each(|(x, gray)| *x = blend((*gray).into(), *x, factor));
                }
            }
            Self::Sharpness => {
                let (height, width) = (picture.height, picture.width);
                for plane in picture.planes_mut() {
                    let smooth = smoothed(plane, height, width);
                    plane.iter_mut().zip(&smooth).for_each(|(x, smooth)| *x = blend((*smooth).into(), *x, factor));
                }
            }
            Self::Cutout => {
                let hole = Hole::draw(2 * usize::from(level), picture.height, picture.width, rng);
                let (width, fill) = (picture.width, picture.fill);
                for (plane, fill) in picture.planes_mut().zip(fill) {
                    hole.indices(width).for_each(|place| plane[place] = *fill);
                }
            }
        }
    }
}

/// A square that may reach over the border, where it is cut off.
pub(super) struct Hole {
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
}

impl Hole {
    /// Of this side, its center anywhere in the picture.
    pub(super) fn draw(side: usize, height: usize, width: usize, rng: &mut impl Rng) -> Self {
        let mut range = |length: usize| {
            let center = rng.random_range(0..length);
            center.saturating_sub(side / 2)..(center + side / 2).min(length)
        };
        Self { rows: range(height), columns: range(width) }
    }

    /// Places in a plane of this width.
    pub(super) fn indices(&self, width: usize) -> impl Iterator<Item = usize> {
        self.rows.clone().flat_map(move |y| self.columns.clone().map(move |x| y * width + x))
    }
}

/// From `other`, at 0, through x, at 1, and beyond.
#[expect(clippy::cast_sign_loss, reason = "it is clamped to bytes")]
fn blend(other: f64, x: u8, factor: f64) -> u8 {
    (other + factor * (f64::from(x) - other)).clamp(0.0, 255.0) as u8
}

/// Spreads the values over all of 0 to 255.
fn auto_contrast(plane: &mut [u8]) {
    let (Some(&low), Some(&high)) = (plane.iter().min(), plane.iter().max()) else { return };
    if high > low {
        let spread = u32::from(high - low);
        for x in plane {
            *x = (u32::from(*x - low) * 255 / spread) as u8;
        }
    }
}

/// Makes all values about equally frequent.
fn equalize(plane: &mut [u8]) {
    let mut histogram = [0usize; 256];
    for x in plane.iter() {
        histogram[usize::from(*x)] += 1;
    }
    let last = histogram.iter().rev().find(|count| **count > 0).copied().unwrap_or(0);
    let step = (plane.len() - last) / 255;
    if step > 0 {
        let mut below = step / 2;
        let table = histogram.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        });
        for x in plane {
            *x = table[usize::from(*x)];
        }
    }
}

/// The mean of the neighborhood, the center counting five times; the border as it is.
fn smoothed(plane: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut smooth = plane.to_vec();
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let neighbors = (y - 1..=y + 1).flat_map(|y| (x - 1..=x + 1).map(move |x| y * width + x));
            let sum: u32 = neighbors.map(|place| u32::from(plane[place])).sum();
            smooth[y * width + x] = ((2 * (sum + 4 * u32::from(plane[y * width + x])) + 13) / 26) as u8;
        }
    }
    smooth
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn applied(operation: Operation, level: u8, pixels: &[u8], width: usize) -> Vec<u8> {
        let mut pixels = pixels.to_vec();
        let height = pixels.len() / width;
        let mut picture = Picture { pixels: &mut pixels, height, width, fill: &[77] };
        operation.apply(level, &mut picture, &mut ChaCha8Rng::seed_from_u64(0));
        pixels
    }

    #[test]
    fn operations_on_values() {
        assert_eq!(applied(Operation::Invert, 3, &[0, 1, 255], 3), [255, 254, 0]);
        // Level 5: 256 - 128.
        assert_eq!(applied(Operation::Solarize, 5, &[127, 128, 255], 3), [127, 127, 0]);
        assert_eq!(applied(Operation::Solarize, 0, &[0, 255], 2), [0, 255]);
        assert_eq!(applied(Operation::Posterize, 0, &[0xff, 0x7f], 2), [0xf0, 0x70]);
        assert_eq!(applied(Operation::Posterize, 7, &[0xff, 0x7f], 2), [0xc0, 0x40]);
        assert_eq!(applied(Operation::Posterize, 10, &[0xff, 0x7f], 2), [0, 0]);
        assert_eq!(applied(Operation::Brightness, 5, &[100, 200], 2), [100, 200]);
        assert_eq!(applied(Operation::Brightness, 0, &[100, 200], 2), [10, 20]);
        assert_eq!(applied(Operation::Brightness, 10, &[100, 200], 2), [190, 255]);
        // The mean is 150; 1.9 (x - 150) + 150.
        assert_eq!(applied(Operation::Contrast, 10, &[100, 200], 2), [55, 245]);
        assert_eq!(applied(Operation::AutoContrast, 0, &[50, 100, 150], 3), [0, 127, 255]);
        assert_eq!(applied(Operation::AutoContrast, 0, &[9, 9], 2), [9, 9]);
        assert_eq!(applied(Operation::Color, 9, &[50, 100], 2), [50, 100]);
    }

    #[test]
    fn equalize_levels_the_histogram() {
        let skewed: Vec<u8> =
            (0..1024u32).map(|i| if i < 512 { (i / 32) as u8 } else { 200 + (i % 8) as u8 }).collect();
        let level = applied(Operation::Equalize, 0, &skewed, 32);
        assert_eq!((level.iter().min(), level.iter().max()), (Some(&0), Some(&255)));
        // 1024 pixels, 64 of the last value: steps of 960 / 255 = 3, from the half of one on.
        assert_eq!([level[0], level[32], level[15 * 32], level[512]], [0, 11, 160, 171]);
        assert!(
            skewed.iter().zip(&level).zip(skewed.iter().zip(&level).skip(1)).all(|(a, b)| (a.0 < b.0) <= (a.1 <= b.1))
        );
        assert_eq!(applied(Operation::Equalize, 0, &[7; 64], 8), [7; 64]);
    }

    #[test]
    fn sharpness_keeps_the_border() {
        let mut dot = [0u8; 25];
        dot[12] = 130;
        let soft = applied(Operation::Sharpness, 0, &dot, 5);
        // Smoothed: 50 in the middle and 10 around; 0.1 of the way back.
        assert_eq!((soft[12], soft[6], soft[0]), (58, 9, 0));
        assert_eq!(applied(Operation::Sharpness, 5, &dot, 5), dot);
    }

    #[test]
    fn what_comes_in_from_outside_is_filled() {
        let picture: Vec<u8> = (0..16).collect();
        for operation in [Operation::TranslateX, Operation::TranslateY, Operation::ShearX, Operation::ShearY] {
            let moved = applied(operation, 0, &picture, 4);
            assert_eq!(moved, picture, "{operation:?} at level 0");
        }
        let moved = applied(Operation::TranslateX, 1, &picture, 4);
        let (left, right) = ([1, 2, 3, 77], [77, 0, 1, 2]);
        assert!(moved[..4] == left || moved[..4] == right, "{moved:?}");
        assert_eq!(applied(Operation::TranslateY, 9, &picture, 4), [77; 16]);
        assert_eq!(applied(Operation::Rotate, 0, &picture, 4), picture);
        let turned = applied(Operation::Rotate, 10, &[5; 16], 4);
        assert!(turned.contains(&77) && turned.contains(&5), "{turned:?}");
    }

    #[test]
    fn a_hole_is_cut_off_at_the_border() {
        let holed = applied(Operation::Cutout, 2, &[0; 64], 8);
        let count = holed.iter().map(|x| u32::from(*x == 77)).sum::<u32>();
        assert!([4, 6, 8, 9, 12, 16].contains(&count), "{count}");
        assert_eq!(applied(Operation::Cutout, 0, &[0; 64], 8), [0; 64]);
    }
}
