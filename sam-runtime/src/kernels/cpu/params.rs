//! The arithmetic on variables: every element is read and written once, by all threads, in vectors as wide as the machine has.
//!
//! The loops are written once, over plain slices. `pulp` compiles them for AVX-512, AVX2 and the portable baseline and
//! picks one at run time. Arithmetic is in f64 whatever the tensors hold: the square of an f32 is exact there, and the
//! memory, not the arithmetic, sets the pace.

#![allow(clippy::inline_always, reason = "a loop has the vector width of the function that it is inlined into")]

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::ARCH;
use super::reduce::{CHUNK, Chunks, Max, Pair, Sum, guards, mismatch, range, reduce, reduce_max, slices};
use super::storage_float::StorageFloat;
use crate::core::norm_ball::{Ball, Power};
use crate::kernels::operands::{PerturbTarget, SgdStep};
use crate::kernels::rounding::Rounding;

/// What has to be known of a gradient before its perturbation: M = max|Tg| and Σ (|Tg|/M)^q.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    max: f64,
    sum: f64,
}

/// Reads the gradient: once for p = 2, twice for other p. None if it is not finite.
pub(crate) fn measure(ball: Ball, targets: &[PerturbTarget]) -> Result<Option<Measure>> {
    let guards = guards(targets.iter().map(|target| (&target.grad, target.var.as_tensor())));
    let pairs = slices(&guards)?;
    let targets: Vec<_> = pairs.into_iter().zip(targets.iter().map(PerturbTarget::eta)).collect();
    if ball.norm().term() == Power::Square {
        // M = 1 will do: the squares of f32 neither overflow nor vanish in f64.
        let sum = sum(&targets, |size| size * size);
        if sum.is_normal() {
            return Ok(Some(Measure { max: 1.0, sum }));
        }
    }
    let max = max(&targets);
    if !max.is_finite() {
        return Ok(None);
    }
    if max == 0.0 {
        return Ok(Some(Measure { max: 1.0, sum: 0.0 }));
    }
    let over = 1.0 / max;
    // 1/M overflows for the smallest M, whose ratios are then taken one by one.
    let ratio = move |size: f64| if over.is_finite() { size * over } else { size / max };
    let sum = match ball.norm().term() {
        Power::One => sum(&targets, |_| 1.0),
        Power::Same => sum(&targets, ratio),
        Power::Square => sum(&targets, |size| ratio(size) * ratio(size)),
        Power::Root => sum(&targets, |size| ratio(size).sqrt()),
        Power::Largest => sum(&targets, |size| if size >= max { 1.0 } else { 0.0 }),
        Power::Whole(e) => sum(&targets, |size| ratio(size).powi(e)),
        Power::Real(e) => sum(&targets, |size| ratio(size).powf(e)),
    };
    Ok(Some(Measure { max, sum }))
}

/// g ← w + ε̂. `rounding` takes account of what the variables cannot hold.
pub(crate) fn perturb(
    ball: Ball,
    measure: Measure,
    targets: &[PerturbTarget],
    mut rounding: Option<Rounding>,
) -> Result<Option<Rounding>> {
    for target in targets.iter().filter(|target| target.var.elem_count() > 0) {
        let lost = rounding.is_some().then(Cell::default);
        let perturb = Perturb { ball, measure, eta: target.eta(), lost };
        target.grad.inplace_op2(&target.var, &perturb)?;
        if let (Some(rounding), Some(lost)) = (&mut rounding, perturb.lost) {
            let [step, lost] = lost.into_inner();
            rounding.add(&target.var, step, lost);
        }
    }
    Ok(rounding)
}

struct Perturb {
    ball: Ball,
    measure: Measure,
    eta: Option<f64>,
    /// ‖ε̂‖² and the squared norm of what rounding takes from it, if they are asked for.
    lost: Option<Cell<[f64; 2]>>,
}

