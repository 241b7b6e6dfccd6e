//! What a loss function may return: the loss, alone or with auxiliary values.

use candle_core::{Result, Tensor};

use crate::Error;
use crate::kernels::wide;
use crate::names::storage_of;

/// What a loss function returns in `Ok`: a [`Tensor`], or a tuple of one and of up to five [auxiliary values](Aux).
#[diagnostic::on_unimplemented(
    message = "a loss function cannot return `{Self}`",
    label = "expected `Tensor`, or a tuple `(Tensor, A, ..)` of the loss and auxiliary values",
    note = "an auxiliary value is a tensor, a number, or an option, vector or tuple of them; implement `sam_runtime::Aux` for your own types"
)]
pub trait Output: Sized {
    /// The loss.
    fn loss(&self) -> &Tensor;

    /// The same values without their graph.
    ///
    /// # Errors
    /// If candle fails to copy one.
    fn detached(self) -> Result<Self>;

    /// The same auxiliary values with another loss.
    #[must_use]
    fn with_loss(self, loss: Tensor) -> Self;

    /// The values of several shards as those of the whole, each with its share of the examples.
    ///
    /// # Errors
    /// Where [`Aux::join`] has one.
    fn join(parts: Vec<(f64, Self)>) -> Result<Self>;
}

/// A value that a loss function returns beside the loss: logits, the number of hits, ..
///
/// It is taken from the first pass, at w, and must leave its graph behind, or the first pass would stay in memory
/// through the second.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use sam_runtime::Aux;
///
/// struct Metrics {
///     logits: Tensor,
///     hits: usize,
/// }
///
/// impl Aux for Metrics {
///     fn detached(self) -> Result<Self> {
///         Ok(Self { logits: self.logits.detached()?, ..self })
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a loss function cannot return `{Self}` beside its loss",
    label = "not an auxiliary value",
    note = "an auxiliary value is a tensor, a number, or an option, vector or tuple of them; implement `sam_runtime::Aux` for your own types"
)]
pub trait Aux: Sized {
    /// The same value without its graph.
    ///
    /// # Errors
    /// If candle fails to copy it.
    fn detached(self) -> Result<Self>;

    /// The values of several shards as that of the whole, each with its share of the examples: tensors are joined
    /// along dimension 0, scalar tensors and floats averaged, whole numbers added, vectors put one behind the other.
    ///
    /// # Errors
    /// Unless implemented: a type has to say what its values over several shards amount to.
    fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
        let _ = parts;
        Err(Error::Join(std::any::type_name::<Self>()).into())
    }
}

impl Output for Tensor {
    fn loss(&self) -> &Tensor {
        self
    }

    fn detached(self) -> Result<Self> {
        value_of(&self)
    }

    fn with_loss(self, loss: Tensor) -> Self {
        loss
    }

    fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
        mean(&parts)
    }
}

impl Aux for Tensor {
    fn detached(self) -> Result<Self> {
        value_of(&self)
    }

    fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
        if parts.iter().all(|(_, part)| part.rank() == 0) {
            return mean(&parts);
        }
        Tensor::cat(&parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>(), 0)
    }
}

/// The value of a tensor, without its graph: a value of its own, which no change of a variable reaches.
///
/// A tensor that was computed is one. A variable, a view of one, and what may be such a view are copied.
pub(crate) fn value_of(tensor: &Tensor) -> Result<Tensor> {
    let storage = storage_of(tensor);
    let is_computed = tensor.track_op()
        && !tensor.is_variable()
        && tensor.sorted_nodes().iter().filter(|node| node.is_variable()).all(|var| storage_of(var) != storage);
    if is_computed { Ok(tensor.detach()) } else { tensor.detach().force_contiguous() }
}

/// The weighted mean of scalars, whatever their type.
fn mean(parts: &[(f64, Tensor)]) -> Result<Tensor> {
    let Some((_, first)) = parts.first() else { candle_core::bail!("the mean of no shards") };
    let wide = wide(first.dtype());
    let mut sum = first.zeros_like()?.to_dtype(wide)?;
    for (share, part) in parts {
        sum = (sum + (part.to_dtype(wide)? * *share)?)?;
    }
    sum.to_dtype(first.dtype())
}

macro_rules! float_aux {
    ($($float:ty)*) => {$(
        impl Aux for $float {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
                Ok(parts.iter().map(|(share, part)| share * f64::from(*part)).sum::<f64>() as $float)
            }
        }
    )*};
}

macro_rules! count_aux {
    ($($int:ty)*) => {$(
        impl Aux for $int {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
                Ok(parts.iter().map(|(_, part)| part).sum())
            }
        }
    )*};
}

float_aux! { f32 f64 }
count_aux! { u8 u16 u32 u64 usize i8 i16 i32 i64 isize }

impl<A: Aux> Aux for Option<A> {
    fn detached(self) -> Result<Self> {
        self.map(Aux::detached).transpose()
    }

    /// None, unless every shard has a value.
    fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
        parts.into_iter().map(|(share, part)| Some((share, part?))).collect::<Option<_>>().map(A::join).transpose()
    }
}

impl<T: Aux> Aux for Vec<T> {
    fn detached(self) -> Result<Self> {
        self.into_iter().map(Aux::detached).collect()
    }

    fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
        Ok(parts.into_iter().flat_map(|(_, part)| part).collect())
    }
}

impl Aux for () {
    fn detached(self) -> Result<()> {
        Ok(())
    }

    fn join(_: Vec<(f64, Self)>) -> Result<()> {
        Ok(())
    }
}

/// `(Tensor, A, ..)` is an output, `(A, B, ..)` an auxiliary value.
macro_rules! tuples {
    ($($($type:ident $value:ident)+,)*) => {$(
        impl<$($type: Aux),+> Output for (Tensor, $($type),+) {
            fn loss(&self) -> &Tensor {
                &self.0
            }

            fn detached(self) -> Result<Self> {
                let (loss, $($value),+) = self;
                Ok((value_of(&loss)?, $($value.detached()?),+))
            }

            fn with_loss(self, loss: Tensor) -> Self {
                let (_, $($value),+) = self;
                (loss, $($value),+)
            }

            fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
                tuples!(@columns parts: Tensor loss $($type $value)+);
                Ok((mean(&loss)?, $(<$type as Aux>::join($value)?),+))
            }
        }

        tuples!(@aux $($type $value)+);
    )*};

    // One value in parentheses is no tuple.
    (@aux $type:ident $value:ident) => {};

    (@aux $($type:ident $value:ident)+) => {
        impl<$($type: Aux),+> Aux for ($($type),+) {
            fn detached(self) -> Result<Self> {
                let ($($value),+) = self;
                Ok(($($value.detached()?),+))
            }

            fn join(parts: Vec<(f64, Self)>) -> Result<Self> {
                tuples!(@columns parts: $($type $value)+);
                Ok(($(<$type as Aux>::join($value)?),+))
            }
        }
    };

    // From a vector of tuples to a vector for each place.
    (@columns $parts:ident: $($type:ident $value:ident)+) => {
        struct Columns<$($type),+> { $($value: Vec<(f64, $type)>),+ }
        let mut columns = Columns { $($value: Vec::with_capacity($parts.len())),+ };
        for (share, ($($value),+)) in $parts {
            $(columns.$value.push((share, $value));)+
        }
        let Columns { $($value),+ } = columns;
    };
}

tuples! {
    A a,
    A a B b,
    A a B b C c,
    A a B b C c D d,
    A a B b C c D d E e,
}
