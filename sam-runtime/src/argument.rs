//! What the expansion of `#[sam]` does with a function's arguments so that its body can run twice.

use crate::Pass;
use crate::pass::Run;

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

/// An argument behind `&mut` that all passes find in the same state: `replay(rng)`.
///
/// The first pass gets the argument itself, the others a clone from before the first.
#[derive(Debug)]
pub struct Replay<'a, T> {
    argument: &'a mut T,
    before: Before<T>,
}

impl<'a, T> Replay<'a, T> {
    /// Wraps the argument.
    pub fn new(argument: &'a mut T) -> Self {
        Self { argument, before: Before::default() }
    }

    /// The argument, for this pass.
    pub fn turn(&mut self, pass: Pass) -> &mut T
    where
        T: Argument,
    {
        match self.before.turn(pass, self.argument) {
            Some(before) => before,
            None => self.argument,
        }
    }
}

/// An argument behind `&`, with state inside (a `RefCell`, say), that all passes find in the same state.
#[derive(Debug)]
pub struct ReplayRef<'a, T> {
    argument: &'a T,
    before: Before<T>,
}

impl<'a, T> ReplayRef<'a, T> {
    /// Wraps the argument.
    pub fn new(argument: &'a T) -> Self {
        Self { argument, before: Before::default() }
    }

    /// The argument, for this pass.
    pub fn turn(&mut self, pass: Pass) -> &T
    where
        T: Argument,
    {
        match self.before.turn(pass, self.argument) {
            Some(before) => before,
            None => self.argument,
        }
    }
}

/// What an argument was before the first pass; where that goes through the batch in parts, before each of them.
#[derive(Debug)]
struct Before<T> {
    parts: Vec<T>,
    again: Option<T>,
}

impl<T> Default for Before<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), again: None }
    }
}

impl<T: Argument> Before<T> {
    /// What a pass after the first gets.
    fn turn(&mut self, pass: Pass, argument: &T) -> Option<&mut T> {
        let part = Run::current().part;
        match pass {
            Pass::Plain => None,
            Pass::Ascent => {
                self.parts.truncate(part);
                self.parts.push(argument.again());
                None
            }
            Pass::Descent => {
                self.again = Some(self.parts.get(part)?.again());
                self.again.as_mut()
            }
        }
    }
}
