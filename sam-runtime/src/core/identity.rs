//! How tensors are told apart: by their memory, and by the order in which they were made.

use std::fmt::{self, Write};

use candle_core::{Tensor, TensorId};

/// Where a tensor's elements are: the same for a variable and its views, and for no other tensor that is alive.
pub(crate) fn storage_of(tensor: &Tensor) -> usize {
    &raw const *tensor.storage_and_layout().0 as usize
}

/// Candle numbers tensors as it makes them, and shows the number only so.
pub(crate) fn number_of(id: TensorId) -> u64 {
    struct Digits(u64);

    impl Write for Digits {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for digit in text.chars().filter_map(|c| c.to_digit(10)) {
                self.0 = self.0.wrapping_mul(10).wrapping_add(digit.into());
            }
            Ok(())
        }
    }

    let mut digits = Digits(0);
    // Writing digits cannot fail.
    let _ = write!(digits, "{id:?}");
    digits.0
}
