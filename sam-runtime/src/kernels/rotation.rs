//! The sizes of a rotation of pairs, shared by all backends.

use candle_core::Shape;

/// x as (batch, heads, time, 2 half) or (batch, time, heads, 2 half), whose pairs turn by angles (time, half) or (batch, time, half).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// A pair is two neighbours; otherwise it is an element of the first half and one of the second.
    pub(crate) interleaved: bool,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) time: usize,
    pub(crate) half: usize,
    /// Whether the heads of one time are neighbours.
    pub(crate) heads_inside: bool,
    /// Elements from one batch to the next in cos and in sin, 0 where all have the same angles.
    pub(crate) steps: [usize; 2],
}

impl Rotation {
    pub(crate) fn shape(&self) -> Shape {
        let Self { batch, heads, time, half, .. } = *self;
        if self.heads_inside { (batch, time, heads, 2 * half).into() } else { (batch, heads, time, 2 * half).into() }
    }

    /// Where the angles of a row begin in cos and in sin.
    pub(super) fn angles(&self, row: usize) -> [usize; 2] {
        let (time, batch) = (if self.heads_inside { row / self.heads } else { row }, row / (self.heads * self.time));
        self.steps.map(|step| batch * step + time % self.time * self.half)
    }
}
