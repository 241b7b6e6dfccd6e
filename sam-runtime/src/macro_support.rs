//! What the expansion of `#[sam]` does with a function's arguments so that its body can run twice.
//!
//! # What `replay` can do
//!
//! A replayed argument is cloned before the first pass, and the second pass works with the clone. So a clone has to
//! have a state of its own, like that of a seeded generator (`rand::rngs::StdRng`, `ChaCha8Rng`). A clone of an `Arc`,
//! an `Rc`, a reference or a `ThreadRng` shares its state: it is refused, by the attribute where the argument's type
//! says so, and otherwise by [`Replay::new`] when the function is called. A handle inside of another type cannot be
//! seen. Both passes then continue the same sequence of numbers.
//!
//! Numbers that come from somewhere else than an argument are not replayed either: `candle_nn::Dropout`,
//! `candle_nn::ops::dropout` and `Tensor::randn` on the CPU draw from a generator of the thread. Use
//! [`nn::Dropout`](crate::nn::Dropout), or draw the numbers with a generator that is an argument.

use std::any::type_name;
use std::marker::PhantomData;

use candle_core::{Result, Var};

use crate::core::pass::{Pass, Run};

#[doc(hidden)]
pub use candle_core;

/// What an argument must be that each pass has a clone of: one by value, or one in `replay`. Every `Clone` type is.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be cloned for the second pass",
    label = "not `Clone`",
    note = "a loss function under `#[sam]` runs twice: what it takes by value or in `replay(..)` has to be `Clone`"
)]
pub trait PassArg {
    /// The argument for one more pass.
    #[must_use]
    fn clone_for_pass(&self) -> Self;
}

impl<T: Clone> PassArg for T {
    fn clone_for_pass(&self) -> Self {
        self.clone()
    }
}

/// A by-value argument for one more pass.
pub fn clone_for_pass<T: PassArg>(argument: &T) -> T {
    argument.clone_for_pass()
}

/// A by-value argument that is to be replayed, after a check that its clones have a state of their own.
///
/// # Errors
///
/// If a clone of `T` is known to share its state.
pub fn replayed<T>(argument: T) -> Result<T> {
    check_is_no_handle::<T>()?;
    Ok(argument)
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
    ///
    /// # Errors
    ///
    /// If a clone of `T` is known to share its state: an `Arc`, an `Rc`, a reference, a `ThreadRng`.
    pub fn new(argument: &'a mut T) -> Result<Self> {
        check_is_no_handle::<T>()?;
        Ok(Self { argument, before: Before::default() })
    }

    /// The argument, for this pass.
    pub fn for_pass(&mut self, pass: Pass) -> &mut T
    where
        T: PassArg,
    {
        match self.before.for_pass(pass, self.argument) {
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
    ///
    /// # Errors
    ///
    /// As [`Replay::new`].
    pub fn new(argument: &'a T) -> Result<Self> {
        check_is_no_handle::<T>()?;
        Ok(Self { argument, before: Before::default() })
    }

    /// The argument, for this pass.
    pub fn for_pass(&mut self, pass: Pass) -> &T
    where
        T: PassArg,
    {
        match self.before.for_pass(pass, self.argument) {
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

impl<T: PassArg> Before<T> {
    /// What a pass after the first gets.
    fn for_pass(&mut self, pass: Pass, argument: &T) -> Option<&mut T> {
        let part = Run::current().part;
        match pass {
            Pass::Plain => None,
            Pass::Ascent => {
                self.parts.truncate(part);
                self.parts.push(argument.clone_for_pass());
                None
            }
            Pass::Descent => {
                self.again = Some(self.parts.get(part)?.clone_for_pass());
                self.again.as_mut()
            }
        }
    }
}

/// Refuses types whose clones share their state, as far as the name of the type tells.
fn check_is_no_handle<T>() -> Result<()> {
    /// Types whose clones share their state with them, as the compiler writes them, and generators without a state of
    /// their own.
    const HANDLES: [&str; 9] = [
        "alloc::sync::Arc<",
        "alloc::rc::Rc<",
        "alloc::sync::Weak<",
        "alloc::rc::Weak<",
        "::ThreadRng",
        "::OsRng",
        "::SysRng",
        "candle_core::tensor::Tensor",
        "candle_core::variable::Var",
    ];
    let name = type_name::<T>();
    if name.starts_with("candle_nn::") && name.ends_with("::Dropout") {
        candle_core::bail!(
            "`{name}` cannot be replayed: it has no generator of its own, and draws other masks in the second pass; \
             use `sam_runtime::nn::Dropout`, which draws the same"
        );
    }
    if name.starts_with('&') || HANDLES.iter().any(|handle| name.contains(handle)) {
        candle_core::bail!(
            "`{name}` cannot be replayed: a clone shares its state, and would draw other numbers in the second pass; \
             take a seeded generator itself, such as `&mut StdRng`"
        );
    }
    Ok(())
}

/// What `vars = ..` takes: any list of variables.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of variables",
    label = "expected an iterator over `Var`",
    note = "of a `VarMap`, write `varmap.all_vars()`; of variables, write `[a.clone(), b.clone()]`"
)]
pub trait Variables: IntoIterator<Item = Var> {}

#[diagnostic::do_not_recommend]
impl<T: IntoIterator<Item = Var>> Variables for T {}

/// The list itself, as a type that says no more than that.
pub fn variables<T: Variables>(variables: T) -> impl IntoIterator<Item = Var> {
    variables
}

/// Gives a type its name: that of the errors of this loss function.
pub fn has_error<O, E>(_: &impl FnMut(Pass) -> std::result::Result<O, E>, _: PhantomData<E>) {}

/// A result with errors of this type.
pub fn with_error<O, E>(result: std::result::Result<O, E>, _: PhantomData<E>) -> std::result::Result<O, E> {
    result
}
