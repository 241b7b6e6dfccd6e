//! The arithmetic of optimizers that computes in the type of its elements, f32 for half precision, as PyTorch's does.
//!
//! AdamW in one pass over w, m, v and the gradient: 7 words of memory traffic per element (4 read, 3 written).

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::cell::Cell;
use std::ops::{Add, Div, Mul, Range, Sub};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::reduce::{CHUNK, mismatch, range};
use crate::kernels::operands::AdamWStep;

/// A type that is computed in.
trait Real:
    Copy + Send + Sync + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    fn of(value: f64) -> Self;
    /// self · b + c, rounded once.
    fn times_plus(self, b: Self, c: Self) -> Self;
    fn root(self) -> Self;
}

/// A type that is stored.
trait Element: Copy + Send + Sync {
    type Wide: Real;
    fn widen(self) -> Self::Wide;
    fn narrow(value: Self::Wide) -> Self;
}

macro_rules! elements {
    ($($stored:ident as $real:ident, $widen:expr, $narrow:expr;)*) => {$(
        impl Element for $stored {
            type Wide = $real;

            #[inline(always)]
            fn widen(self) -> $real {
                $widen(self)
            }

            #[inline(always)]
            fn narrow(value: $real) -> Self {
                $narrow(value)
            }
        }
    )*};
}

macro_rules! reals {
    ($($real:ident)*) => {$(
        impl Real for $real {
            #[inline(always)]
            fn of(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn times_plus(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }

            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
        }
    )*};
}

reals! { f32 f64 }
elements! {
    f32 as f32, |x| x, |x| x;
    f64 as f64, |x| x, |x| x;
    bf16 as f32, bf16::to_f32, bf16::from_f32;
    f16 as f32, f16::to_f32, f16::from_f32;
}

/// Runs a function on the buffer of a tensor, which it may write to. Nested calls have the buffers of several tensors.
fn write(tensor: &Tensor, f: impl FnOnce(&mut CpuStorage, Range<usize>) -> Result<()>) -> Result<()> {
    struct Write<F>(Cell<Option<F>>);

    impl<F: FnOnce(&mut CpuStorage, Range<usize>) -> Result<()>> InplaceOp1 for Write<F> {
        fn name(&self) -> &'static str {
            "sam-optimizer"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let range = range(layout)?;
            self.0.take().map_or(Ok(()), |f| f(storage, range))
        }
    }

    tensor.inplace_op1(&Write(Cell::new(Some(f))))
}

/// The same for reading.
fn read(tensor: &Tensor, f: impl FnOnce(&CpuStorage, Range<usize>) -> Result<()>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(storage, range(layout)?),
        _ => candle_core::bail!("expected a tensor on the CPU, found one on {:?}", storage.device().location()),
    }
}

/// One step of AdamW for one variable; the moments have its wide type.
pub(crate) fn adamw(step: AdamWStep, var: &Tensor, grad: &Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
    use CpuStorage::{BF16, F16, F32, F64};
    write(second, |v, _| {
        write(first, |m, _| {
            write(var, |w, w_range| {
                read(grad, |g, g_range| {
                    match (w, g, m, v) {
                        (F32(w), F32(g), F32(m), F32(v)) => adapt(step, &mut w[w_range], &g[g_range], m, v),
                        (F64(w), F64(g), F64(m), F64(v)) => adapt(step, &mut w[w_range], &g[g_range], m, v),
                        (BF16(w), BF16(g), F32(m), F32(v)) => adapt(step, &mut w[w_range], &g[g_range], m, v),
                        (F16(w), F16(g), F32(m), F32(v)) => adapt(step, &mut w[w_range], &g[g_range], m, v),
                        (w, g, ..) => mismatch(w, g)?,
                    }
                    Ok(())
                })
            })
        })
    })
}

fn adapt<T: Element>(step: AdamWStep, w: &mut [T], g: &[T], m: &mut [T::Wide], v: &mut [T::Wide]) {
    let adapt = |(((w, m), v), g)| ARCH.dispatch(Adapt { step, w, m, v, g });
    if w.len() <= CHUNK {
        adapt((((w, m), v), g));
    } else {
        let states = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
        let chunks = w.par_chunks_mut(CHUNK).zip(states).zip(g.par_chunks(CHUNK));
        chunks.map(|((w, (m, v)), g)| (((w, m), v), g)).for_each(adapt);
    }
}

struct Adapt<'a, T: Element> {
    step: AdamWStep,
    w: &'a mut [T],
    m: &'a mut [T::Wide],
    v: &'a mut [T::Wide],
    g: &'a [T],
}