/// Runs `$write` on two buffers of one type, the first of them to be written.
macro_rules! on_slices {
    ($self:expr, $write:ident, $to:expr, $to_layout:expr, $from:expr, $from_layout:expr) => {{
        let (to_range, from_range) = (range($to_layout)?, range($from_layout)?);
        match ($to, $from) {
            (CpuStorage::F32(to), CpuStorage::F32(from)) => $self.$write(&mut to[to_range], &from[from_range]),
            (CpuStorage::F64(to), CpuStorage::F64(from)) => $self.$write(&mut to[to_range], &from[from_range]),
            (CpuStorage::BF16(to), CpuStorage::BF16(from)) => $self.$write(&mut to[to_range], &from[from_range]),
            (CpuStorage::F16(to), CpuStorage::F16(from)) => $self.$write(&mut to[to_range], &from[from_range]),
            (to, from) => mismatch(from, to)?,
        }
        Ok(())
    }};
}

impl InplaceOp2 for Perturb {
    fn name(&self) -> &'static str {
        "sam-perturb"
    }

    fn cpu_fwd(&self, g: &mut CpuStorage, g_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<()> {
        on_slices!(self, write, g, g_layout, w, w_layout)
    }
}

impl Perturb {
    fn write<T: StorageFloat>(&self, g: &mut [T], w: &[T]) {
        let Measure { max, sum } = self.measure;
        let norm = self.ball.norm();
        if !self.ball.normalized {
            let rho = self.ball.rho;
            return self.fill(g, w, move |target| rho * target);
        }
        let scale = norm.scale(self.ball.rho, sum);
        let direction = move |target: f64| if target == 0.0 { 0.0 } else { scale.copysign(target) };
        let ratio = move |target: f64| target.abs() / max;
        match norm.size() {
            // p = 2, ε̂ = (ρ / ‖g‖) g: one multiplication, unless 1/M overflows
            Power::Same if (scale / max).is_finite() => self.fill(g, w, move |target| (scale / max) * target),
            Power::Same => self.fill(g, w, move |target| scale * (target / max)),
            Power::One => self.fill(g, w, direction),
            Power::Square => self.fill(g, w, move |target| direction(target) * ratio(target) * ratio(target)),
            Power::Root => self.fill(g, w, move |target| direction(target) * ratio(target).sqrt()),
            Power::Largest => self.fill(g, w, move |target| if target.abs() >= max { direction(target) } else { 0.0 }),
            Power::Whole(e) => self.fill(g, w, move |target| direction(target) * ratio(target).powi(e)),
            Power::Real(e) => self.fill(g, w, move |target| direction(target) * ratio(target).powf(e)),
        }
    }

    /// g ← w + T · `step`(T g)
    fn fill<T: StorageFloat>(&self, g: &mut [T], w: &[T], step: impl Fn(f64) -> f64 + Copy + Send + Sync) {
        match self.eta {
            None => self.fill_with(g, w, move |g, _| step(g)),
            Some(eta) => self.fill_with(g, w, move |g, w| (w.abs() + eta) * step((w.abs() + eta) * g)),
        }
    }

    /// g ← w + `step`(g, w)
    fn fill_with<T: StorageFloat>(&self, g: &mut [T], w: &[T], step: impl Fn(f64, f64) -> f64 + Copy + Send + Sync) {
        if let Some(lost) = &self.lost {
            let sums = of_chunks(g, w, &|g, w| ARCH.dispatch(Loss { g, w, step }));
            lost.set(sums.into_iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]));
        }
        fill(g, w, move |g, w| w + step(g, w));
    }
}

/// Σ ε̂² and Σ (rounded(w + ε̂) - (w + ε̂))².
struct Loss<'a, T, F> {
    g: &'a [T],
    w: &'a [T],
    step: F,
}

impl<T: StorageFloat, F: Fn(f64, f64) -> f64> NullaryFnOnce for Loss<'_, T, F> {
    type Output = [f64; 2];

    #[inline(always)]
    fn call(self) -> [f64; 2] {
        let (mut size, mut lost) = (0.0, 0.0);
        for (g, w) in self.g.iter().zip(self.w) {
            let (g, w) = (g.to_f64(), w.to_f64());
            let step = (self.step)(g, w);
            let rounded = T::from_f64(w + step).to_f64() - (w + step);
            size += step * step;
            lost += rounded * rounded;
        }
        [size, lost]
    }
}

/// a ← a - β b, and 0 where that is less than `tolerance` times a.
pub(crate) fn residual(a: &Tensor, beta: f64, b: &Tensor, tolerance: f64) -> Result<()> {
    a.inplace_op2(b, &Residual { beta, tolerance })
}

