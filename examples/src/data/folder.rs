//! A folder of pictures as a data set in memory.

use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use rayon::prelude::*;

use super::dataset::{Dataset, Split};
use super::decode::{central_square, header, open};
use super::error::DataError;
use super::listing::{Listed, Picture, list_halves};
use super::paths::folder_name;

/// The largest `image_size` that [`load`](super::load()) takes, in pixels.
pub const MAX_IMAGE_SIZE: u32 = 1024;

/// The number of pictures that are decoded at a time, which bounds the additional memory.
const CHUNK: usize = 256;

pub(super) fn load(dir: &Path, image_size: Option<u32>) -> Result<Dataset, DataError> {
    if let Some(size) = image_size.filter(|size| !(1..=MAX_IMAGE_SIZE).contains(size)) {
        return Err(DataError::ImageSize { size, max: MAX_IMAGE_SIZE });
    }
    let Listed { classes, train, test, notes } = list_halves(dir)?;
    let shape = Shape::of(&train, &test, image_size)?;
    Ok(Dataset {
        name: folder_name(dir),
        classes,
        channels: shape.channels,
        height: shape.size.1 as usize,
        width: shape.size.0 as usize,
        train: shape.decode(&train)?,
        test: shape.decode(&test)?,
        notes,
    })
}

/// The common size and channels of all pictures.
struct Shape {
    channels: usize,
    /// Width and height.
    size: (u32, u32),
    /// Whether pictures of another size are brought to this one.
    resize: bool,
    /// The picture with the reference size.
    reference: PathBuf,
}

impl Shape {
    /// Reads the headers of all pictures: the first gives the size, and one with colors makes all colored.
    fn of(train: &[Picture], test: &[Picture], image_size: Option<u32>) -> Result<Self, DataError> {
        let pictures: Vec<_> = train.iter().chain(test).collect();
        let headers: Vec<_> = pictures.par_iter().map(|(path, _)| header(path)).collect();
        // Checked in order, so that the error names the same picture every time.
        let headers = headers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let first = headers.first().map_or((0, 0), |header| header.size);
        Ok(Self {
            channels: if headers.iter().any(|header| header.has_color) { 3 } else { 1 },
            size: image_size.map_or(first, |size| (size, size)),
            resize: image_size.is_some(),
            reference: pictures.first().map_or_else(PathBuf::new, |(path, _)| path.clone()),
        })
    }

    fn decode(&self, pictures: &[Picture]) -> Result<Split, DataError> {
        let mut split = Split::default();
        for chunk in pictures.chunks(CHUNK) {
            let decoded: Vec<_> = chunk.par_iter().map(|(path, _)| self.planes(path)).collect();
            for ((_, label), planes) in chunk.iter().zip(decoded) {
                split.images.extend(planes?);
                split.labels.push(*label);
            }
        }
        Ok(split)
    }

