//! The value of a step is a value of its own.

use candle_core::{Result, Tensor};
use sam_runtime::variants::Direction;
use sam_runtime::{FunctionalSam, Sam, plain};

use super::{close, gradient, numbers, var};

/// A loss with an offset and one with strides, with and without another operation behind.
#[test]
fn a_loss_that_is_a_view() {
    let w = var(&[3., 4.]);
    let loss = Sam::new(0.5).loss(|| w.sqr()?.get(1)).unwrap();
    assert_eq!(numbers(&loss), [16.]);
    // ∇L = (0, 8), ε̂ = (0, 0.5)
    close(&gradient(&loss, &w), &[0., 9.]);
    let loss = Sam::new(0.5).loss(|| w.sqr()?.reshape((1, 2))?.t()?.narrow(0, 1, 1)).unwrap();
    assert_eq!((numbers(&loss), loss.dims()), (vec![16.], &[1, 1][..]));
    let broadcast = Sam::new(0.5).loss(|| w.get(0)?.broadcast_as((1, 1, 1))).unwrap();
    assert_eq!((numbers(&broadcast), broadcast.dims()), (vec![3.], &[1, 1, 1][..]));
}

#[test]
fn outputs_that_are_views_for_functional_sam() {
    let (w, functional) = (var(&[1., 2., 3., 4.]), FunctionalSam::default());
    let loss = Sam::new(0.5).loss(|| functional.apply(&w.sqr()?.reshape((2, 2))?.t()?.get(1)?)?.sum_all()).unwrap();
    assert_eq!(numbers(&loss), [4. + 16.]);
}

/// The value is that at w, whatever happens to the variable afterwards.
#[test]
fn a_loss_that_is_a_variable() {
    let w = var(&[3.]);
    let sam = Sam::new(0.5);
    let loss = sam.loss(|| Ok::<_, candle_core::Error>(w.as_tensor().clone())).unwrap();
    let last = sam.last_stats().unwrap();
    let seen = || (last.loss().unwrap(), last.perturbed_loss().unwrap());
    assert_eq!((numbers(&loss), seen()), (vec![3.], (Some(3.), Some(3.5))));
    w.set(&Tensor::new(&[7.], w.device()).unwrap()).unwrap();
    assert_eq!((numbers(&loss), seen()), (vec![3.], (Some(3.), Some(3.5))));
    let loss = plain(|| sam.loss(|| w.narrow(0, 0, 1))).unwrap();
    assert_eq!(numbers(&loss), [7.]);
}

/// With a single pass, at w + ε̂, values are those there.
#[test]
fn values_of_a_single_pass() {
    let w = var(&[3.]);
    let sam = Sam::new(0.5).direction(Direction::PreviousGradient);
    let step = || sam.loss(|| Ok::<_, candle_core::Error>((w.sqr()?.sum_all()?, w.as_tensor().clone(), w.detach())));
    step().unwrap();
    let (loss, variable, view) = step().unwrap();
    assert_eq!((numbers(&loss), numbers(&variable), numbers(&view)), (vec![12.25], vec![3.5], vec![3.5]));
    assert_eq!(numbers(&w), [3.]);
}

#[test]
fn auxiliary_values_that_are_views() {
    let w = var(&[1., 2., 3., 4.]);
    let loss = || -> Result<(Tensor, Tensor, Vec<Tensor>, Tensor)> {
        Ok((w.sqr()?.sum_all()?, w.narrow(0, 1, 2)?, vec![w.reshape((2, 2))?.t()?], w.exp()?))
    };
    let (_, part, rest, computed) = Sam::new(0.5).loss(loss).unwrap();
    w.set(&w.zeros_like().unwrap()).unwrap();
    assert_eq!((numbers(&part), numbers(&rest[0])), (vec![2., 3.], vec![1., 3., 2., 4.]));
    close(&numbers(&computed), &[1f64.exp(), 2f64.exp(), 3f64.exp(), 4f64.exp()]);
    assert!(!computed.track_op() && !part.track_op());
}

/// A gradient store has the variables, and nothing that is not one.
#[test]
fn ids_of_a_gradient_store() {
    let vars = [var(&[0.3, 0.4]), var(&[0.5]), var(&[0.6]), var(&[0.7])];
    let loss = Sam::new(0.)
        .loss(|| vars.iter().try_fold(Tensor::new(0f64, vars[0].device())?, |sum, var| sum + var.sqr()?.sum_all()?));
    let store = loss.unwrap().backward().unwrap();
    let norm: f64 =
        store.get_ids().map(|id| numbers(store.get_id(*id).unwrap()).iter().map(|g| g * g).sum::<f64>()).sum();
    assert_eq!(store.get_ids().count(), 4);
    close(&[norm], &[4. * (0.25 + 0.25 + 0.36 + 0.49)]);
}
