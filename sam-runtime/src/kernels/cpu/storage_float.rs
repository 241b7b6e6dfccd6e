//! The float types that tensors hold, computed in f64.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use half::{bf16, f16};

/// The floating point types of candle's training tensors.
pub(super) trait StorageFloat: Copy + Send + Sync {
    fn to_f64(self) -> f64;
    fn from_f64(value: f64) -> Self;
}

macro_rules! real {
    ($($real:ty, $to:expr, $from:expr;)*) => {$(
        impl StorageFloat for $real {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from(value)
            }
        }
    )*};
}

real! {
    f32, f64::from, |value| value as f32;
    f64, |value| value, |value| value;
    bf16, bf16::to_f64, bf16::from_f64;
    f16, f16::to_f64, f16::from_f64;
}
