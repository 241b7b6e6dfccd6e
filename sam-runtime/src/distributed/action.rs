//! What a rank is about to do, and why it cannot.

use crate::core::error::Error;

/// What a rank is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The mean of the gradient of a step.
    Gradient,
    /// The mean of the gradient of a pass, where the ascent is synchronized.
    AscentGradient,
    DescentGradient,
    PlainGradient,
    BroadcastVars,
    BroadcastBytes,
    GatherBytes,
    /// The mean of gradients that the caller has summed up.
    Gradients,
    Average,
    CheckReplicas,
    /// Exchanges one number.
    Numbers,
    End,
}

impl Action {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Gradient, "the all-reduce of a step's gradient"),
        (Self::AscentGradient, "the all-reduce of the gradient of an ascent pass"),
        (Self::DescentGradient, "the all-reduce of the gradient of a descent pass"),
        (Self::PlainGradient, "the all-reduce of the gradient of a plain pass"),
        (Self::BroadcastVars, "`broadcast_vars`"),
        (Self::BroadcastBytes, "`broadcast_bytes`"),
        (Self::GatherBytes, "`gather_bytes`"),
        (Self::Gradients, "`average_gradients`"),
        (Self::Average, "`average`"),
        (Self::CheckReplicas, "`check_replicas`"),
        (Self::Numbers, "`mean` or `any`"),
        (Self::End, "the end of its training"),
    ];

    pub(super) fn describe(number: u64) -> &'static str {
        Self::ALL.iter().find(|(action, _)| *action as u64 == number).map_or("another program", |(_, text)| text)
    }
}

/// What has to be the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Contents {
    pub(crate) tensors: u64,
    pub(crate) elements: u64,
    /// Of dtypes and shapes, in order.
    pub(crate) digest: u64,
}

/// Why a rank ends a step without a gradient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) why: String,
    /// A smaller loss scale, or the next batch, may do without.
    pub(crate) is_overflow: bool,
}

impl Failure {
    /// Of an error that is known here; what a loss function returns may be of any type.
    pub(crate) fn of(error: &candle_core::Error) -> Self {
        let text = Error::of(error).map_or_else(|| error.to_string(), Error::to_string);
        let why = text.lines().next().unwrap_or_default().to_owned();
        Self { why, is_overflow: Error::of(error).is_some_and(Error::is_overflow) }
    }

    pub(crate) fn unknown() -> Self {
        let why = if std::thread::panicking() { "it panicked" } else { "its loss function returned an error" };
        Self { why: why.to_owned(), is_overflow: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_a_description() {
        assert!(Action::ALL.iter().enumerate().all(|(i, (action, _))| *action as usize == i));
    }
}
