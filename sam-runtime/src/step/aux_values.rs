//! The auxiliary values of candle and of the standard library, but for collections.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use candle_core::{DType, Result, Tensor};

use super::output::{Aux, LossOutput, mean, value_of};

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
    // On other devices the numbers are not checked: that would synchronize with the device.
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

/// The value that all shards have.
fn same<T: PartialEq + fmt::Debug>(mut parts: impl Iterator<Item = T>) -> Result<T> {
    let Some(first) = parts.next() else { candle_core::bail!("no shards to join") };
    match parts.find(|part| *part != first) {
        Some(other) => candle_core::bail!(
            "an auxiliary value of type `{}` is {first:?} for one shard and {other:?} for another: return one that can be \
             joined, or implement `sam_runtime::Aux` for a type of your own",
            std::any::type_name::<T>()
        ),
        None => Ok(first),
    }
}

/// Types whose values have to be the same for all shards.
macro_rules! same_aux {
    ($($type:ty)*) => {$(
        impl Aux for $type {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                same(parts.into_iter().map(|(_, part)| part))
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
same_aux! { bool char String DType &str Cow<'_, str> Box<str> Arc<str> Rc<str> }
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

/// A tensor cannot be compared, so that there is none behind such a reference.
impl<T: Aux + PartialEq + fmt::Debug> Aux for &T {
    fn detached(self) -> Result<Self> {
        Ok(self)
    }

    fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
        same(parts.into_iter().map(|(_, part)| part))
    }
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

    // From a vector of tuples to a vector for each element of the tuples.
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
pub(super) mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::core::identity::storage_of;
    use crate::step::output::Plain;

    pub(in crate::step) fn join<A: Aux>(parts: impl IntoIterator<Item = A>) -> Result<A> {
        let parts: Vec<A> = parts.into_iter().collect();
        let share = 1.0 / parts.len() as f64;
        A::join_shards(parts.into_iter().map(|part| (share, part)).collect())
    }

    /// Without the backtrace that candle may add.
    pub(in crate::step) fn message<A: Aux>(parts: impl IntoIterator<Item = A>) -> String {
        let error = join(parts).err().unwrap().to_string();
        error.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn references_are_compared() {
        assert_eq!(join([&7usize, &7]).unwrap(), &7);
        assert!(message([&7usize, &8]).contains("is 7 for one shard and 8 for another"));
        assert_eq!(join([Rc::<str>::from("x"), Rc::from("x")]).unwrap(), Rc::from("x"));
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
        assert!(join([Plain(1), Plain(1)]).is_err());
    }
}
