//! What a loss function may return: the loss, alone or with auxiliary values.

use candle_core::{Result, Tensor};

use crate::core::dtype::wide;
use crate::core::error::Error;
use crate::core::identity::storage_of;

/// What a loss function returns in `Ok`: a [`Tensor`], a tuple of one and of up to five [auxiliary values](Aux), or a
/// struct.
///
/// A struct derives it. The field with the loss is called `loss`, or is the first of a tuple struct; all others are
/// auxiliary values. `#[aux(crate = ::path)]` says where the runtime is, if it is re-exported.
///
/// ```
/// use candle_core::{Device, Result, Tensor, Var};
/// use sam_runtime::{LossOutput, sam};
///
/// #[derive(LossOutput)]
/// struct Step {
///     loss: Tensor,
///     logits: Tensor,
///     hits: usize,
/// }
///
/// #[sam(rho = 0.05)]
/// fn loss(w: &Var, x: &Tensor) -> Result<Step> {
///     let logits = x.broadcast_mul(w)?;
///     Ok(Step { loss: logits.sqr()?.mean_all()?, logits, hits: 3 })
/// }
///
/// # fn main() -> Result<()> {
/// let (w, x) = (Var::new(&[1f32, 2.], &Device::Cpu)?, Tensor::new(&[[1f32, 2.], [0., 3.]], &Device::Cpu)?);
/// let step = loss(&w, &x)?;
/// assert!(step.loss.backward()?.get(&w).is_some());
/// assert_eq!((step.logits.dims(), step.hits), ([2, 2].as_slice(), 3));
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a loss function cannot return `{Self}`",
    label = "expected `Tensor`, or a tuple `(Tensor, A, ..)` of the loss and auxiliary values",
    note = "for a struct with a field `loss: Tensor`, write `#[derive(sam_runtime::LossOutput)]`"
)]
pub trait LossOutput: Sized {
    /// The loss.
    fn loss(&self) -> &Tensor;

    /// The same values without their graph, in buffers of their own.
    ///
    /// # Errors
    ///
    /// If a tensor cannot be copied.
    fn into_detached(self) -> Result<Self>;

    /// The same auxiliary values with another loss.
    #[must_use]
    fn with_loss(self, loss: Tensor) -> Self;

    /// The values of several shards as those of the whole batch, each with its share of the samples. The loss is the
    /// weighted mean of the shards' losses.
    ///
    /// # Errors
    ///
    /// Those of [`Aux::join_shards`].
    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self>;
}

/// A value that a loss function returns next to the loss: logits, the number of hits, ..
///
/// It is taken from the first pass, at w, and must leave its graph behind, or the first pass would stay in memory
/// through the second.
///
/// Tensors, numbers, text, `bool`, `char`, `Duration` and `Instant` are auxiliary values, and so are options, boxes,
/// vectors, arrays, maps, sets and tuples of them. A type of your own derives it; `#[aux(crate = ::path)]` says where the
/// runtime is, if it is re-exported. A type of another crate that holds no tensor goes into [`Plain`].
///
/// ```
/// use candle_core::Tensor;
/// use sam_runtime::Aux;
///
/// #[derive(Aux)]
/// struct Metrics<'a> {
///     name: &'a str,
///     logits: Tensor,
///     hits: usize,
/// }
/// ```
///
/// By hand:
///
/// ```
/// # use candle_core::{Result, Tensor};
/// # use sam_runtime::Aux;
/// struct Range {
///     logits: Tensor,
///     largest: f64,
/// }
///
/// impl Aux for Range {
///     fn detached(self) -> Result<Self> {
///         Ok(Self { logits: Aux::detached(self.logits)?, ..self })
///     }
///
///     fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
///         let largest = parts.iter().map(|(_, part)| part.largest).fold(f64::MIN, f64::max);
///         let logits = Aux::join_shards(parts.into_iter().map(|(share, part)| (share, part.logits)).collect())?;
///         Ok(Self { logits, largest })
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a loss function cannot return `{Self}` next to its loss",
    label = "not an auxiliary value",
    note = "write `#[derive(sam_runtime::Aux)]` on a type of your own; put one of another crate, without tensors in it, \
            into `sam_runtime::Plain`"
)]
pub trait Aux: Sized {
    /// The same value without its graph, in buffers of its own: an optimizer's step must not change it.
    ///
    /// # Errors
    ///
    /// If a tensor cannot be copied.
    fn detached(self) -> Result<Self>;

    /// The values of several shards as that of the whole batch, each with its share of the samples.
    ///
    /// | value | over shards |
    /// | --- | --- |
    /// | tensor | joined along dimension 0 |
    /// | tensor without dimensions, of floats | weighted mean |
    /// | tensor without dimensions, of integers | sum |
    /// | `f32`, `f64` | weighted mean |
    /// | integer, `Duration` | sum; an error where it overflows |
    /// | `Vec`, `VecDeque` | one behind the other |
    /// | set | union |
    /// | `Option` | `None` if it is `None` for a shard |
    /// | array, tuple, map | value by value; maps must have the same keys |
    /// | text, `bool`, `char`, `DType`, reference | must be equal for all shards |
    /// | `Instant`, `SystemTime` | the earliest |
    ///
    /// # Errors
    ///
    /// Where the table says so, and unless implemented: a type has to say what its values over several shards are.
    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        let _ = parts;
        Err(Error::Join(std::any::type_name::<Self>()).into())
    }
}

/// An auxiliary value of any type without tensors, for types of other crates that cannot implement [`Aux`].
///
/// A tensor in it would keep its graph, and the whole first pass, in memory.
///
/// ```
/// use candle_core::{Result, Tensor, Var};
/// use sam_runtime::{Plain, sam};
///
/// #[sam]
/// fn loss(w: &Var) -> Result<(Tensor, Plain<std::ops::Range<usize>>)> {
///     Ok((w.sqr()?.sum_all()?, Plain(0..w.elem_count())))
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Plain<T>(pub T);

impl<T> Aux for Plain<T> {
    fn detached(self) -> Result<Self> {
        Ok(self)
    }
}

/// The value of a tensor: without a graph, and in a buffer that no variable has.
///
/// A view of a variable would change when the variable does, and so could a tensor without a graph: nothing tells where
/// it comes from.
pub(crate) fn value_of(tensor: &Tensor) -> Result<Tensor> {
    let own = storage_of(tensor);
    let is_apart = !tensor.is_variable()
        && tensor.track_op()
        && tensor.sorted_nodes().into_iter().filter(|node| node.is_variable()).all(|var| storage_of(var) != own);
    if is_apart { Ok(tensor.detach()) } else { tensor.detach().force_contiguous() }
}

impl LossOutput for Tensor {
    fn loss(&self) -> &Tensor {
        self
    }

    fn into_detached(self) -> Result<Self> {
        value_of(&self)
    }

    fn with_loss(self, loss: Tensor) -> Self {
        loss
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        mean(&parts)
    }
}

/// The weighted mean of scalars.
pub(super) fn mean(parts: &[(f64, Tensor)]) -> Result<Tensor> {
    let Some((_, first)) = parts.first() else { candle_core::bail!("the mean of no shards") };
    let wide = wide(first.dtype());
    let mut sum = first.zeros_like()?.to_dtype(wide)?;
    for (share, part) in parts {
        sum = (sum + (part.to_dtype(wide)? * *share)?)?;
    }
    sum.to_dtype(first.dtype())
}
