//! The state of one step, of whatever pieces, and the account of it.

use crate::core::error::Error;
use crate::core::overlap::Watch;
use crate::core::pass::{Before, Step};
use crate::core::storage::SwapGuard;
use crate::core::var_list::Gradient;
use crate::sam::Sam;
use crate::sam::memory::InFlight;
use crate::sam::stats::{AscentStats, GradientAlignment, StepStats};
use crate::step::batch_selection::{BatchSelection, Portion, Rule};
use crate::step::exchange::Exchange;
use crate::variants::{Combination, Direction, LossFactor, State};

/// A step of a [`Sam`] under way. What it changes in the memory of the `Sam` counts when it has ended, not before.
pub(crate) struct StepContext<'a> {
    pub(super) sam: &'a Sam,
    pub(super) selection: Option<&'a BatchSelection<'a>>,
    pub(super) step: Step,
    /// False inside another step, and under [`plain`](crate::plain).
    pub(super) outermost: bool,
    pub(super) rho: f64,
    /// What a pass goes over.
    pub(super) portions: Vec<Portion>,
    /// The loss of each sample in the last run, where it returns them, and at w.
    pub(super) losses: Vec<f64>,
    pub(super) losses_at_w: Vec<f64>,
    pub(super) state: State,
    pub(super) last: StepStats,
    /// The first pass, as long as its gradient is of use.
    pub(super) watch: Option<Watch>,
    pub(super) exchange: Exchange,
    _in_flight: Option<InFlight<'a>>,
}

impl Drop for StepContext<'_> {
    /// A step that did not end failed: the state of layers is restored, as the weights are.
    fn drop(&mut self) {
        drop(self.step.take_before());
    }
}

impl<'a> StepContext<'a> {
    pub(crate) fn begin(sam: &'a Sam, selection: Option<&'a BatchSelection<'a>>) -> candle_core::Result<Self> {
        let mut exchange = Exchange::of(sam);
        let mut step = exchange.note(Self::checked(sam, selection))?;
        step.exchange = exchange;
        Ok(step)
    }

    fn checked(sam: &'a Sam, selection: Option<&'a BatchSelection<'a>>) -> candle_core::Result<Self> {
        if selection.is_some_and(|selection| selection.rule() == Rule::Sharpest) {
            let refuse = |why| Error::Settings { what: "sharpest", why };
            if !sam.direction.needs_gradient() {
                Err(refuse("the direction has no pass at w, to tell whose loss rises"))?;
            }
            if sam.combination == Combination::SecondOrder {
                Err(refuse("the second-order term is that of all samples"))?;
            }
        }
        let outermost = Step::is_outermost();
        if outermost {
            sam.check_rate()?;
        }
        // Before its memory is read, which another step might change.
        let in_flight = if outermost { Some(sam.in_flight()?) } else { None };
        let state = sam.memory.state();
        // A schedule runs once a step, and not while the memory is locked.
        let rho = if outermost { sam.radius.before(state.steps, state.rate) } else { 0.0 };
        if !rho.is_finite() || rho < 0.0 {
            Err(Error::Rho(rho))?;
        }
        if outermost && !state.remainder.is_empty() {
            let why = "the last step is not finished: call `Sam::apply_decoupled` after the optimizer's step";
            Err(Error::Settings { what: "WsamDecoupled", why })?;
        }
        Ok(Self {
            sam,
            selection,
            step: Step::begin(),
            outermost,
            rho,
            portions: selection.map_or_else(|| vec![Portion::ALL], BatchSelection::portions),
            losses: Vec::new(),
            losses_at_w: Vec::new(),
            state,
            last: StepStats::default(),
            watch: None,
            exchange: Exchange::default(),
            _in_flight: in_flight,
        })
    }

    /// Whether there may be a perturbation, for all that is known before the first pass.
    pub(crate) fn is_sam_step(&self) -> bool {
        self.outermost && self.rho > 0.0 && self.sam.schedule.before(self.state.steps, self.sam.seed) != Some(false)
    }

    pub(crate) fn ascent_steps(&self) -> usize {
        self.sam.ascents.count
    }

    /// The gradient of the variables that are perturbed.
    pub(crate) fn perturbed_among(&self, all: &Gradient) -> candle_core::Result<Gradient> {
        if self.sam.vars.is_none() && self.sam.buffers.is_empty() {
            return Ok(all.clone());
        }
        let perturbed: Gradient = all.iter().filter(|(var, _)| self.sam.may_move(var)).cloned().collect();
        if perturbed.is_empty() {
            Err(Error::NothingToPerturb)?;
        }
        Ok(perturbed)
    }

    /// Remembers what the buffers hold before the first pass, so that they are restored if the step fails.
    pub(crate) fn keep_buffers(&self) -> candle_core::Result<()> {
        let buffers = if self.outermost { self.sam.buffers.as_slice() } else { &[] };
        buffers.iter().try_for_each(|var| self.step.keep(var))
    }

    /// Writes the combination of the two gradients over the second.
    pub(crate) fn combine(&mut self, first: &Gradient, second: &Gradient) -> candle_core::Result<()> {
        self.sam.combination.combine(first, second, &mut self.state)
    }

    pub(crate) fn record_ascent(&mut self, first: Option<&Gradient>, weights: &SwapGuard) -> candle_core::Result<()> {
        if self.sam.has_diagnostics {
            self.last.ascent = Some(AscentStats::look(first, weights)?);
        }
        Ok(())
    }

    pub(crate) fn record_alignment(
        &mut self,
        first: &Gradient,
        second: &Gradient,
        weights: &SwapGuard,
    ) -> candle_core::Result<()> {
        if self.sam.has_diagnostics {
            self.last.alignment = Some(GradientAlignment::look(&weights.of(first), second)?);
        }
        Ok(())
    }

    /// What the backward pass of the loss is scaled by, where more than the gradient depends on it.
    pub(crate) fn loss_factor(&self) -> Option<LossFactor> {
        (!self.state.remainder.is_empty()).then(|| self.state.factor.clone())
    }

    /// The gradient that the caller gets: the mean over the ranks, if there are several.
    pub(crate) fn exchange(&mut self, gradient: Option<Gradient>) -> candle_core::Result<Option<Gradient>> {
        self.exchange.finish(gradient, &mut self.state.remainder)
    }

    /// The step has ended well: what it has found is remembered. Returns what the state of layers was before, for whoever
    /// can still fail.
    pub(crate) fn end(mut self, gradient: Option<&Gradient>) -> candle_core::Result<Before> {
        if self.outermost {
            if let (Direction::PreviousGradient, Some(gradient)) = (&self.sam.direction, gradient) {
                self.state.previous = self.state.previous.with(gradient.clone());
            }
            self.state.steps += 1;
            self.last.trace();
            let state = std::mem::take(&mut self.state).after(&self.sam.memory.state())?;
            self.sam.memory.remember(state, std::mem::take(&mut self.last));
        }
        Ok(self.step.take_before())
    }
}
