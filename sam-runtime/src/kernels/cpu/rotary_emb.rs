//! Pairs of elements, turned by angles that depend on their time.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, Result, Shape, Tensor};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::float::{Float, for_float, like, output, view, zeros};
use crate::kernels::shapes::RotaryShape;

/// Elements that one thread takes at least.
const SHARE: usize = 1 << 14;

/// Every pair of x turned by its angle.
pub(crate) fn rotate(rotation: &RotaryShape, [x, cos, sin]: [&Tensor; 3]) -> Result<(CpuStorage, Shape)> {
    let (elements, cos, sin) = (view(x), view(cos), view(sin));
    for_float!(x.dtype(), "rope", |T| {
        let turned = turned::<T>(rotation, elements.elements()?, cos.elements()?, sin.elements()?, false);
        Ok(output(turned, rotation.shape()))
    })
}

/// The gradient of x: that of the output, turned back.
pub(crate) fn rotate_back(rotation: &RotaryShape, [dy, cos, sin]: [&Tensor; 3]) -> Result<Tensor> {
    let (elements, cos, sin) = (view(dy), view(cos), view(sin));
    for_float!(dy.dtype(), "rope", |T| {
        like(turned::<T>(rotation, elements.elements()?, cos.elements()?, sin.elements()?, true), dy)
    })
}

fn turned<T: Float>(rotation: &RotaryShape, x: &[T], cos: &[T], sin: &[T], inverse: bool) -> Vec<T> {
    let mut y = zeros::<T>(x.len());
    let width = 2 * rotation.half.max(1);
    let rows = SHARE.div_ceil(width);
    y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).enumerate().for_each(|(i, (to, x))| {
        ARCH.dispatch(Rows { rotation, first: i * rows, x, cos, sin, inverse, to });
    });
    y
}

struct Rows<'a, T> {
    rotation: &'a RotaryShape,
    first: usize,
    x: &'a [T],
    cos: &'a [T],
    sin: &'a [T],
    inverse: bool,
    to: &'a mut [T],
}

impl<T: Float> NullaryFnOnce for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.rotation.half;
        if half == 0 {
            return;
        }
        let sign = T::narrow(if self.inverse { -1.0 } else { 1.0 });
        let turned = |a: T, b: T, cos: T, sin: T| [a * cos - b * (sign * sin), a * (sign * sin) + b * cos];
        let rows = self.to.chunks_exact_mut(2 * half).zip(self.x.chunks_exact(2 * half));
        for (row, (to, x)) in (self.first..).zip(rows) {
            let [cos_at, sin_at] = self.rotation.angles(row);
            let angles = self.cos[cos_at..][..half].iter().zip(&self.sin[sin_at..][..half]);
            if self.rotation.interleaved {
                let pairs = to.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
                for ((to, [a, b]), (cos, sin)) in pairs.zip(angles) {
                    *to = turned(*a, *b, *cos, *sin);
                }
            } else {
                let (to_a, to_b) = to.split_at_mut(half);
                let (a, b) = x.split_at(half);
                let pairs = to_a.iter_mut().zip(to_b).zip(a.iter().zip(b));
                for (((to_a, to_b), (a, b)), (cos, sin)) in pairs.zip(angles) {
                    [*to_a, *to_b] = turned(*a, *b, *cos, *sin);
                }
            }
        }
    }
}
