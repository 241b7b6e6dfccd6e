//! Where the taps of a convolution read its input, which is copied into planes for that: see [`super::direct`].

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::ops::Range;

use super::{Images, PARTS};
use crate::kernels::cpu::float::Float;
use crate::kernels::shapes::ConvDim;

/// Elements of a group of images, so that they stay in the second level cache beside the weights.
const GROUP: usize = 80_000;

/// How one dimension of a correlation is laid out: output u is Σ w[tap.index] · input[phase of the tap][u + tap.shift].
pub(super) struct Axis {
    kernel: usize,
    /// Zeros before the input.
    lead: usize,
    /// Every how many positions an element of one phase is.
    step: usize,
    /// The phases that some tap reads.
    phases: Vec<usize>,
    taps: Vec<Tap>,
    pub(super) input: usize,
    pub(super) output: usize,
    /// Positions of a phase, zeros included.
    pub(super) length: usize,
}

#[derive(Clone, Copy)]
pub(super) struct Tap {
    /// Its position in the kernel.
    pub(super) index: usize,
    /// The number of its phase among those that are read.
    phase: usize,
    shift: usize,
}

impl Axis {
    pub(super) fn forward(side: ConvDim) -> Self {
        let mut phases = Vec::new();
        let tap = |index| {
            let (phase, shift) = (index * side.dilation % side.stride, index * side.dilation / side.stride);
            let phase = phases.iter().position(|known| *known == phase).unwrap_or_else(|| {
                phases.push(phase);
                phases.len() - 1
            });
            Tap { index, phase, shift }
        };
        let taps = (0..side.kernel).map(tap).collect();
        Self::new(side.kernel, side.padding, side.stride, phases, taps, side.input, side.output)
    }

    /// From the gradient of the output to that of the inputs number phase, phase + stride, ..
    pub(super) fn backward(side: ConvDim, phase: usize) -> Self {
        let stride = side.stride.cast_signed();
        let shift = |index: usize| {
            let position = (phase + side.padding).cast_signed() - (index * side.dilation).cast_signed();
            (position.rem_euclid(stride) == 0).then_some((index, position.div_euclid(stride)))
        };
        let shifts: Vec<(usize, isize)> = (0..side.kernel).filter_map(shift).collect();
        let lead = shifts.iter().map(|(_, shift)| shift.min(&0).unsigned_abs()).max().unwrap_or(0);
        let tap = |(index, shift): (usize, isize)| Tap { index, phase: 0, shift: lead.strict_add_signed(shift) };
        let taps = shifts.into_iter().map(tap).collect();
        let output = side.input.saturating_sub(phase).div_ceil(side.stride);
        Self::new(side.kernel, lead, 1, vec![0], taps, side.output, output)
    }

    fn new(
        kernel: usize,
        lead: usize,
        step: usize,
        phases: Vec<usize>,
        taps: Vec<Tap>,
        input: usize,
        output: usize,
    ) -> Self {
        let mut length = output + taps.iter().map(|tap| tap.shift).max().unwrap_or(0);
        if step == 1 {
            // The zeros that end a row are those that begin the next.
            let trail = length.saturating_sub(lead + input);
            length = (length - trail.min(lead)).max(output);
        }
        Self { kernel, lead, step, phases, taps, input, output, length }
    }

    /// The positions of a phase that hold elements of the input, and the first of these elements.
    fn filled(&self, phase: usize) -> (Range<usize>, usize) {
        let first = self.lead.saturating_sub(phase).div_ceil(self.step);
        let end = (self.lead + self.input).saturating_sub(phase).div_ceil(self.step).min(self.length);
        (first..end.max(first), first * self.step + phase - self.lead)
    }
}

/// A correlation in two dimensions.
pub(super) struct Plan {
    pub(super) rows: Axis,
    pub(super) columns: Axis,
    pub(super) taps: Vec<Tap>,
}

impl Plan {
    pub(super) fn new(rows: Axis, columns: Axis) -> Self {
        let tap = |down: Tap, right: Tap| Tap {
            index: down.index * columns.kernel + right.index,
            phase: down.phase * columns.phases.len() + right.phase,
            shift: down.shift * columns.length + right.shift,
        };
        let taps = rows.taps.iter().flat_map(|down| columns.taps.iter().map(|right| tap(*down, *right))).collect();
        Self { rows, columns, taps }
    }

    pub(super) fn phases(&self) -> usize {
        self.rows.phases.len() * self.columns.phases.len()
    }

    /// Positions of one phase of one channel of one image.
    pub(super) fn plane(&self) -> usize {
        self.rows.length * self.columns.length
    }

    /// Whether there is nothing to compute.
    pub(super) fn is_empty(&self) -> bool {
        self.taps.is_empty() || self.rows.output * self.columns.output == 0
    }

    /// How many images are worked on together.
    pub(super) fn group(&self, channels: usize, images: usize) -> usize {
        let image = channels * self.phases() * self.plane();
        (GROUP / image.max(1)).min(images / PARTS).max(1)
    }

    /// From the first output of the first of some images to the last of the last, with the positions between rows.
    pub(super) fn span(&self, images: usize) -> usize {
        (images - 1) * self.plane() + (self.rows.output - 1) * self.columns.length + self.columns.output
    }

    /// What each weight of a filter reads for the first output.
    pub(super) fn offsets(&self, channels: usize, images: usize) -> Vec<usize> {
        let (phase, channel) = (images * self.plane(), images * self.plane() * self.phases());
        let offset = |i: usize, tap: &Tap| i * channel + tap.phase * phase + tap.shift;
        (0..channels).flat_map(|i| self.taps.iter().map(move |tap| offset(i, tap))).collect()
    }

    /// Elements of the planes of some images, and of the zeros that are read behind them.
    pub(super) fn len(&self, channels: usize, images: usize, tile: usize) -> usize {
        let beyond = self.taps.iter().map(|tap| tap.shift).max().unwrap_or(0) + tile;
        channels * self.phases() * images * self.plane() + beyond
    }

    /// Copies images into planes: by channel, phase and image.
    #[inline(always)]
    pub(super) fn spread<T: Float>(&self, x: &Images<'_, T>, planes: &mut [T]) {
        let (pitch, size, step) = (self.columns.length, self.columns.input, self.columns.step);
        let images = x.count(self.rows.input * size);
        let mut targets = planes.chunks_exact_mut(self.plane());
        for channel in x.range.clone() {
            for down in &self.rows.phases {
                let (rows, row) = self.rows.filled(*down);
                for right in &self.columns.phases {
                    let (positions, column) = self.columns.filled(*right);
                    for image in 0..images {
                        let source = x.plane(image, channel, self.rows.input * size);
                        let Some(target) = targets.next() else { return };
                        if positions.is_empty() {
                            continue;
                        }
                        for (i, position) in rows.clone().enumerate() {
                            let source = &source[(row + i * self.rows.step) * size + column..];
                            let target = &mut target[position * pitch..][positions.clone()];
                            if step == 1 {
                                target.copy_from_slice(&source[..positions.len()]);
                            } else if step == 2 {
                                take_every_second(target, source);
                            } else {
                                target.iter_mut().zip(source.iter().step_by(step)).for_each(|(to, from)| *to = *from);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The elements 0, 2, .. of a row. `step_by` would take them one by one.
#[inline(always)]
fn take_every_second<T: Copy>(to: &mut [T], from: &[T]) {
    let (pairs, last) = from.as_chunks::<2>();
    let (front, back) = to.split_at_mut(to.len().min(pairs.len()));
    front.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair[0]);
    back.iter_mut().zip(last).for_each(|(to, from)| *to = *from);
}
