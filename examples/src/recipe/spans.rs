//! Positions in a file, for error messages.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Error, anyhow};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// The line, from 1, of a byte of a text.
#[must_use]
pub fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count()
}

/// A text and its name.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) text: String,
}

impl File {
    /// Reads a TOML document whose errors name the file and the line.
    pub(super) fn parse<'a, T: Deserialize<'a>>(self: &'a Arc<Self>) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|error| self.error(error.span().as_ref(), error.message().trim()))
    }

    /// An error at a position.
    pub(super) fn error(&self, span: Option<&Range<usize>>, what: impl fmt::Display) -> Error {
        match span {
            Some(span) => anyhow!("{}, line {}: {what}", self.name, line_of(&self.text, span.start)),
            None => anyhow!("{}: {what}", self.name),
        }
    }
}

/// A value and its position.
#[derive(Clone, Debug)]
pub struct WithSpan<T> {
    pub(super) value: T,
    span: Range<usize>,
    /// Set by [`in_file`](Self::in_file).
    pub(super) file: Option<Arc<File>>,
}

impl<T> WithSpan<T> {
    /// The same value of this file.
    pub(super) fn in_file(&self, file: &Arc<File>) -> Self
    where
        T: Clone,
    {
        Self { file: Some(Arc::clone(file)), ..self.clone() }
    }

    /// An error that names the position.
    pub fn error(&self, what: impl fmt::Display) -> Error {
        match &self.file {
            Some(file) => file.error(Some(&self.span), what),
            None => anyhow!("{what}"),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WithSpan<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self { value: spanned.into_inner(), span, file: None })
    }
}
