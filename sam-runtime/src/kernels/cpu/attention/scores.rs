//! What is done to a tile of scores: masks, probabilities, dropout and their gradient. Row by row.

use pulp::{Simd, WithSimd};

use super::super::dropout::DropoutMask;
use super::super::exp::Exp2;
use super::super::float::Float;
use super::product::KEYS;
use crate::kernels::shapes::AttentionShape;

/// A mask, and from one of its elements to the next by batch, head, query and key: 0 where it is the same for all.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a, T> {
    pub(super) values: MaskValues<'a, T>,
    pub(super) strides: [usize; 4],
}

#[derive(Clone, Copy)]
pub(super) enum MaskValues<'a, T> {
    /// Is added to the scores.
    Additive(&'a [T]),
    /// 1 where a query sees a key.
    Boolean(&'a [u8]),
}

/// A tile of raw products q kᵀ: some queries of one head, by rows, and some keys.
#[derive(Clone, Copy)]
pub(super) struct Scores<'a, T> {
    pub(super) shape: &'a AttentionShape,
    pub(super) mask: Option<Mask<'a, T>>,
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) query: usize,
    pub(super) queries: usize,
    pub(super) key: usize,
    pub(super) keys: usize,
    /// `keys`, in whole vectors.
    pub(super) width: usize,
}

impl<T: Float> Scores<'_, T> {
    /// Whether a factor is all that is between a product and its score.
    fn is_plain(&self) -> bool {
        self.mask.is_none() && self.shape.softcap == 0.0 && self.shape.scale > 0.0
    }

    /// What makes the elements of a row that [`prepare`](Self::prepare) has seen exponents of 2.
    fn factor(&self) -> T {
        let scale = if self.is_plain() { self.shape.scale } else { 1.0 };
        T::narrow(scale * std::f64::consts::LOG2_E)
    }

    /// How many keys of the tile a row sees at most.
    fn visible(&self, i: usize) -> usize {
        self.shape.visible(self.query + i).saturating_sub(self.key).min(self.keys)
    }

    /// Scores from products, -∞ where the query does not see the key. `slopes` gets the derivative of the soft cap.
    #[inline(always)]
    fn prepare(&self, i: usize, row: &mut [T], slopes: Option<&mut [T]>) {
        let hidden = T::narrow(f64::NEG_INFINITY);
        let visible = self.visible(i);
        let (row, rest) = row.split_at_mut(visible);
        rest.fill(hidden);
        if self.is_plain() {
            return;
        }
        let (scale, cap) = (T::narrow(self.shape.scale), self.shape.softcap);
        for x in row.iter_mut() {
            *x *= scale;
        }
        if cap != 0.0 {
            for x in row.iter_mut() {
                *x = T::narrow(cap * (x.wide() / cap).tanh());
            }
            if let Some(slopes) = slopes {
                for (slope, x) in slopes.iter_mut().zip(row.iter()) {
                    *slope = T::narrow(1.0 - (x.wide() / cap).powi(2));
                }
            }
        }
        let Some(Mask { values, strides: [batch, head, query, key] }) = self.mask else { return };
        let first = self.batch * batch + self.head * head + (self.query + i) * query + self.key * key;
        match values {
            MaskValues::Additive(values) if key == 0 => row.iter_mut().for_each(|x| *x += values[first]),
            MaskValues::Additive(values) => {
                row.iter_mut().zip(&values[first..][..visible]).for_each(|(x, bias)| *x += *bias);
            }
            MaskValues::Boolean(values) if key == 0 => {
                if values[first] == 0 {
                    row.fill(hidden);
                }
            }
            MaskValues::Boolean(values) => {
                let seen = &values[first..][..visible];
                row.iter_mut().zip(seen).for_each(|(x, seen)| *x = if *seen == 0 { hidden } else { *x });
            }
        }
    }

    /// The mask of dropout, and the index of a row's first key in it.
    fn dropout(&self, i: usize) -> Option<(DropoutMask, usize)> {
        let AttentionShape { heads, queries, keys, drop_p, seed, .. } = *self.shape;
        let row = (self.batch * heads + self.head) * queries + self.query + i;
        (drop_p > 0.0).then_some((DropoutMask { drop_p, seed }, row * keys + self.key))
    }
}

