//! The errors of a step.

use candle_core::{DType, Shape};

use crate::core::pass::Pass;

/// Why a step was refused. The weights are what they were before it.
///
/// A loss function may have any error type that is `From<candle_core::Error>`; this one reaches it inside a
/// [`candle_core::Error`], and [`Error::of`] gets it back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The radius of the ball is negative or not finite.
    #[error("`rho` is {0}: the radius of the ball must be a finite number, 0 or more")]
    Rho(f64),

    /// The order of the norm is below 1 or NaN.
    #[error("`p` is {0}: the norm of the ball needs 1 <= p <= inf")]
    P(f64),

    /// The offset of the adaptive ball is negative or not finite.
    #[error("`adaptive` is {0}: eta must be a finite number, 0 or more")]
    Eta(f64),

    /// A setting of a variant is out of range.
    #[error("`{what}` is {value}: expected {expected}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },

    /// Two settings do not go together.
    #[error("invalid combination of settings: `{what}`: {why}")]
    Settings {
        /// One of them.
        what: &'static str,
        /// What it needs.
        why: &'static str,
    },

    /// The loss has more than one element.
    #[error("the loss must be a single number, found shape {0:?}: reduce it, e.g. with `.mean_all()?`")]
    NotScalar(Shape),

    /// A loss for each sample was expected.
    #[error("expected one loss for each of {} samples, found shape {found:?}: leave out the mean", .rows.map_or_else(|| "the".to_owned(), |rows| rows.to_string()))]
    NotPerExample {
        /// What the loss function returned.
        found: Shape,
        /// How many samples it was given, where that is known.
        rows: Option<usize>,
    },

    /// The loss is not a floating point tensor.
    #[error("the loss must be f32, f64, bf16 or f16, found {0:?}")]
    NotFloat(DType),

    /// The loss is NaN or infinite.
    #[error("the loss is {value} in the {}: no gradient was taken, the weights are unchanged", in_words(*.pass))]
    NonFiniteLoss {
        /// The pass that met it.
        pass: Pass,
        /// NaN or an infinity.
        value: f64,
    },

    /// The gradient has a NaN or an infinity.
    #[error(
        "the gradient of the {} is not finite in variable {}: the weights are unchanged; lower the learning rate or scale \
         the loss",
        in_words(*.pass),
        describe_variable(.name.as_deref(), *.index, *.count, .shape, *.dtype)
    )]
    NonFiniteGradient {
        /// The pass that met it.
        pass: Pass,
        /// The variable's name, where one is [registered](crate::name_variables).
        name: Option<String>,
        /// Which variable, from 1.
        index: usize,
        /// How many variables the loss depends on.
        count: usize,
        /// The variable's shape.
        shape: Shape,
        /// The variable's type.
        dtype: DType,
    },

    /// A part of the graph was computed before the pass whose backward pass uses it.
    #[error(
        "the loss depends on a tensor{} that was computed from variables outside of the loss function, or in an earlier \
         pass: its gradient would not be taken at w + eps; compute it inside the loss function, or `detach()` it if no \
         gradient is to go through it", .shape.as_ref().map_or_else(String::new, |shape| format!(" of shape {shape:?}"))
    )]
    StaleGraph {
        /// The tensor's shape, where it is one that the program has.
        shape: Option<Shape>,
    },

    /// A sharpness-aware loss is a part of another one, and was not recognized as such in time.
    #[error(
        "a loss function under `#[sam]` was called inside another one on a thread of a rayon pool, where it cannot be \
         told from another training: call the inner one as `sam_runtime::plain(|| ..)`"
    )]
    Nested,

    /// A variable holds w + ε̂ of another step, or did so while this one was under way.
    #[error(
        "{variable} holds w + eps of another step, or did while this one ran: steps on the same weights must not overlap; \
         finish one before the next, or give each thread a model of its own"
    )]
    Displaced {
        /// Its name, if it has one, shape and type.
        variable: String,
    },

    /// An optimizer has moved a variable between the passes of a step, or during one.
    #[error(
        "{variable} was moved by an optimizer while a step was under way: the optimizer's step belongs after the loss \
         function, not into it"
    )]
    Moved {
        /// Its name, if it has one, shape and type.
        variable: String,
    },

    /// An optimizer was asked for a step inside a loss function.
    #[error(
        "an optimizer's step inside a sharpness-aware loss function: put `#[sam]` on the function that computes the loss, \
         and the optimizer's step after it"
    )]
    OptimizerInPass,

    /// A variable that `vars` lists gets no gradient.
    #[error(
        "`vars` lists {variable}, which gets no gradient: it would be neither perturbed nor trained; an operation between it and \
         the loss may have no backward pass (candle_nn's LayerNorm, RmsNorm, softmax_last_dim, rope and sdpa have none, those of \
         `sam_runtime::nn` have one; `Sam::diagnose` lists all such variables); leave it out if the loss does not use it, or list it as \
         `buffers` if it is running statistics"
    )]
    NoGradient {
        /// Its name, if it has one, shape and type.
        variable: String,
    },

    /// A `Sam` that remembers something from step to step is used for two steps at once.
    #[error(
        "a step of this `Sam` is under way, and it remembers something from step to step: give each training a `Sam` of \
         its own, with `clone()`"
    )]
    SharedMemory,

    /// A variable in f16 or bf16 cannot hold w + ε̂: more than half of ε̂ would be lost to rounding.
    #[error(
        "{variable} cannot hold w + eps: rounding to {dtype:?} would lose {percent:.0} % of the perturbation; keep the weights \
         in f32 and convert them with `to_dtype` in the forward pass, or take a larger `rho`", percent = 100.0 * .lost
    )]
    LostToRounding {
        /// Shape and dtype of the variable that loses most.
        variable: String,
        /// Its dtype.
        dtype: DType,
        /// ‖lost‖ / ‖ε̂‖, from ½ to 1, or more.
        lost: f64,
    },

    /// The loss depends on none of the variables that `vars` names.
    #[error("`vars` names no variable that the loss depends on: nothing would be perturbed")]
    NothingToPerturb,

    /// Shards have a perturbation each, what is remembered is one for each step.
    #[error(
        "`shards` cannot be combined with a setting that remembers something from step to step: use `micro_batches`, or \
         leave that setting out"
    )]
    ShardedMemory,

    /// The squared norm of the gradient was to be read, and is not finite.
    #[error("the squared norm of the gradient is {0}: the weights are unchanged; scale the loss down")]
    NonFiniteNorm(f64),

    /// State was to be saved or loaded in the middle of a step.
    #[error("cannot save or load while a step is in progress: do it between steps")]
    MidStep,

    /// The sharded arguments have no rows, or differ in their number.
    #[error("sharded arguments must have the same number of rows, at least 1: found {0} and {1}")]
    Rows(usize, usize),

    /// A sharded argument without a first dimension.
    #[error("a sharded argument needs a first dimension to be split along, found a scalar")]
    ShardedScalar,

    /// Another rank of a [distributed](crate::distributed) training failed in this step or call, so no rank takes it.
    #[error("rank {rank} failed in this step: {why}; no rank takes it, the weights are unchanged")]
    OtherRank {
        /// Which one.
        rank: usize,
        /// Its error, as far as it is known there.
        why: String,
        /// Whether its loss or its gradient was not finite.
        is_overflow: bool,
    },

    /// Ranks are not at the same call, or do not communicate.
    #[error("{0}")]
    Ranks(String),

    /// The replicas of a model have diverged.
    #[error(
        "the replicas have diverged: {variable} is another one on {ranks}; resume from the last checkpoint, with the same \
         variables, seeds and optimizer on all ranks"
    )]
    Replicas {
        /// The first variable that differs: its name, if it has one, dtype and shape.
        variable: String,
        /// Where it differs from most ranks.
        ranks: String,
    },

    /// An auxiliary value that does not say how the values of several shards make one.
    #[error(
        "auxiliary values of type `{0}` cannot be joined over shards: implement `sam_runtime::Aux::join_shards` for it"
    )]
    Join(&'static str),
}