    /// The pixels of one picture, plane by plane.
    fn planes(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let mut picture = open(path)?;
        if self.resize {
            picture = central_square(&picture).resize_exact(self.size.0, self.size.1, FilterType::Triangle);
        }
        let found = (picture.width(), picture.height());
        if found != self.size {
            return Err(DataError::SizeMismatch {
                path: path.to_path_buf(),
                reference: self.reference.clone(),
                expected: self.size,
                found,
                advice: "bring all to one size with --image-size PIXELS",
            });
        }
        let pixels = if self.channels == 1 { picture.into_luma8().into_raw() } else { picture.into_rgb8().into_raw() };
        let plane = |channel| pixels.iter().skip(channel).step_by(self.channels).copied();
        Ok((0..self.channels).flat_map(plane).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use image::{GrayImage, ImageError, Luma, Rgb, RgbImage};

    use super::super::{Pictures, load};
    use super::*;

    fn gray(path: &Path, side: u32, value: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        GrayImage::from_pixel(side, side, Luma([value])).save(path).unwrap();
    }

    fn colored(path: &Path, width: u32, height: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, 100 + y as u8, 200]));
        picture.save(path).unwrap();
    }

    /// Two classes of gray 8 x 8 pictures whose value tells their place.
    pub(in super::super) fn write(dir: &Path) {
        for (value, file) in [(1, "train/cat/b.png"), (0, "train/cat/a.PNG"), (2, "train/dog/0.png")] {
            gray(&dir.join(file), 8, value);
        }
        for (value, file) in [(3, "test/cat/x.jpg"), (4, "test/dog/y.jpeg")] {
            gray(&dir.join(file), 8, value);
        }
    }

    fn small() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        dir
    }

    #[test]
    fn gray_pictures_keep_one_channel_and_their_labels() {
        let dir = small();
        fs::write(dir.path().join("train/cat/.DS_Store"), "junk").unwrap();
        fs::write(dir.path().join("train/cat/._b.png"), "junk").unwrap();
        fs::write(dir.path().join("train/cat/notes.txt"), "junk").unwrap();
        fs::write(dir.path().join("train/labels.csv"), "junk").unwrap();
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.channels, set.height, set.width), (1, 8, 8));
        assert_eq!(set.classes, ["cat", "dog"]);
        assert_eq!(set.test.labels, [0, 1]);
        let first_pixels = |split: &Split| -> Vec<u8> { split.images.iter().step_by(64).copied().collect() };
        assert_eq!(first_pixels(&set.test), [3, 4]);
        let mut train: Vec<_> = first_pixels(&set.train).into_iter().zip(set.train.labels).collect();
        train.sort_unstable();
        assert_eq!(train, [(0, 0), (1, 0), (2, 1)]);
    }

    /// Also of those that are decoded later, in the same order.
    #[test]
    fn the_first_training_pictures_are_of_all_classes() {
        let dir = tempfile::tempdir().unwrap();
        for (class, number) in (0..4).flat_map(|class| (0..16).map(move |number| (class, number))) {
            gray(&dir.path().join(format!("train/{class}/{number:02}.png")), 2, 16 * class + number);
            gray(&dir.path().join(format!("test/{class}/{number:02}.png")), 2, 16 * class + number);
        }
        let set = load(dir.path(), None).unwrap();
        let of_class = |class| set.train.labels[..16].iter().filter(|label| **label == class).count();
        assert!((0..4).all(|class| (1..9).contains(&of_class(class))), "{:?}", &set.train.labels[..16]);
        assert!(set.train.images.iter().step_by(4).zip(&set.train.labels).all(|(x, y)| u32::from(x / 16) == *y));
        assert!(set.test.labels.is_sorted());
        assert_eq!(load(dir.path(), None).unwrap(), set);
        let mut limited = set.clone();
        limited.limit(16);
        assert_eq!((&limited.train.labels[..], limited.train.images.len()), (&set.train.labels[..16], 16 * 4));
        limited.limit(usize::MAX);
        assert_eq!((limited.train.len(), limited.test.len()), (16, 64));
        let pictures = Pictures::list(dir.path(), 2).unwrap();
        assert!(pictures.train.iter().map(|(_, label)| label).eq(&set.train.labels));
    }

    #[test]
    fn one_colored_picture_makes_all_colored() {
        let dir = small();
        colored(&dir.path().join("test/dog/z.png"), 8, 8);
        let set = load(dir.path(), None).unwrap();
        assert_eq!(set.channels, 3);
        assert!(set.train.images.chunks(192).all(|image| image.iter().all(|x| *x == image[0] && *x < 3)));
        let planes = &set.test.images[2 * 192..];
        assert_eq!((planes[7], planes[8], planes[64], planes[64 + 8], planes[191]), (7, 0, 100, 101, 200));
    }

    #[test]
    fn val_valid_and_validation_stand_in_for_test() {
        let dir = small();
        let mut last = dir.path().join("test");
        for name in ["val", "valid", "validation"] {
            let next = dir.path().join(name);
            fs::rename(&last, &next).unwrap();
            last = next;
            assert_eq!(load(dir.path(), None).unwrap().test.len(), 2, "{name}");
        }
        fs::rename(&last, dir.path().join("dev")).unwrap();
        let error = load(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("test` is missing: a folder of pictures has") && error.contains("valid/"), "{error}");
    }

    #[test]
    fn test_comes_before_val() {
        let dir = small();
        gray(&dir.path().join("val/cat/0.png"), 8, 0);
        let set = load(dir.path(), None).unwrap();
        assert_eq!(set.test.len(), 2);
        let [val, test] = ["val", "test"].map(|half| dir.path().join(half).display().to_string());
        assert_eq!(set.notes, [format!("skipped `{val}`: `{test}` is tested on")]);
    }

    #[test]
    fn webp_and_bmp_are_read() {
        let dir = small();
        colored(&dir.path().join("train/dog/1.webp"), 8, 8);
        colored(&dir.path().join("test/dog/1.BMP"), 8, 8);
        let set = load(dir.path(), None).unwrap();
        assert_eq!((set.channels, set.train.len(), set.test.len()), (3, 4, 3));
        assert_eq!(set.test.images[192 + 7], 7);
        let lossless: Vec<_> = set.train.images.chunks(192).filter(|image| image[..3] == [0, 1, 2]).collect();
        assert_eq!(lossless, [&set.test.images[192..2 * 192]]);
    }

    #[test]
    fn what_is_no_picture_is_counted() {
        let dir = small();
        for file in ["cat/a.txt", "cat/b.GIF", "dog/c.txt", "dog/LICENSE", "labels.csv", "cat/.DS_Store"] {
            fs::write(dir.path().join("train").join(file), "junk").unwrap();
        }
        gray(&dir.path().join("train/dog/nested/0.png"), 8, 0);
        gray(&dir.path().join("test/dog/nested/0.png"), 8, 0);
        gray(&dir.path().join("test/dog/images/0.png"), 8, 0);
        let [train, test] = ["train", "test"].map(|half| dir.path().join(half).display().to_string());
        let notes = [
            format!(
                "skipped 5 files that are not pictures (.csv, .gif, .txt, no extension) and 1 nested folder in `{train}`"
            ),
            format!("skipped 2 nested folders in `{test}`"),
        ];
        assert_eq!(load(dir.path(), None).unwrap().notes, notes);
        assert_eq!(Pictures::list(dir.path(), 8).unwrap().notes, notes);
    }

    #[test]
    fn a_picture_of_another_size_is_named_and_can_be_resized() {
        let dir = small();
        colored(&dir.path().join("train/dog/wide.png"), 20, 10);
        let error = load(dir.path(), None).unwrap_err();
        assert!(error.to_string().contains("wide.png` is 20 x 10 (width x height), expected 8 x 8 as in"), "{error}");
        assert!(error.to_string().contains("--image-size"), "{error}");

        let set = load(dir.path(), Some(5)).unwrap();
        assert_eq!((set.channels, set.height, set.width), (3, 5, 5));
        let red = set.train.images.chunks(75).find(|image| image[0] > 2).unwrap();
        assert!(red[0] >= 5 && red[4] <= 15, "{:?} is not the central square", &red[..5]);
    }

    #[test]
    fn image_sizes_have_a_range() {
        for size in [0, MAX_IMAGE_SIZE + 1] {
            assert!(matches!(load(small().path(), Some(size)), Err(DataError::ImageSize { .. })));
        }
    }

    #[test]
    fn both_halves_have_the_same_classes() {
        for (half, other) in [("train", "test"), ("test", "train")] {
            let dir = small();
            gray(&dir.path().join(half).join("emu/0.png"), 8, 0);
            let error = load(dir.path(), None).unwrap_err();
            let (present, absent) = (dir.path().join(half), dir.path().join(other));
            let message = format!("class `emu` is in `{}` but not in `{}`", present.display(), absent.display());
            assert!(error.to_string().starts_with(&message), "{error}");
        }
    }

    #[test]
    fn one_class_is_too_few() {
        let dir = small();
        for half in ["train", "test"] {
            fs::remove_dir_all(dir.path().join(half).join("dog")).unwrap();
        }
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(error, DataError::TooFewClasses { found: 1, .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("train` holds 1 classes, expected at least 2: make a folder for each"), "{message}");
    }

    #[test]
    fn pictures_outside_of_class_folders_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["train/0.png", "train/1.jpg", "test/0.png"] {
            gray(&dir.path().join(file), 8, 0);
        }
        fs::write(dir.path().join("train/labels.csv"), "0,1").unwrap();
        let error = load(dir.path(), None).unwrap_err().to_string();
        let expected = "train` holds 0 classes (found 2 pictures outside of class folders and 1 file that is not a picture \
                        (.csv)), expected at least 2: make a folder for each class in it";
        assert!(error.contains(expected), "{error}");
        write(dir.path());
        let notes = load(dir.path(), None).unwrap().notes;
        let [train, test] = ["train", "test"].map(|half| dir.path().join(half).display().to_string());
        let expected = [
            format!("skipped 2 pictures outside of class folders and 1 file that is not a picture (.csv) in `{train}`"),
            format!("skipped 1 picture outside of class folders in `{test}`"),
        ];
        assert_eq!(notes, expected);
    }

    #[test]
    fn a_class_without_pictures_is_named() {
        let dir = small();
        fs::remove_file(dir.path().join("test/dog/y.jpeg")).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(&error, DataError::NoPictures { path, .. } if path.ends_with("test/dog")), "{error}");
        gray(&dir.path().join("test/dog/nested/0.png"), 8, 0);
        let error = load(dir.path(), None).unwrap_err();
        assert!(error.to_string().contains("test/dog` holds no pictures (found 1 nested folder), expected"), "{error}");
    }

    #[test]
    fn an_undecodable_picture_is_named() {
        let dir = small();
        let path = dir.path().join("train/cat/b.png");
        let sound = fs::read(&path).unwrap();
        for bytes in [&b""[..], b"not a picture", &sound[..sound.len() / 2]] {
            fs::write(&path, bytes).unwrap();
            let error = load(dir.path(), None).unwrap_err();
            assert!(matches!(&error, DataError::Picture { path: p, .. } if *p == path), "{error}");
        }
    }

    #[test]
    fn a_huge_header_costs_no_memory() {
        let dir = small();
        let path = dir.path().join("train/cat/b.png");
        let mut bytes = fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65,536 x 65,536
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
        fs::write(&path, bytes).unwrap();
        let error = load(dir.path(), None).unwrap_err();
        assert!(matches!(&error, DataError::Picture { source: ImageError::Limits(_), .. }), "{error:?}");
    }
}
