//! Which of the two passes is running, for whoever has to know: layers with state or randomness.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the loss function is being run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// An ordinary run: no sharpness-aware step is under way on this thread.
    Plain,
    /// The first pass, at w: its gradient gives the perturbation, its value is the loss that the caller sees. Where a
    /// [direction](crate::variants::Direction) needs no gradient it is the only pass, at w + ε̂.
    Ascent,
    /// The second pass, at w + ε̂: its gradient is the one that the caller gets. Also every further one, where a
    /// [variant](crate::variants) has more.
    Descent,
}

impl Pass {
    /// The pass that is running on this thread.
    ///
    /// ```
    /// use candle_core::{DType, Device, Result, Tensor, Var};
    /// use sam_runtime::{Pass, Sam};
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::ones(3, DType::F32, &Device::Cpu)?;
    /// let mut passes = Vec::new();
    /// Sam::new(0.05).loss(|| -> Result<Tensor> {
    ///     passes.push(Pass::current());
    ///     w.sqr()?.sum_all()
    /// })?;
    /// assert_eq!(passes, [Pass::Ascent, Pass::Descent]);
    /// assert_eq!(Pass::current(), Pass::Plain);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get().run.pass
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Ascent => "ascent",
            Self::Descent => "descent",
        })
    }
}

/// Runs `f` with every annotated function in it plain: one pass, no perturbation, the gradient of L at w.
///
/// For evaluation, for comparing with the plain gradient, or for a learning rate finder; whatever the annotated
/// functions are: functions, methods, trait methods. Layers of [`nn`](crate::nn) are not concerned.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::{plain, sam};
///
/// #[sam(rho = 0.5)]
/// fn loss(w: &Var) -> Result<Tensor> {
///     w.sqr()?.sum_all()
/// }
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let gradient = |loss: Tensor| loss.backward()?.get(&w).unwrap().to_vec1::<f32>();
/// assert_eq!(gradient(plain(|| loss(&w))?)?, [6., 8.]);         // 2w
/// let sharp = gradient(loss(&w)?)?;                             // 2(w + 0.5 w/|w|)
/// assert!((sharp[0] - 6.6).abs() < 1e-6 && (sharp[1] - 8.8).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub fn plain<R>(f: impl FnOnce() -> R) -> R {
    let _scope = Scope::enter(State { nested: true, ..CURRENT.get() });
    f()
}

/// The number of a step, the same in all its passes and in no other step of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step(u64);

impl Step {
    pub(crate) fn begin() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a step may begin: not inside a pass of another one, and not inside [`plain`].
    pub(crate) fn is_outermost() -> bool {
        !CURRENT.get().nested
    }

    /// The step under way on this thread, if one is.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.get().step
    }

    /// Runs one pass of the step, or a part of it.
    pub(crate) fn run<R>(self, pass: Pass, part: usize, f: impl FnOnce(Pass) -> R) -> R {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let run = Run { pass, part, number: NEXT.fetch_add(1, Ordering::Relaxed) };
        let _scope = Scope::enter(State { nested: true, step: Some(self), run });
        f(pass)
    }
}

/// One run of the loss function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) pass: Pass,
    /// Which part of the batch it is for: what is drawn in one pass for a part is drawn again for it in the next.
    pub(crate) part: usize,
    /// Of no other run of the process.
    pub(crate) number: u64,
}

impl Run {
    pub(crate) const NONE: Self = Self { pass: Pass::Plain, part: 0, number: 0 };

    /// The run that is under way on this thread.
    pub(crate) fn current() -> Self {
        CURRENT.get().run
    }
}

#[derive(Clone, Copy)]
struct State {
    /// An annotated function that is called now runs plainly: the outermost one is the loss.
    nested: bool,
    step: Option<Step>,
    run: Run,
}

thread_local! {
    static CURRENT: Cell<State> = const { Cell::new(State { nested: false, step: None, run: Run::NONE }) };
}

/// Puts the state back when it ends, also when a pass panics.
struct Scope(State);

impl Scope {
    fn enter(state: State) -> Self {
        Self(CURRENT.replace(state))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