/// The state of the rows of a softmax: the largest exponent so far, and the sum of the powers relative to it.
#[derive(Clone, Copy)]
pub(super) struct RowState<T> {
    pub(super) max: T,
    pub(super) sum: f64,
}

impl<T: Float> RowState<T> {
    pub(super) fn new() -> Self {
        Self { max: T::narrow(f64::NEG_INFINITY), sum: 0.0 }
    }

    /// log₂ Σ 2^exponent; ∞ for a row without a key, so that its probabilities are 0.
    pub(super) fn log(self) -> T {
        if self.sum == 0.0 { T::narrow(f64::INFINITY) } else { T::narrow(self.max.wide() + self.sum.log2()) }
    }

    /// What the weighted sum of values is multiplied by.
    pub(super) fn inverse(self) -> T {
        T::narrow(if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum })
    }
}

/// Powers instead of scores, dropped where dropout says, and the state of each row with these keys. What has been added up
/// from other keys, `pitch` elements for each row, is rescaled.
pub(super) struct Softmax<'a, T> {
    pub(super) scores: Scores<'a, T>,
    pub(super) tile: &'a mut [T],
    pub(super) rows: &'a mut [RowState<T>],
    pub(super) sums: &'a mut [T],
    pub(super) pitch: usize,
}

impl<T: Exp2> WithSimd for Softmax<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scores, tile, rows, sums, pitch } = self;
        let factor = scores.factor();
        for (i, (row, state)) in tile.chunks_exact_mut(KEYS).zip(rows).enumerate().take(scores.queries) {
            let row = &mut row[..scores.width];
            scores.prepare(i, row, None);
            let largest = T::largest(simd, row) * factor;
            let before = state.max;
            // Also where it is not a number.
            state.max = if largest <= before { before } else { largest };
            let max = if state.max == T::narrow(f64::NEG_INFINITY) { T::default() } else { state.max };
            let sum = T::exp2(simd, row, factor, max);
            if state.sum != 0.0 && before != max {
                let share = (before - max).wide().exp2();
                state.sum *= share;
                let share = T::narrow(share);
                sums[i * pitch..][..pitch].iter_mut().for_each(|x| *x *= share);
            }
            state.sum += sum.wide();
            if let Some((mask, first)) = scores.dropout(i) {
                mask.multiply(row, first);
            }
        }
    }
}

/// Probabilities instead of scores, with dropout, and the gradient of the products instead of that of the weights.
pub(super) struct Gradients<'a, T> {
    pub(super) scores: Scores<'a, T>,
    /// Products; what v is multiplied by.
    pub(super) tile: &'a mut [T],
    /// dy vᵀ; the gradient of q kᵀ.
    pub(super) gradient: &'a mut [T],
    /// log₂ Σ of each row, and Σ dy y.
    pub(super) logs: &'a [T],
    pub(super) deltas: &'a [T],
    /// The derivative is that of the scores, before they are scaled and capped: of an additive mask.
    pub(super) of_mask: bool,
}

impl<T: Exp2> WithSimd for Gradients<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { scores, tile, gradient, logs, deltas, of_mask } = self;
        let factor = scores.factor();
        let scale = T::narrow(if of_mask { 1.0 } else { scores.shape.scale });
        let mut slopes = (scores.shape.softcap != 0.0 && !of_mask).then_some([T::default(); KEYS]);
        let rows = tile.chunks_exact_mut(KEYS).zip(gradient.chunks_exact_mut(KEYS)).zip(logs.iter().zip(deltas));
        for (i, ((row, gradient), (log, delta))) in rows.enumerate().take(scores.queries) {
            let (row, gradient) = (&mut row[..scores.width], &mut gradient[..scores.width]);
            scores.prepare(i, row, slopes.as_mut().map(<[T; KEYS]>::as_mut_slice));
            T::exp2(simd, row, factor, *log);
            let share = *delta * scale;
            if let Some((mask, first)) = scores.dropout(i) {
                mask.multiply(gradient, first);
                gradient.iter_mut().zip(row.iter()).for_each(|(g, p)| *g = *p * (*g * scale - share));
                mask.multiply(row, first);
            } else {
                gradient.iter_mut().zip(row.iter()).for_each(|(g, p)| *g = *p * (*g * scale - share));
            }
            // Where nothing is seen, also if v is not finite there.
            gradient[scores.visible(i)..].fill(T::default());
            if let Some(slopes) = &slopes {
                gradient.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= *slope);
            }
        }
    }
}
