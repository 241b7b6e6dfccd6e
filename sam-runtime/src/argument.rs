//! What the expansion of `#[sam]` does with a function's arguments so that its body can run twice.

use crate::Pass;

/// What an argument must be that each pass has a clone of: one by value, or one in `replay`. Every `Clone` type is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be cloned for the second pass",
    label = "not `Clone`",
    note = "a loss function under `#[sam]` runs twice: what it takes by value or in `replay(..)` has to be `Clone`"
)]
pub trait Argument {
    /// The argument for one more pass.
    #[must_use]
    fn again(&self) -> Self;
}

impl<T: Clone> Argument for T {
    fn again(&self) -> Self {
        self.clone()
    }
}

/// A by-value argument for one more pass.
pub fn again<T: Argument>(argument: &T) -> T {
    argument.again()
}

/// An argument behind `&mut` that both passes find in the same state: `replay(rng)`.
///
/// The first pass gets the argument itself, the second a clone from before the first.
#[derive(Debug)]
pub struct Replay<'a, T> {
    argument: &'a mut T,
    before: Option<T>,
}

impl<'a, T> Replay<'a, T> {
    /// Wraps the argument.
    pub fn new(argument: &'a mut T) -> Self {
        Self { argument, before: None }
    }

    /// The argument, for this pass.
    pub fn turn(&mut self, pass: Pass) -> &mut T
    where
        T: Argument,
    {
        if pass == Pass::Ascent {
            self.before = Some(self.argument.again());
        }
        match &mut self.before {
            Some(before) if pass == Pass::Descent => before,
            _ => self.argument,
        }
    }
}

/// An argument behind `&`, with state inside (a `RefCell`, say), that both passes find in the same state.
#[derive(Debug)]
pub struct ReplayRef<'a, T> {
    argument: &'a T,
    before: Option<T>,
}

impl<'a, T> ReplayRef<'a, T> {
    /// Wraps the argument.
    pub fn new(argument: &'a T) -> Self {
        Self { argument, before: None }
    }

    /// The argument, for this pass.
    pub fn turn(&mut self, pass: Pass) -> &T
    where
        T: Argument,
    {
        if pass == Pass::Ascent {
            self.before = Some(self.argument.again());
        }
        match &self.before {
            Some(before) if pass == Pass::Descent => before,
            _ => self.argument,
        }
    }
}
