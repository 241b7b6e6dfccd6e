//! Where in a file something is that is wrong.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Error, anyhow};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

/// The line, from 1, that a byte of a text is in.
#[must_use]
pub fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count()
}

/// A text and what it is called.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) text: String,
}

impl File {
    /// Reads a TOML document whose errors name the file and the line.
    pub(super) fn parse<'a, T: Deserialize<'a>>(self: &'a Arc<Self>) -> Result<T, Error> {
        toml::from_str(&self.text).map_err(|error| self.wrong(error.span().as_ref(), error.message().trim()))
    }

    /// An error at a place.
    pub(super) fn wrong(&self, span: Option<&Range<usize>>, what: impl fmt::Display) -> Error {
        match span {
            Some(span) => anyhow!("{}, line {}: {what}", self.name, line_of(&self.text, span.start)),
            None => anyhow!("{}: {what}", self.name),
        }
    }
}

/// A value, and where it was said.
#[derive(Clone, Debug)]
pub struct Blame<T> {
    pub(super) value: T,
    span: Range<usize>,
    /// Filled in when the file is known.
    pub(super) file: Option<Arc<File>>,
}

impl<T> Blame<T> {
    pub(super) fn said_in(&self, file: &Arc<File>) -> Self
    where
        T: Clone,
    {
        Self { file: Some(Arc::clone(file)), ..self.clone() }
    }

    /// An error that names the place.
    pub fn wrong(&self, what: impl fmt::Display) -> Error {
        match &self.file {
            Some(file) => file.wrong(Some(&self.span), what),
            None => anyhow!("{what}"),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Blame<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self { value: spanned.into_inner(), span, file: None })
    }
}
