//! Texts for language models: bytes, which are the tokens.

use std::fs;
use std::ops::Range;
use std::path::Path;

use super::error::DataError;

/// The number of different bytes.
pub const VOCABULARY: usize = 256;

/// The share of a text that is tested on, its end.
const TESTED: f64 = 0.1;

/// A text in memory, UTF-8 or any other bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The name in reports, that of its file.
    pub name: String,
    /// The text.
    pub bytes: Vec<u8>,
}

impl Text {
    /// The text that is compiled in: the Apache License 2.0, in English.
    #[must_use]
    pub fn embedded() -> Self {
        Self { name: "Apache License 2.0".to_owned(), bytes: include_bytes!("../../../LICENSE-APACHE").to_vec() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let read = fs::read(path);
        let bytes = read.map_err(|source| DataError::reading(path, "name a text file, of any content", source))?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        Ok(Self { name, bytes })
    }

    /// The bytes to train on, nine tenths, and those to test on, if each has a window of `length` bytes with the byte that
    /// follows.
    pub(super) fn halves(&self, length: usize) -> Result<[Range<usize>; 2], DataError> {
        let all = self.bytes.len();
        #[expect(clippy::cast_sign_loss, reason = "it is a share of a length")]
        let middle = all - (all as f64 * TESTED).ceil() as usize;
        if length == 0 || middle <= length || all - middle <= length {
            return Err(DataError::ShortText { name: self.name.clone(), found: all, length });
        }
        Ok([0..middle, middle..all])
    }

    /// Names of the tokens: a character of ASCII, or the byte in hexadecimal.
    #[must_use]
    pub fn tokens() -> Vec<String> {
        let name = |byte: u8| {
            if byte.is_ascii_graphic() { char::from(byte).to_string() } else { format!("{byte:#04x}") }
        };
        (0..=u8::MAX).map(name).collect()
    }
}

/// The windows of a part of a text. Window i has the bytes from i times the length on, and the byte after each is its label.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    pub(super) part: Range<usize>,
    pub(super) length: usize,
}

impl Windows {
    /// How many there are; a rest at the end is left out.
    pub(super) fn count(&self) -> usize {
        (self.part.len() - 1) / self.length
    }

    /// The bytes of a window and the one that follows, begun `shift` bytes earlier, as far as the part reaches. So windows
    /// reach into those before only, and not into later ones, which may be held out.
    pub(super) fn get<'t>(&self, text: &'t Text, index: u32, shift: usize) -> Option<&'t [u8]> {
        let at = self.part.start + (index as usize * self.length).saturating_sub(shift);
        ((index as usize) < self.count()).then(|| text.bytes.get(at..=at + self.length)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Text {
        Text { name: "a text".to_owned(), bytes: (0..=u8::MAX).cycle().take(length).collect() }
    }

    #[test]
    fn windows_cover_a_part_and_stay_within_it() {
        let text = text(200);
        let [train, test] = text.halves(16).unwrap();
        assert_eq!((train.clone(), test.clone()), (0..180, 180..200));
        let [train, test] = [train, test].map(|part| Windows { part, length: 16 });
        assert_eq!((train.count(), test.count()), (11, 1));
        let first = |windows: &Windows, index, shift| windows.get(&text, index, shift).map(|window| window[0]);
        assert_eq!(first(&train, 2, 0), Some(32));
        assert_eq!(first(&train, 2, 5), Some(27));
        assert_eq!(first(&train, 0, 5), Some(0));
        assert_eq!((first(&train, 10, 0), first(&train, 11, 0)), (Some(160), None));
        assert_eq!((first(&test, 0, 9), first(&test, 1, 0)), (Some(180), None));
        assert_eq!(train.get(&text, 10, 0).unwrap().len(), 17);
    }

    #[test]
    fn a_text_has_a_window_to_train_on_and_one_to_test_on() {
        assert!(text(170).halves(16).is_ok());
        for (bytes, length) in [(160, 16), (0, 1), (10, 0)] {
            let error = text(bytes).halves(length).unwrap_err().to_string();
            assert!(error.contains("a text") && error.contains(&format!("{bytes} bytes")), "{error}");
        }
    }

    #[test]
    fn each_byte_has_a_name() {
        let names = Text::tokens();
        assert_eq!((names.len(), &*names[65], &*names[10]), (VOCABULARY, "A", "0x0a"));
    }
}
