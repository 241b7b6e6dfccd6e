//! Folders of pictures that are decoded when they are needed, for sets that do not fit into memory, such as ImageNet.

use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use rand::{Rng, RngExt};

use super::error::DataError;
use super::folder::MAX_IMAGE_SIZE;
use super::listing::{self, Listed};
use super::paths::expect_folder;
use super::{decode, hints};

/// Where the pictures of a folder are, `train/CLASS/*.jpg` and the same classes in `test/` or `val/`, and their labels.
#[derive(Clone, Debug)]
pub struct Pictures {
    /// The folder that was listed.
    pub folder: PathBuf,
    /// Names of the classes, by label.
    pub classes: Vec<String>,
    /// The training pictures, in a fixed random order, so that the first of them are of all classes.
    pub train: Vec<(PathBuf, u32)>,
    /// The test pictures, class by class.
    pub test: Vec<(PathBuf, u32)>,
    /// The size in pixels that each is scaled to.
    pub side: u32,
    /// What was left out of the set, for the user.
    pub notes: Vec<String>,
}

impl Pictures {
    /// Lists a folder. No picture is opened.
    ///
    /// # Errors
    /// If the folder is not laid out so, or `side` not in 1 to [`MAX_IMAGE_SIZE`].
    pub fn list(dir: &Path, side: u32) -> Result<Self, DataError> {
        if !(1..=MAX_IMAGE_SIZE).contains(&side) {
            return Err(DataError::ImageSize { size: side, max: MAX_IMAGE_SIZE });
        }
        expect_folder(dir)?;
        if !listing::is_in(dir) {
            return Err(hints::unrecognized(dir));
        }
        let Listed { classes, train, test, notes } = listing::list_halves(dir)?;
        Ok(Self { folder: dir.to_path_buf(), classes, train, test, side, notes })
    }
}

/// How a picture is cropped before it is scaled.
pub(crate) enum Crop<'a, R: Rng> {
    /// A random part: 8 to 100 % of the area, 3/4 to 4/3 as wide as high (Szegedy et al. 2015).
    Random(&'a mut R),
    /// The central square, but for the border of 32 pixels that a scaled picture of 256 would have.
    Center,
}

/// The planes of a picture in three colors, cropped and scaled to `side` pixels.
pub(crate) fn read<R: Rng>(path: &Path, side: u32, crop: Crop<'_, R>) -> Result<Vec<u8>, DataError> {
    let picture = decode::open(path)?;
    let (width, height) = (picture.width(), picture.height());
    let center = |side: u32| [(width - side) / 2, (height - side) / 2, side, side];
    let [x, y, w, h] = match crop {
        Crop::Random(rng) => random_part(width, height, rng).unwrap_or_else(|| center(width.min(height))),
        Crop::Center => center((u64::from(width.min(height)) * u64::from(side) / u64::from(side + 32)).max(1) as u32),
    };
    let part = picture.crop_imm(x, y, w, h).resize_exact(side, side, FilterType::CatmullRom).into_rgb8().into_raw();
    Ok((0..3).flat_map(|channel| part.iter().skip(channel).step_by(3).copied()).collect())
}

/// The planes of a picture of any size, processed like the training images of a network: `shape` is channels, height and width;
/// the center is cropped as for pictures that are decoded one by one (`lazy`), otherwise the central square is scaled.
///
/// # Errors
/// If it is not a valid picture.
pub fn read_like(path: &Path, shape: [usize; 3], lazy: bool) -> Result<Vec<u8>, DataError> {
    let [channels, height, width] = shape;
    if lazy {
        return read(path, width as u32, Crop::<rand_chacha::ChaCha8Rng>::Center);
    }
    let (width, height) = (width as u32, height as u32);
    let mut picture = decode::open(path)?;
    if (picture.width(), picture.height()) != (width, height) {
        picture = decode::central_square(&picture).resize_exact(width, height, FilterType::Triangle);
    }
    let pixels = if channels == 1 { picture.into_luma8().into_raw() } else { picture.into_rgb8().into_raw() };
    Ok((0..channels).flat_map(|channel| pixels.iter().skip(channel).step_by(channels).copied()).collect())
}

/// Left, top, width and height; none if ten attempts fail.
#[expect(clippy::cast_sign_loss, reason = "areas and ratios are positive")]
fn random_part(width: u32, height: u32, rng: &mut impl Rng) -> Option<[u32; 4]> {
    for _ in 0..10 {
        let area = f64::from(width) * f64::from(height) * rng.random_range(0.08..1.0);
        let ratio = rng.random_range((3.0_f64 / 4.0).ln()..(4.0_f64 / 3.0).ln()).exp();
        let (w, h) = ((area * ratio).sqrt().round() as u32, (area / ratio).sqrt().round() as u32);
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return Some([rng.random_range(0..=width - w), rng.random_range(0..=height - h), w, h]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use image::{Rgb, RgbImage};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn parts_lie_within_the_picture() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let parts: Vec<_> = (0..1000).filter_map(|_| random_part(300, 200, &mut rng)).collect();
        assert!(parts.len() > 950, "{}", parts.len());
        let mut areas: Vec<f64> = Vec::new();
        for [x, y, w, h] in parts {
            assert!(x + w <= 300 && y + h <= 200);
            assert!((0.7..1.4).contains(&(f64::from(w) / f64::from(h))), "{w} x {h}");
            areas.push(f64::from(w * h) / 60_000.0);
        }
        assert!(areas.iter().all(|area| (0.07..1.01).contains(area)));
        assert!(random_part(1000, 1, &mut rng).is_none());
    }

    #[test]
    fn pictures_are_cropped_and_scaled() {
        let dir = tempfile::tempdir().unwrap();
        for (half, class) in [("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")] {
            std::fs::create_dir_all(dir.path().join(half).join(class)).unwrap();
            let left_half_red = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 32 { 200 } else { 0 }, 100, 50]));
            left_half_red.save(dir.path().join(half).join(class).join("0.png")).unwrap();
        }
        let pictures = Pictures::list(dir.path(), 32).unwrap();
        assert_eq!((pictures.classes.len(), pictures.train.len(), pictures.test[1].1), (2, 2, 1));
        let planes = read(&pictures.test[0].0, 32, Crop::<ChaCha8Rng>::Center).unwrap();
        assert_eq!((planes.len(), planes[0], planes[31], planes[1024], planes[2048]), (3 * 1024, 200, 0, 100, 50));
        let random = |seed| read(&pictures.train[0].0, 8, Crop::Random(&mut ChaCha8Rng::seed_from_u64(seed))).unwrap();
        assert_eq!(random(1), random(1));
        assert!((2..20).any(|seed| random(seed) != random(1)));
        assert!(Pictures::list(dir.path(), 0).is_err());
    }
}
