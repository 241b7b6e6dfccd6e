//! Dropout, whose mask is a function of a seed and of an element's index.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::float::{Float, output, view};
use crate::core::rng::uniform_f32;

/// What an element is multiplied by, as a function of its index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutMask {
    pub(crate) drop_p: f32,
    pub(crate) seed: u64,
}

impl DropoutMask {
    #[inline(always)]
    fn keeps(self, index: usize) -> bool {
        uniform_f32(self.seed, index as u64) >= self.drop_p
    }

    pub(crate) fn scale(self) -> f32 {
        1.0 / (1.0 - self.drop_p)
    }

    /// Elements of a row times their factors; the first has this index.
    #[inline(always)]
    pub(super) fn multiply<T: Float>(self, row: &mut [T], first: usize) {
        let scale = T::narrow(self.scale().into());
        for (i, x) in row.iter_mut().enumerate() {
            *x = if self.keeps(first + i) { *x * scale } else { T::default() };
        }
    }

    /// The factors of `n` elements.
    pub(crate) fn factors(self, n: usize) -> Vec<f32> {
        (0..n).map(|index| if self.keeps(index) { self.scale() } else { 0.0 }).collect()
    }

    /// x times the mask.
    pub(crate) fn apply(self, x: &Tensor) -> Result<(CpuStorage, Shape)> {
        macro_rules! masked {
            ($($dtype:ident $element:ty, $scale:expr;)*) => {
                match x.dtype() {
                    $(DType::$dtype => {
                        let (elements, scale) = (view(x), $scale(self.scale()));
                        let masked = elements.elements::<$element>()?.par_iter().enumerate().with_min_len(1 << 14);
                        let masked = masked.map(|(i, &x)| if self.keeps(i) { x * scale } else { Default::default() });
                        Ok(output(masked.collect::<Vec<$element>>(), x.shape()))
                    })*
                    dtype => Err(candle_core::Error::UnsupportedDTypeForOp(dtype, "dropout").bt()),
                }
            };
        }
        masked! { F32 f32, f32::from; F64 f64, f64::from; BF16 bf16, bf16::from_f32; F16 f16, f16::from_f32; }
    }
}
