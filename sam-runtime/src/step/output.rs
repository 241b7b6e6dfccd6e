//! What a loss function may return: the loss, alone or with auxiliary values.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use candle_core::{DType, Result, Tensor};

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

    /// The values of several shards as those of the whole batch, each with its share of the examples. The loss is the
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
/// vectors, arrays, maps and tuples of them. A type of your own derives it; `#[aux(crate = ::path)]` says where the
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

    /// The values of several shards as that of the whole batch, each with its share of the examples.
    ///
    /// | value | over shards |
    /// | --- | --- |
    /// | tensor | joined along dimension 0 |
    /// | tensor without dimensions, of floats | weighted mean |
    /// | tensor without dimensions, of integers | sum |
    /// | `f32`, `f64` | weighted mean |
    /// | integer, `Duration` | sum; an error where it overflows |
    /// | `Vec` | one behind the other |
    /// | `Option` | `None` if it is `None` for a shard |
    /// | array, tuple, map | value by value; maps must have the same keys |
    /// | text, `bool`, `char`, `DType` | must be equal for all shards |
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

impl Aux for Tensor {
    fn detached(self) -> Result<Self> {
        value_of(&self)
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        if parts.iter().any(|(_, part)| part.rank() > 0) {
            return Tensor::cat(&parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>(), 0);
        }
        match parts.first() {
            Some((_, first)) if !first.dtype().is_float() => sum(&parts, first.dtype()),
            _ => mean(&parts),
        }
    }
}

/// The weighted mean of scalars.
fn mean(parts: &[(f64, Tensor)]) -> Result<Tensor> {
    let Some((_, first)) = parts.first() else { candle_core::bail!("the mean of no shards") };
    let wide = wide(first.dtype());
    let mut sum = first.zeros_like()?.to_dtype(wide)?;
    for (share, part) in parts {
        sum = (sum + (part.to_dtype(wide)? * *share)?)?;
    }
    sum.to_dtype(first.dtype())
}

/// The sum of whole scalars: in i64, without rounding.
fn sum(parts: &[(f64, Tensor)], dtype: DType) -> Result<Tensor> {
    let Some((_, first)) = parts.first() else { candle_core::bail!("the sum of no shards") };
    if first.device().is_cpu() {
        let number = |part: &Tensor| part.to_dtype(DType::I64)?.to_scalar::<i64>();
        let numbers = parts.iter().map(|(_, part)| number(part)).collect::<Result<Vec<_>>>()?;
        let largest = match dtype {
            DType::U8 => u8::MAX.into(),
            DType::U32 => u32::MAX.into(),
            DType::I16 => i16::MAX.into(),
            DType::I32 => i32::MAX.into(),
            _ => i64::MAX,
        };
        return match numbers.iter().try_fold(0i64, |sum, number| sum.checked_add(*number)) {
            Some(sum) if sum <= largest => Tensor::new(sum, first.device())?.to_dtype(dtype),
            _ => Err(too_large(dtype.as_str(), &numbers)),
        };
    }
    // On other devices the numbers are not checked: that would wait for the device.
    let mut sum = first.to_dtype(DType::I64)?;
    for (_, part) in parts.iter().skip(1) {
        sum = (sum + part.to_dtype(DType::I64)?)?;
    }
    sum.to_dtype(dtype)
}

fn too_large(ty: &str, numbers: &[impl fmt::Debug]) -> candle_core::Error {
    let why = format!("the sum over shards of {numbers:?} does not fit into `{ty}`: return a larger type");
    candle_core::Error::msg(why)
}

macro_rules! float_aux {
    ($($float:ty)*) => {$(
        impl Aux for $float {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                Ok(parts.iter().map(|(share, part)| share * f64::from(*part)).sum::<f64>() as $float)
            }
        }
    )*};
}

