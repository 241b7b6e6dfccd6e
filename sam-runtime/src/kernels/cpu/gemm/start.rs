//! What a product is added to.

use crate::kernels::cpu::float::Float;

/// What a sum begins with.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a, T> {
    Zero,
    /// What the product held.
    Kept,
    /// The same row everywhere.
    Row(&'a [T]),
}

impl<T: Float> Start<'_, T> {
    /// Makes all of c, of so many columns, what the sums begin with.
    pub(crate) fn write(self, c: &mut [T], columns: usize) {
        match self {
            Self::Zero => c.fill(T::default()),
            Self::Kept => {}
            Self::Row(row) => c.chunks_exact_mut(columns).for_each(|c| c.copy_from_slice(row)),
        }
    }
}
