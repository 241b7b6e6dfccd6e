use candle_core::Tensor;
use sam_runtime::Aux;

struct Timer;

#[derive(Aux)]
struct Metrics<T> {
    logits: Tensor,
    more: T,
}

fn returned_next_to_a_loss(_: impl Aux) {}

fn check(metrics: Metrics<usize>, timed: Metrics<Timer>) {
    returned_next_to_a_loss(metrics);
    returned_next_to_a_loss(timed);
}

fn main() {}