/// Types whose values over shards are added up.
macro_rules! count_aux {
    ($($int:ty = $zero:expr,)*) => {$(
        impl Aux for $int {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                let parts: Vec<_> = parts.into_iter().map(|(_, part)| part).collect();
                let sum = parts.iter().try_fold($zero, |sum, part| sum.checked_add(*part));
                sum.ok_or_else(|| too_large(stringify!($int), &parts))
            }
        }
    )*};
}

/// Types whose values have to be the same for all shards.
macro_rules! same_aux {
    ($($type:ty)*) => {$(
        impl Aux for $type {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                let mut parts = parts.into_iter().map(|(_, part)| part);
                let Some(first) = parts.next() else { candle_core::bail!("no shards to join") };
                match parts.find(|part| *part != first) {
                    Some(other) => candle_core::bail!(
                        "an auxiliary value of type `{}` is {first:?} for one shard and {other:?} for another: return one \
                         that can be joined, or implement `sam_runtime::Aux` for a type of your own",
                        std::any::type_name::<Self>()
                    ),
                    None => Ok(first),
                }
            }
        }
    )*};
}

/// Types of which the smallest value counts.
macro_rules! earliest_aux {
    ($($time:ty)*) => {$(
        impl Aux for $time {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                let earliest = parts.into_iter().map(|(_, part)| part).min();
                earliest.ok_or_else(|| candle_core::Error::msg("no shards to join"))
            }
        }
    )*};
}

float_aux! { f32 f64 }
count_aux! {
    u8 = 0u8, u16 = 0u16, u32 = 0u32, u64 = 0u64, u128 = 0u128, usize = 0usize,
    i8 = 0i8, i16 = 0i16, i32 = 0i32, i64 = 0i64, i128 = 0i128, isize = 0isize,
    Duration = Duration::ZERO,
}
same_aux! { bool char String DType &str Cow<'_, str> Box<str> Arc<str> }
earliest_aux! { Instant SystemTime }

impl<A: Aux> Aux for Option<A> {
    fn detached(self) -> Result<Self> {
        self.map(A::detached).transpose()
    }

    /// None, unless every shard has a value.
    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        let parts = parts.into_iter().map(|(share, part)| Some((share, part?))).collect::<Option<_>>();
        parts.map(A::join_shards).transpose()
    }
}

impl<T: Aux> Aux for Vec<T> {
    fn detached(self) -> Result<Self> {
        self.into_iter().map(T::detached).collect()
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        Ok(parts.into_iter().flat_map(|(_, part)| part).collect())
    }
}

impl<A: Aux, const N: usize> Aux for [A; N] {
    fn detached(self) -> Result<Self> {
        array(self.into_iter().map(A::detached))
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        let mut columns: [Vec<(f64, A)>; N] = std::array::from_fn(|_| Vec::with_capacity(parts.len()));
        for (share, part) in parts {
            for (column, value) in columns.iter_mut().zip(part) {
                column.push((share, value));
            }
        }
        array(columns.into_iter().map(A::join_shards))
    }
}

/// The N values that an iterator has.
fn array<A, const N: usize>(values: impl Iterator<Item = Result<A>>) -> Result<[A; N]> {
    let values = values.collect::<Result<Vec<_>>>()?;
    let found = values.len();
    values.try_into().map_err(|_| candle_core::Error::msg(format!("expected {N} values, found {found}")))
}

/// The values of each key. Every shard has to have the same keys.
macro_rules! map_aux {
    ($($map:ident<K, V $(, $hasher:ident)?> where K: $key:ident $(+ $more:ident)*;)*) => {$(
        impl<K: $key $(+ $more)* + fmt::Debug, V: Aux $(, $hasher: BuildHasher + Default)?> Aux for $map<K, V $(, $hasher)?> {
            fn detached(self) -> Result<Self> {
                self.into_iter().map(|(key, value)| Ok((key, value.detached()?))).collect()
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                let shards = parts.len();
                let mut columns: $map<K, Vec<(f64, V)> $(, $hasher)?> = Default::default();
                for (share, part) in parts {
                    for (key, value) in part {
                        columns.entry(key).or_default().push((share, value));
                    }
                }
                let join = |(key, values): (K, Vec<_>)| {
                    if values.len() < shards {
                        candle_core::bail!("an auxiliary map has {key:?} for {} of {shards} shards only", values.len());
                    }
                    Ok((key, V::join_shards(values)?))
                };
                columns.into_iter().map(join).collect()
            }
        }
    )*};
}

