//! Which pass is running on this thread, and for which step: what layers with state or randomness have to know.
//!
//! The context is a stack: a pass puts itself on top and takes itself away, also when it panics. It tells two situations
//! apart that look alike from inside a function:
//!
//! - An annotated function calls another one: the inner one is a part of the outer loss and runs plainly.
//! - A thread of a rayon pool waits inside a pass, and rayon has it work on another training meanwhile. That training's
//!   steps have nothing to do with the pass below them.
//!
//! Only a thread of a rayon pool can be in the second situation, so there a step inside a pass is one of its own. If it
//! proves to be a part of the outer loss after all, the outer pass finds it in its graph and refuses it
//! ([`Error::Nested`](crate::Error::Nested)).

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use candle_core::{Result, Tensor, TensorId, Var};

use crate::core::lock::lock;

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
        CURRENT.with_borrow(|context| context.run.pass)
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
/// functions are: functions, methods, trait methods. It does not switch layers of [`nn`](crate::nn) to evaluation.
///
/// It is about this thread. On a thread of a rayon pool, call nothing but annotated functions in `f`: while other code
/// in it waits for rayon, rayon may have the thread work on another training, whose steps would be plain as well.
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
    let outer = Context::current();
    Context { mode: Mode::Plain, ..outer }.enter(f)
}

/// The pass that runs on a thread, to be carried to other threads that the loss function uses itself.
///
/// A thread that the loss function starts, or a rayon job that it waits for, does not know the pass: [`Pass::current`] is
/// [`Pass::Plain`] there, a [`Dropout`](crate::nn::Dropout) draws other masks in each pass, and a
/// [`BatchNorm`](crate::nn::BatchNorm) moves its running statistics in both. Where layers with state or randomness run on
/// such threads, enter the context there. A layer that several threads use at once draws its masks in the order of the calls,
/// which is another one each time: give each thread a layer of its own.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::nn::Dropout;
/// use sam_runtime::{Context, Sam};
///
/// # fn main() -> Result<()> {
/// let w = Var::ones(100, DType::F32, &Device::Cpu)?;
/// let (a, b) = (Dropout::seeded(0.5, 1), Dropout::seeded(0.5, 2));
/// Sam::new(0.05).loss(|| -> Result<Tensor> {
///     let pass = Context::current();
///     let half = |layer: &Dropout| pass.enter(|| layer.forward(&w, true)?.sqr()?.sum_all());
///     let (a, b) = rayon::join(|| half(&a), || half(&b));
///     a? + b?
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Context {
    mode: Mode,
    step: Option<Step>,
    run: Run,
    /// Of this call of a loss function, and of no other.
    call: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Outside,
    /// In [`plain`].
    Plain,
    /// In a pass of a step.
    Pass,
}

thread_local! {
    static CURRENT: RefCell<Context> =
        const { RefCell::new(Context { mode: Mode::Outside, step: None, run: Run::NONE, call: 0 }) };
}

impl Context {
    /// That of this thread.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.with_borrow(Self::clone)
    }

    /// Runs a loss function as a part of what is under way, or of [`plain`]. Also returns the number of the call.
    pub(crate) fn call<R>(f: impl FnOnce() -> R) -> (R, u64) {
        let call = next_number();
        (Self { mode: Mode::Pass, call, ..Self::current() }.enter(f), call)
    }

    /// Which call of a loss function is under way on this thread.
    pub(crate) fn current_call() -> u64 {
        CURRENT.with_borrow(|context| context.call)
    }

    /// Runs `f` on this thread as a part of this context.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let _below = Below(Some(CURRENT.replace(self.clone())));
        f()
    }
}

/// Puts the context below back, also when a pass panics.
struct Below(Option<Context>);

impl Drop for Below {
    fn drop(&mut self) {
        if let Some(context) = self.0.take() {
            // What goes here may be a step's last reference: not while the context is borrowed.
            let _over = CURRENT.replace(context);
        }
    }
}

/// A step of a [`Sam`](crate::Sam), the same in all its passes. Clones are the same step.
#[derive(Clone, Debug)]
pub(crate) struct Step(Arc<StepState>);

#[derive(Debug)]
struct StepState {
    number: u64,
    /// What the state of layers was before the step changed it.
    before: Mutex<Before>,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.0.number == other.0.number
    }
}

impl Step {
    pub(crate) fn begin() -> Self {
        Self(Arc::new(StepState { number: next_number(), before: Mutex::default() }))
    }

    /// Of no other step or run of the process.
    pub(crate) fn number(&self) -> u64 {
        self.0.number
    }

    /// The step whose pass is under way on this thread, if one is.
    pub(crate) fn current() -> Option<Self> {
        CURRENT.with_borrow(|context| context.step.clone())
    }

    /// Whether a step that begins now is one of its own: neither a part of another loss nor inside [`plain`].
    pub(crate) fn is_outermost() -> bool {
        match CURRENT.with_borrow(|context| context.mode) {
            Mode::Outside => true,
            Mode::Plain => false,
            Mode::Pass => rayon::current_thread_index().is_some(),
        }
    }

    /// Runs one pass of the step, or a part of it.
    pub(crate) fn run<R>(&self, pass: Pass, part: usize, f: impl FnOnce(Pass) -> R) -> R {
        let run = Run { pass, part, number: next_number() };
        Context { mode: Mode::Pass, step: Some(self.clone()), run, call: run.number }.enter(|| f(pass))
    }

    /// Remembers the value of a variable that is about to be changed, so that it is restored if the step fails.
    pub(crate) fn keep(&self, var: &Tensor) -> Result<()> {
        self.before().keep(var)
    }

    /// What it has remembered.
    pub(crate) fn take_before(&self) -> Before {
        std::mem::take(&mut self.before())
    }

    fn before(&self) -> MutexGuard<'_, Before> {
        lock(&self.0.before)
    }

    /// For whoever remembers something for as long as the step lasts.
    pub(crate) fn downgrade(&self) -> WeakStep {
        WeakStep(Arc::downgrade(&self.0))
    }
}

/// A step that may be over.
#[derive(Clone, Debug)]
pub(crate) struct WeakStep(Weak<StepState>);

impl WeakStep {
    pub(crate) fn is(&self, step: &Step) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&step.0))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Whether this thread is certainly inside a loss function. On a thread of a rayon pool that is not certain.
pub(crate) fn is_inside_a_pass() -> bool {
    CURRENT.with_borrow(|context| context.mode == Mode::Pass) && rayon::current_thread_index().is_none()
}

/// Values of variables from before a step. Dropped, it puts them back.
#[derive(Debug, Default)]
pub(crate) struct Before(HashMap<TensorId, (Var, Tensor)>);

impl Before {
    fn keep(&mut self, var: &Tensor) -> Result<()> {
        if let Entry::Vacant(entry) = self.0.entry(var.id()) {
            let var = Var::from_tensor(var)?;
            let value = var.as_detached_tensor().copy()?.detach();
            entry.insert((var, value));
        }
        Ok(())
    }

    /// Keeps what was before both, `self` being the earlier one.
    pub(crate) fn append(&mut self, mut later: Self) {
        for (id, kept) in self.0.drain() {
            later.0.insert(id, kept);
        }
        std::mem::swap(&mut self.0, &mut later.0);
    }

    /// All went well: what has changed stays so.
    pub(crate) fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        for (_, (var, value)) in self.0.drain() {
            if let Err(error) = var.set(&value) {
                tracing::error!(%error, "a state variable could not be put back after a failed step");
            }
        }
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
        CURRENT.with_borrow(|context| context.run)
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
