//! What is seen of a step goes to `tracing`. Alone in its process: interest in an event is that of the process.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::sync::{Arc, Mutex};

use sam_runtime::Sam;
use sam_tests::three_four;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// Keeps the names of an event's fields that have a value.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<&'static str>>>);

impl Visit for Recorder {
    fn record_debug(&mut self, field: &Field, _: &dyn std::fmt::Debug) {
        self.0.lock().unwrap().push(field.name());
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("sam_runtime")
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn each_step_is_an_event() {
    let recorder = Recorder::default();
    let w = three_four();
    let events = |sam: &Sam| {
        tracing::subscriber::with_default(recorder.clone(), || sam.loss(|| w.sqr()?.sum_all()).unwrap());
        std::mem::take(&mut *recorder.0.lock().unwrap())
    };
    let plain = ["message", "passes", "loss", "perturbed_loss"];
    assert_eq!(events(&Sam::new(0.3)), plain);
    let watched = ["gradient_norm", "perturbation_norm", "cosine", "curvature"];
    assert_eq!(events(&Sam::new(0.3).with_diagnostics()), [plain, watched].concat());
}