map_aux! {
    HashMap<K, V, S> where K: Eq + Hash;
    BTreeMap<K, V> where K: Ord;
}

impl<T: Aux> Aux for Box<T> {
    fn detached(self) -> Result<Self> {
        (*self).detached().map(Box::new)
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        T::join_shards(parts.into_iter().map(|(share, part)| (share, *part)).collect()).map(Box::new)
    }
}

/// A value that is shared is cloned: its graph has to go, and the other owners keep theirs.
macro_rules! shared_aux {
    ($($shared:ident)*) => {$(
        impl<T: Aux + Clone> Aux for $shared<T> {
            fn detached(self) -> Result<Self> {
                $shared::unwrap_or_clone(self).detached().map($shared::new)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                let parts = parts.into_iter().map(|(share, part)| (share, $shared::unwrap_or_clone(part)));
                T::join_shards(parts.collect()).map($shared::new)
            }
        }
    )*};
}

shared_aux! { Arc Rc }

impl Aux for () {
    fn detached(self) -> Result<Self> {
        Ok(())
    }

    fn join_shards(_: Vec<(f64, Self)>) -> Result<Self> {
        Ok(())
    }
}

impl<T> Aux for PhantomData<T> {
    fn detached(self) -> Result<Self> {
        Ok(self)
    }

    fn join_shards(_: Vec<(f64, Self)>) -> Result<Self> {
        Ok(Self)
    }
}