struct Residual {
    beta: f64,
    tolerance: f64,
}

impl InplaceOp2 for Residual {
    fn name(&self) -> &'static str {
        "sam-residual"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<()> {
        on_slices!(self, write, a, a_layout, b, b_layout)
    }
}

impl Residual {
    fn write<T: StorageFloat>(&self, a: &mut [T], b: &[T]) {
        let Self { beta, tolerance } = *self;
        fill(a, b, move |a, b| {
            let rest = a - beta * b;
            // NaN and infinity stay what they are.
            if rest.abs() < tolerance * a.abs() { 0.0 } else { rest }
        });
    }
}

/// a ← α a + β b.
pub(crate) fn mix(a: &Tensor, alpha: f64, b: &Tensor, beta: f64) -> Result<()> {
    a.inplace_op2(b, &Mix { alpha, beta })
}

struct Mix {
    alpha: f64,
    beta: f64,
}

impl InplaceOp2 for Mix {
    fn name(&self) -> &'static str {
        "sam-mix"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<()> {
        on_slices!(self, write, a, a_layout, b, b_layout)
    }
}

impl Mix {
    fn write<T: StorageFloat>(&self, a: &mut [T], b: &[T]) {
        let Self { alpha, beta } = *self;
        fill(a, b, move |a, b| alpha * a + beta * b);
    }
}

/// g ← f(g, w), by all threads.
fn fill<T: StorageFloat>(g: &mut [T], w: &[T], f: impl Fn(f64, f64) -> f64 + Copy + Send + Sync) {
    in_chunks(g, w, &|g, w| ARCH.dispatch(Fill { g, w, f }));
}

/// Calls `part` with each chunk, by all threads. It is no type parameter: rayon's part would be compiled anew for each.
fn in_chunks<T: StorageFloat>(g: &mut [T], w: &[T], part: &(dyn Fn(&mut [T], &[T]) + Sync)) {
    if g.len() <= CHUNK {
        part(g, w);
    } else {
        g.par_chunks_mut(CHUNK).zip(w.par_chunks(CHUNK)).for_each(|(g, w)| part(g, w));
    }
}

/// Two sums over a chunk of two slices.
type TwoSums<'a, T> = dyn Fn(&[T], &[T]) -> [f64; 2] + Sync + 'a;

/// [`in_chunks`] for two sums over each chunk.
fn of_chunks<T: StorageFloat>(g: &[T], w: &[T], part: &TwoSums<'_, T>) -> Vec<[f64; 2]> {
    g.par_chunks(CHUNK).zip(w.par_chunks(CHUNK)).map(|(g, w)| part(g, w)).collect()
}

struct Fill<'a, T, F> {
    g: &'a mut [T],
    w: &'a [T],
    f: F,
}

impl<T: StorageFloat, F: Fn(f64, f64) -> f64> NullaryFnOnce for Fill<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (g, w) in self.g.iter_mut().zip(self.w) {
            *g = T::from_f64((self.f)(g.to_f64(), w.to_f64()));
        }
    }
}

/// One step of stochastic gradient descent.
pub(crate) fn sgd(params: SgdStep, var: &Var, grad: &Tensor, velocity: Option<&Tensor>) -> Result<()> {
    match velocity {
        None => var.inplace_op2(grad, &Descend { params, velocity: None }),
        // An in-place operation writes one tensor: the velocity's holds its buffer and runs the variable's.
        Some(velocity) => velocity.inplace_op1(&Accelerate { params, var, grad }),
    }
}

struct Accelerate<'a> {
    params: SgdStep,
    var: &'a Var,
    grad: &'a Tensor,
}

impl InplaceOp1 for Accelerate<'_> {
    fn name(&self) -> &'static str {
        "sam-sgd"
    }

    fn cpu_fwd(&self, velocity: &mut CpuStorage, _: &Layout) -> Result<()> {
        let velocity = Some(RefCell::new(velocity));
        self.var.inplace_op2(self.grad, &Descend { params: self.params, velocity })
    }
}

struct Descend<'a> {
    params: SgdStep,
    velocity: Option<RefCell<&'a mut CpuStorage>>,
}