impl<T: Element> NullaryFnOnce for Adapt<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let AdamWStep { keep, lerp, from_gradient, beta2, rate2, bias2_root, eps, minus_rate } = self.step;
        let [keep, lerp, beta2, rate2] = [keep, lerp, beta2, rate2].map(T::Wide::of);
        let [bias2_root, eps, minus_rate] = [bias2_root, eps, minus_rate].map(T::Wide::of);
        for (((w, m), v), g) in self.w.iter_mut().zip(self.m).zip(self.v).zip(self.g) {
            let g = g.widen();
            let first = lerp.times_plus(g - *m, if from_gradient { g } else { *m });
            let second = (rate2 * g).times_plus(g, *v * beta2);
            let divisor = second.root() / bias2_root + eps;
            *m = first;
            *v = second;
            *w = T::narrow(w.widen() * keep + minus_rate * first / divisor);
        }
    }
}

/// a ← d a + (1 - d) w, with averages in the wide type of the variable.
pub(crate) fn ema(average: &Tensor, var: &Tensor, decay: f64) -> Result<()> {
    use CpuStorage::{BF16, F16, F32, F64};
    write(average, |a, a_range| {
        read(var, |w, w_range| {
            match (a, w) {
                (F32(a), F32(w)) => follow(&mut a[a_range], &w[w_range], decay),
                (F64(a), F64(w)) => follow(&mut a[a_range], &w[w_range], decay),
                (F32(a), BF16(w)) => follow(&mut a[a_range], &w[w_range], decay),
                (F32(a), F16(w)) => follow(&mut a[a_range], &w[w_range], decay),
                (a, w) => mismatch(w, a)?,
            }
            Ok(())
        })
    })
}

fn follow<T: Element>(a: &mut [T::Wide], w: &[T], decay: f64) {
    let follow = |(a, w)| ARCH.dispatch(Follow { a, w, decay });
    if a.len() <= CHUNK {
        follow((a, w));
    } else {
        a.par_chunks_mut(CHUNK).zip(w.par_chunks(CHUNK)).for_each(follow);
    }
}

struct Follow<'a, T: Element> {
    a: &'a mut [T::Wide],
    w: &'a [T],
    decay: f64,
}

impl<T: Element> NullaryFnOnce for Follow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let [decay, rest] = [self.decay, 1.0 - self.decay].map(T::Wide::of);
        for (a, w) in self.a.iter_mut().zip(self.w) {
            *a = *a * decay + w.widen() * rest;
        }
    }
}

/// factor · a, in a buffer of its own.
pub(crate) fn scaled(a: &Tensor, factor: f64) -> Result<Tensor> {
    changed(a, Times(factor))
}

/// Each number to the nearest one within ±limit. NaN stays.
pub(crate) fn clamped(a: &Tensor, limit: f64) -> Result<Tensor> {
    changed(a, Within(limit))
}

trait Change: Copy + Send + Sync {
    fn of<R: Real>(self, x: R) -> R;
}

#[derive(Clone, Copy)]
struct Times(f64);

impl Change for Times {
    #[inline(always)]
    fn of<R: Real>(self, x: R) -> R {
        x * R::of(self.0)
    }
}

#[derive(Clone, Copy)]
struct Within(f64);

impl Change for Within {
    #[inline(always)]
    fn of<R: Real>(self, x: R) -> R {
        let (low, high) = (R::of(-self.0), R::of(self.0));
        let x = if x > high { high } else { x };
        if x < low { low } else { x }
    }
}

fn changed(a: &Tensor, change: impl Change) -> Result<Tensor> {
    use CpuStorage::{BF16, F16, F32, F64};
    let (storage, layout) = a.storage_and_layout();
    let (range, shape) = (range(layout)?, a.shape());
    match &*storage {
        Storage::Cpu(F32(a)) => each(&a[range], change, shape),
        Storage::Cpu(F64(a)) => each(&a[range], change, shape),
        Storage::Cpu(BF16(a)) => each(&a[range], change, shape),
        Storage::Cpu(F16(a)) => each(&a[range], change, shape),
        _ => candle_core::bail!("expected floating point numbers on the CPU, found {:?}", a.dtype()),
    }
}

fn each<T: Element + WithDType>(from: &[T], change: impl Change, shape: &Shape) -> Result<Tensor> {
    let mut to = vec![T::zero(); from.len()];
    let each = |(to, from)| ARCH.dispatch(Each { to, from, change });
    if from.len() <= CHUNK {
        each((&mut to[..], from));
    } else {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(each);
    }
    Tensor::from_vec(to, shape, &Device::Cpu)
}

struct Each<'a, T, C> {
    to: &'a mut [T],
    from: &'a [T],
    change: C,
}

impl<T: Element, C: Change> NullaryFnOnce for Each<'_, T, C> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = T::narrow(self.change.of(from.widen()));
        }
    }
}
