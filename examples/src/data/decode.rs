//! Decoding of pictures.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};

use super::error::DataError;

/// Decodes a picture.
pub(super) fn open(path: &Path) -> Result<DynamicImage, DataError> {
    reader(path)?.decode().map_err(unsound(path))
}

/// The central square. Pictures are cropped before they are scaled, so that one of 60,000 x 1 pixels stays small.
pub(super) fn central_square(picture: &DynamicImage) -> DynamicImage {
    let (width, height) = (picture.width(), picture.height());
    let side = width.min(height);
    picture.crop_imm((width - side) / 2, (height - side) / 2, side, side)
}

/// The size of a picture, and whether it has colors.
pub(super) struct Header {
    pub(super) size: (u32, u32),
    pub(super) has_color: bool,
}

/// Reads the header of a picture.
pub(super) fn header(path: &Path) -> Result<Header, DataError> {
    let decoder = reader(path)?.into_decoder().map_err(unsound(path))?;
    Ok(Header { size: decoder.dimensions(), has_color: decoder.color_type().has_color() })
}

/// A reader that goes by the content, not by the extension, and refuses pictures of more than 512 MiB.
fn reader(path: &Path) -> Result<ImageReader<BufReader<File>>, DataError> {
    let reader = File::open(path).and_then(|file| ImageReader::new(BufReader::new(file)).with_guessed_format());
    reader.map_err(|source| DataError::reading(path, "it has gone since the folder was listed", source))
}

fn unsound(path: &Path) -> impl FnOnce(ImageError) -> DataError {
    |source| DataError::Picture { path: path.to_path_buf(), source }
}