impl InplaceOp2 for Descend<'_> {
    fn name(&self) -> &'static str {
        "sam-sgd"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, w_layout: &Layout, g: &CpuStorage, g_layout: &Layout) -> Result<()> {
        let (w_range, g_range) = (range(w_layout)?, range(g_layout)?);
        let mut velocity = self.velocity.as_ref().map(RefCell::borrow_mut);
        match (w, g, velocity.as_deref_mut()) {
            (CpuStorage::F32(w), CpuStorage::F32(g), None) => self.slide(&mut w[w_range], &g[g_range]),
            (CpuStorage::F64(w), CpuStorage::F64(g), None) => self.slide(&mut w[w_range], &g[g_range]),
            (CpuStorage::BF16(w), CpuStorage::BF16(g), None) => self.slide(&mut w[w_range], &g[g_range]),
            (CpuStorage::F16(w), CpuStorage::F16(g), None) => self.slide(&mut w[w_range], &g[g_range]),
            (CpuStorage::F32(w), CpuStorage::F32(g), Some(CpuStorage::F32(v))) => {
                self.roll(&mut w[w_range], &g[g_range], v);
            }
            (CpuStorage::F64(w), CpuStorage::F64(g), Some(CpuStorage::F64(v))) => {
                self.roll(&mut w[w_range], &g[g_range], v);
            }
            (CpuStorage::BF16(w), CpuStorage::BF16(g), Some(CpuStorage::F32(v))) => {
                self.roll(&mut w[w_range], &g[g_range], v);
            }
            (CpuStorage::F16(w), CpuStorage::F16(g), Some(CpuStorage::F32(v))) => {
                self.roll(&mut w[w_range], &g[g_range], v);
            }
            (w, g, _) => mismatch(w, g)?,
        }
        Ok(())
    }
}

impl Descend<'_> {
    /// Without a velocity.
    fn slide<T: StorageFloat>(&self, w: &mut [T], g: &[T]) {
        let SgdStep { lr, weight_decay, .. } = self.params;
        fill(w, g, move |w, g| w - lr * (g + weight_decay * w));
    }

    fn roll<T: StorageFloat, V: StorageFloat>(&self, w: &mut [T], g: &[T], v: &mut [V]) {
        let params = self.params;
        let roll = |((w, v), g)| ARCH.dispatch(Roll { params, w, v, g });
        if w.len() <= CHUNK {
            roll(((w, v), g));
        } else {
            w.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK)).for_each(roll);
        }
    }
}

struct Roll<'a, T, V> {
    params: SgdStep,
    w: &'a mut [T],
    v: &'a mut [V],
    g: &'a [T],
}

impl<T: StorageFloat, V: StorageFloat> NullaryFnOnce for Roll<'_, T, V> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let SgdStep { lr, momentum, nesterov, weight_decay } = self.params;
        // w ← w - lr (a g + b v), with the new v
        let (a, b) = if nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        for ((w, v), g) in self.w.iter_mut().zip(self.v).zip(self.g) {
            let g = g.to_f64() + weight_decay * w.to_f64();
            let velocity = momentum * v.to_f64() + g;
            *v = V::from_f64(velocity);
            *w = T::from_f64(w.to_f64() - lr * (a * g + b * velocity));
        }
    }
}

/// A gradient with its variable, and η where T = |w| + η.
type Part<'a> = (Pair<'a>, Option<f64>);

/// Σ f(|T g|)
fn sum(targets: &[Part<'_>], f: impl Fn(f64) -> f64 + Copy + Send + Sync) -> f64 {
    reduce(targets, |(pair, eta)| match eta {
        None => pair.reduce(Sum(move |g: f64, _| f(g.abs()))),
        Some(eta) => pair.reduce(Sum(move |g: f64, w: f64| f((g * (w.abs() + eta)).abs()))),
    })
}

/// max |T g|, which is not finite if any element is not.
fn max(targets: &[Part<'_>]) -> f64 {
    reduce_max(targets, |(pair, eta)| match eta {
        None => pair.reduce(Max(move |g: f64, _| g.abs())),
        Some(eta) => pair.reduce(Max(move |g: f64, w: f64| (g * (w.abs() + eta)).abs())),
    })
}

impl Chunks for Part<'_> {
    fn chunks(self) -> Vec<Self> {
        let (pair, eta) = self;
        pair.chunks().into_iter().map(|pair| (pair, eta)).collect()
    }
}
