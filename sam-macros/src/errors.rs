//! Errors that are collected, so that everything wrong is reported at once.

use std::fmt::Display;

use quote::ToTokens;
use syn::Error;

/// Any number of errors, as one.
#[derive(Default)]
pub(crate) struct Errors(Option<Error>);

impl Errors {
    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn refuse(&mut self, at: impl ToTokens, why: impl Display) {
        self.push(Error::new_spanned(at, why));
    }

    pub(crate) fn and<T>(self, outcome: syn::Result<T>) -> syn::Result<T> {
        match (self.0, outcome) {
            (None, outcome) => outcome,
            (Some(errors), Ok(_)) => Err(errors),
            (Some(mut errors), Err(last)) => {
                errors.combine(last);
                Err(errors)
            }
        }
    }
}