impl Error {
    /// The error of this crate inside an error of candle, if it is one: what a loss function or an optimizer returned can be
    /// told apart by its kind.
    ///
    /// ```
    /// use candle_core::{Device, Result, Tensor, Var};
    /// use sam_runtime::{Error, Sam};
    ///
    /// # fn main() -> Result<()> {
    /// let w = Var::new(&[1f32, 2.], &Device::Cpu)?;
    /// let error = Sam::new(0.05).loss(|| -> Result<Tensor> { w.sum_all()?.affine(f64::NAN, 0.) }).unwrap_err();
    /// assert!(matches!(Error::of(&error), Some(Error::NonFiniteLoss { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn of(error: &candle_core::Error) -> Option<&Self> {
        use candle_core::Error as Candle;
        match error {
            Candle::Io(error) => error.get_ref()?.downcast_ref(),
            Candle::Context { inner, .. } | Candle::WithPath { inner, .. } | Candle::WithBacktrace { inner, .. } => {
                Self::of(inner)
            }
            _ => None,
        }
    }

    /// Whether this is what f16 makes of a number that is too large for it, here or on another rank: a smaller loss scale, or
    /// the next batch, may do without.
    pub(crate) fn is_overflow(&self) -> bool {
        match self {
            Self::NonFiniteGradient { .. } | Self::NonFiniteLoss { .. } => true,
            Self::OtherRank { is_overflow, .. } => *is_overflow,
            _ => false,
        }
    }
}

impl From<Error> for candle_core::Error {
    /// Inside an [`std::io::Error`], the only error type that candle keeps: see [`Error::of`].
    fn from(error: Error) -> Self {
        Self::Io(std::io::Error::other(error)).bt()
    }
}

/// An error unless the value is finite and at least so much.
pub(crate) fn at_least(what: &'static str, value: f64, least: f64) -> Result<(), Error> {
    let expected = if least == 0.0 { "a finite number, 0 or more" } else { "1 or more" };
    if value.is_finite() && value >= least { Ok(()) } else { Err(Error::Setting { what, value, expected }) }
}

/// An error unless the value is in [0, 1].
pub(crate) fn share(what: &'static str, value: f64) -> Result<(), Error> {
    let expected = "a number from 0 to 1";
    if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(Error::Setting { what, value, expected }) }
}

/// Which of the passes of a step.
fn in_words(pass: Pass) -> &'static str {
    match pass {
        Pass::Plain => "plain pass",
        Pass::Ascent => "ascent pass (the first one)",
        Pass::Descent => "descent pass (the second one, at w + eps)",
    }
}

/// A variable by its name; without one, by its index among those that the loss depends on.
fn describe_variable(name: Option<&str>, index: usize, count: usize, shape: &Shape, dtype: DType) -> String {
    let kind = format!("{dtype:?} {:?}", shape.dims());
    match name {
        Some(name) => format!("`{name}` ({kind})"),
        None => format!(
            "{index} of {count}, counted from the loss down ({kind}; `sam_runtime::name_variables` gives it a name here)"
        ),
    }
}