/// `(Tensor, A, ..)` is an output, `(A, B, ..)` an auxiliary value.
macro_rules! tuples {
    ($($($type:ident $value:ident)+,)*) => {$(
        impl<$($type: Aux),+> LossOutput for (Tensor, $($type),+) {
            fn loss(&self) -> &Tensor {
                &self.0
            }

            fn into_detached(self) -> Result<Self> {
                let (loss, $($value),+) = self;
                Ok((value_of(&loss)?, $($value.detached()?),+))
            }

            fn with_loss(self, loss: Tensor) -> Self {
                let (_, $($value),+) = self;
                (loss, $($value),+)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                tuples!(@columns parts: Tensor loss $($type $value)+);
                Ok((mean(&loss)?, $(<$type as Aux>::join_shards($value)?),+))
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

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                tuples!(@columns parts: $($type $value)+);
                Ok(($(<$type as Aux>::join_shards($value)?),+))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn join<A: Aux>(parts: impl IntoIterator<Item = A>) -> Result<A> {
        let parts: Vec<A> = parts.into_iter().collect();
        let share = 1.0 / parts.len() as f64;
        A::join_shards(parts.into_iter().map(|part| (share, part)).collect())
    }

    /// Without the backtrace that candle may add.
    fn message<A: Aux>(parts: impl IntoIterator<Item = A>) -> String {
        let error = join(parts).err().unwrap().to_string();
        error.lines().next().unwrap_or_default().to_owned()
    }

    /// Whatever it shares its buffer with: an optimizer moves the variable, and the value stays.
    #[test]
    fn a_value_is_a_value_of_its_own() {
        let w = Var::new(&[[1f64, 2.], [3., 4.]], &Device::Cpu).unwrap();
        let by_two = (w.as_tensor() * 2.).unwrap();
        let views = [
            w.as_tensor().clone(),
            w.detach(),
            w.t().unwrap(),
            w.get(1).unwrap(),
            w.detach().get(1).unwrap(),
            w.reshape(4).unwrap(),
            w.narrow(1, 1, 1).unwrap(),
            by_two.clone(),
        ];
        let before: Vec<Vec<f64>> =
            views.iter().map(|view| view.flatten_all().unwrap().to_vec1::<f64>().unwrap()).collect();
        let values: Vec<_> = views.iter().map(|view| value_of(view).unwrap()).collect();
        w.set(&Tensor::zeros((2, 2), DType::F64, &Device::Cpu).unwrap()).unwrap();
        for (value, before) in values.iter().zip(before) {
            assert!(!value.track_op() && !value.is_variable());
            assert_eq!(value.flatten_all().unwrap().to_vec1::<f64>().unwrap(), before);
        }
        // What no variable has is not copied.
        assert_eq!(storage_of(&by_two), storage_of(&value_of(&by_two).unwrap()));
    }

    #[test]
    fn counts_that_overflow_are_an_error() {
        assert_eq!(join([200u8, 50]).unwrap(), 250);
        assert_eq!(
            message([200u8, 200]),
            "the sum over shards of [200, 200] does not fit into `u8`: return a larger type"
        );
        assert!(join([i64::MIN, -1]).is_err());
        assert!(join([Duration::MAX, Duration::MAX]).is_err());
        let tensor = |n: u8| Tensor::new(n, &Device::Cpu).unwrap();
        assert_eq!(join([tensor(200), tensor(50)]).unwrap().to_scalar::<u8>().unwrap(), 250);
        assert_eq!(
            message([tensor(200), tensor(200)]),
            "the sum over shards of [200, 200] does not fit into `u8`: return a larger type"
        );
    }

    /// 2^53 + 1 is no f64, and no f32 either.
    #[test]
    fn tensors_of_integers_are_added_without_rounding() {
        let n = (1i64 << 53) + 1;
        let parts = [Tensor::new(n, &Device::Cpu).unwrap(), Tensor::new(2i64, &Device::Cpu).unwrap()];
        assert_eq!(join(parts).unwrap().to_scalar::<i64>().unwrap(), n + 2);
        let parts = [Tensor::new(1f64, &Device::Cpu).unwrap(), Tensor::new(2f64, &Device::Cpu).unwrap()];
        assert_eq!(join(parts).unwrap().to_scalar::<f64>().unwrap(), 1.5);
    }

    #[test]
    fn over_shards() {
        assert_eq!(join([1f32, 2.]).unwrap(), 1.5);
        assert_eq!(join([[1f64, 10.], [2., 20.]]).unwrap(), [1.5, 15.]);
        assert_eq!(join([vec![1], vec![2, 3]]).unwrap(), [1, 2, 3]);
        assert_eq!(join([Some(1), None]).unwrap(), None);
        assert_eq!(join([Some(1), Some(2)]).unwrap(), Some(3));
        assert_eq!(join([Box::new(1), Box::new(2)]).unwrap(), Box::new(3));
        assert_eq!(join([Arc::new(1), Arc::new(2)]).unwrap(), Arc::new(3));
        assert_eq!(join([Duration::from_secs(1), Duration::from_secs(2)]).unwrap(), Duration::from_secs(3));
        let now = Instant::now();
        assert_eq!(join([now + Duration::from_secs(1), now]).unwrap(), now);
        assert_eq!(join(["norm", "norm"]).unwrap(), "norm");
        assert!(message(["norm".to_owned(), "loss".to_owned()]).contains("\"norm\" for one shard"));
        assert!(join([true, false]).is_err());
        let map = |keys: &[&'static str]| keys.iter().map(|key| (*key, 1)).collect::<HashMap<_, _>>();
        assert_eq!(join([map(&["a", "b"]), map(&["b", "a"])]).unwrap()["a"], 2);
        assert_eq!(message([map(&["a", "b"]), map(&["a"])]), "an auxiliary map has \"b\" for 1 of 2 shards only");
        assert!(join([Plain(1), Plain(1)]).is_err());
    }
}
