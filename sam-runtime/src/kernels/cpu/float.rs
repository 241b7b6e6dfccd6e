//! f32 and f64 alike: numbers that the layers' kernels take in vectors as wide as the machine has.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::cell::Cell;
use std::ops::{Add, AddAssign, Mul, Sub};

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, StorageRef, Tensor, WithDType};
use pulp::Simd;
use rayon::prelude::*;

/// A number that layers compute with. Others are widened to one of these.
pub(crate) trait Float:
    WithDType + Default + AddAssign + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    type Vector<S: Simd>: Copy + Send + Sync;

    fn lanes<S: Simd>() -> usize;
    /// Without the rest that does not fill a vector.
    fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>];
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>];
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn minus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b + c, rounded once where the machine can.
    fn mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    fn total<S: Simd>(simd: S, vector: Self::Vector<S>) -> Self;
    fn wide(self) -> f64;
    fn narrow(value: f64) -> Self;
    /// Runs `f` with a buffer that this thread keeps: a fresh one costs a page fault for every 4 KiB.
    fn with_scratch<R>(f: impl FnOnce(&mut Vec<Self>) -> R) -> R;
}

macro_rules! float {
    ($float:ident, $vector:ident, $lanes:ident, $vectors:ident, $vectors_mut:ident, $splat:ident, $add:ident, $sub:ident, $mul_add:ident, $total:ident) => {
        impl Float for $float {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> &[S::$vector] {
                S::$vectors(values).0
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [S::$vector] {
                S::$vectors_mut(values).0
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }

            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn minus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$sub(a, b)
            }

            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }

            #[inline(always)]
            fn total<S: Simd>(simd: S, vector: S::$vector) -> Self {
                simd.$total(vector)
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn narrow(value: f64) -> Self {
                value as Self
            }

            fn with_scratch<R>(f: impl FnOnce(&mut Vec<Self>) -> R) -> R {
                thread_local! {
                    static SCRATCH: Cell<Vec<$float>> = const { Cell::new(Vec::new()) };
                }
                let mut scratch = SCRATCH.take();
                let result = f(&mut scratch);
                SCRATCH.set(scratch);
                result
            }
        }
    };
}

float!(
    f32,
    f32s,
    F32_LANES,
    as_simd_f32s,
    as_mut_simd_f32s,
    splat_f32s,
    add_f32s,
    sub_f32s,
    mul_add_e_f32s,
    reduce_sum_f32s
);
float!(
    f64,
    f64s,
    F64_LANES,
    as_simd_f64s,
    as_mut_simd_f64s,
    splat_f64s,
    add_f64s,
    sub_f64s,
    mul_add_e_f64s,
    reduce_sum_f64s
);

/// A tensor's memory, held for reading.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

pub(crate) fn view(tensor: &Tensor) -> View<'_> {
    let (storage, layout) = tensor.storage_and_layout();
    View { storage, layout }
}

impl View<'_> {
    /// The elements of a contiguous tensor on the CPU.
    pub(crate) fn elements<T: WithDType>(&self) -> Result<&[T]> {
        let Storage::Cpu(storage) = &*self.storage else {
            candle_core::bail!("expected a tensor on the CPU, found one on {:?}", self.storage.device().location())
        };
        let Some((start, end)) = self.layout.contiguous_offsets() else {
            candle_core::bail!("expected a contiguous tensor, found {:?}", self.layout)
        };
        Ok(&T::cpu_storage_as_slice(storage)?[start..end])
    }

    /// All elements of the memory of a tensor on the CPU, from its first one on.
    pub(crate) fn behind_first<T: WithDType>(&self) -> Result<&[T]> {
        let Storage::Cpu(storage) = &*self.storage else {
            candle_core::bail!("expected a tensor on the CPU, found one on {:?}", self.storage.device().location())
        };
        Ok(T::cpu_storage_as_slice(storage)?.get(self.layout.start_offset()..).unwrap_or_default())
    }
}

/// `vec![0; n]` by all threads: one alone takes as long to clear an activation as all take to compute it.
pub(crate) fn zeros<T: Float>(n: usize) -> Vec<T> {
    rayon::iter::repeat_n(T::default(), n).with_min_len(1 << 16).collect()
}

/// What a layer returns: the elements of a tensor of this shape.
pub(crate) fn output<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(values), shape.into())
}

/// A tensor of the shape of another.
pub(crate) fn like<T: WithDType>(values: Vec<T>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

/// Calls a function that is generic over [`Float`] for the type of a tensor.
macro_rules! for_float {
    ($dtype:expr, $name:expr, |$float:ident| $call:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $float = f32;
                $call
            }
            candle_core::DType::F64 => {
                type $float = f64;
                $call
            }
            dtype => Err(candle_core::Error::UnsupportedDTypeForOp(dtype, $name).bt()),
        }
    };
}
pub(crate) use for_float;
