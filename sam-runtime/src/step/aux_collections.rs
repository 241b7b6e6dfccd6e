//! The collections of the standard library as auxiliary values.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hash};

use candle_core::Result;

use super::output::Aux;

macro_rules! list_aux {
    ($($list:ident)*) => {$(
        impl<T: Aux> Aux for $list<T> {
            fn detached(self) -> Result<Self> {
                self.into_iter().map(T::detached).collect()
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                Ok(parts.into_iter().flat_map(|(_, part)| part).collect())
            }
        }
    )*};
}

list_aux! { Vec VecDeque }

/// What can be in a set holds no tensor. The set of the batch is the union.
macro_rules! set_aux {
    ($($set:ident<T $(, $hasher:ident)?> where T: $key:ident $(+ $more:ident)*;)*) => {$(
        impl<T: $key $(+ $more)* $(, $hasher: BuildHasher + Default)?> Aux for $set<T $(, $hasher)?> {
            fn detached(self) -> Result<Self> {
                Ok(self)
            }

            fn join_shards(parts: Vec<(f64, Self)>) -> Result<Self> {
                Ok(parts.into_iter().flat_map(|(_, part)| part).collect())
            }
        }
    )*};
}

set_aux! {
    HashSet<T, S> where T: Eq + Hash;
    BTreeSet<T> where T: Ord;
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;
    use crate::step::aux_values::tests::{join, message};

    #[test]
    fn sets_are_united_and_lists_appended() {
        let set = |values: [u8; 2]| HashSet::from(values);
        assert_eq!(join([set([1, 2]), set([2, 3])]).unwrap(), HashSet::from([1, 2, 3]));
        assert_eq!(join([BTreeSet::from(["a"]), BTreeSet::from(["b"])]).unwrap(), BTreeSet::from(["a", "b"]));
        assert_eq!(join([VecDeque::from([1.5]), VecDeque::from([2.5, 3.5])]).unwrap(), [1.5, 2.5, 3.5]);
        assert_eq!(join([vec![1], vec![2, 3]]).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn arrays_and_maps_are_joined_by_element() {
        assert_eq!(join([[1f64, 10.], [2., 20.]]).unwrap(), [1.5, 15.]);
        let map = |keys: &[&'static str]| keys.iter().map(|key| (*key, 1)).collect::<HashMap<_, _>>();
        assert_eq!(join([map(&["a", "b"]), map(&["b", "a"])]).unwrap()["a"], 2);
        assert_eq!(message([map(&["a", "b"]), map(&["a"])]), "an auxiliary map has \"b\" for 1 of 2 shards only");
    }
}
