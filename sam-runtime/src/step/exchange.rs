//! This rank's part in a step that all ranks take.

use crate::core::pass::{Pass, Step};
use crate::core::var_list::{Gradient, VarTensors};
use crate::distributed::{Action, Comm, Failure};
use crate::kernels::check_finite;
use crate::sam::Sam;

/// The other ranks wait for this one once a step, twice with a synchronized ascent: if the step fails here before, they have to
/// hear of it, or they would wait for ever.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// None where nobody waits: no longer, or not at all.
    comm: Option<Comm>,
    is_synchronized: bool,
    failure: Option<Failure>,
}

impl Exchange {
    pub(crate) fn begin(comm: Option<&Comm>) -> Self {
        let comm = comm.filter(|comm| comm.size() > 1 && Step::is_outermost()).cloned();
        Self { comm, is_synchronized: false, failure: None }
    }

    pub(crate) fn of(sam: &Sam) -> Self {
        let mut this = Self::begin(sam.comm.as_ref());
        this.is_synchronized = sam.has_synchronized_ascent;
        this
    }

    /// Remembers an error for the other ranks.
    pub(crate) fn note<T>(&mut self, result: candle_core::Result<T>) -> candle_core::Result<T> {
        if let (Err(error), Some(_)) = (&result, &self.comm) {
            self.failure = Some(Failure::of(error));
        }
        result
    }

    /// The gradient of a pass, that of all samples if the ascent is synchronized.
    pub(crate) fn after_pass(&mut self, pass: Pass, gradient: Gradient) -> candle_core::Result<Gradient> {
        if !self.is_synchronized || self.comm.is_none() {
            return Ok(gradient);
        }
        // A number that is not finite would be one on all ranks, and none would know where it came from.
        self.note(check_finite(&gradient, pass))?;
        let action = match pass {
            Pass::Plain => Action::PlainGradient,
            Pass::Ascent => Action::AscentGradient,
            Pass::Descent => Action::DescentGradient,
        };
        self.mean(action, gradient)
    }

    /// The gradient of a step, and what is left to do after the optimizer's.
    pub(crate) fn finish(
        &mut self,
        gradient: Option<Gradient>,
        remainder: &mut VarTensors,
    ) -> candle_core::Result<Option<Gradient>> {
        if self.comm.is_none() || self.is_synchronized {
            self.leave();
            return Ok(gradient);
        }
        let mut all = gradient.unwrap_or_default();
        let count = all.len();
        all.extend(remainder.iter().cloned());
        let mut all = self.mean(Action::Gradient, all)?;
        *remainder = VarTensors::new(all.split_off(count));
        self.leave();
        Ok((count > 0).then_some(all))
    }

    /// From here on nobody waits for this step.
    pub(crate) fn leave(&mut self) {
        self.comm = None;
    }

    fn mean(&mut self, action: Action, gradient: Gradient) -> candle_core::Result<Gradient> {
        let Some(comm) = &self.comm else { return Ok(gradient) };
        let mean = comm.mean_of(action, gradient);
        if mean.is_err() {
            // All ranks have this error.
            self.leave();
        }
        mean
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(comm) = self.comm.take() {
            comm.report_failure(&self.failure.take().unwrap_or_else(Failure::unknown));
        }
    }
}
