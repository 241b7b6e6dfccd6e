//! The variants that are compared: each with its `Sam`, and the loss function that it needs.
//!
//! The radii are the best of a grid of factors two, by the test error after 30 epochs with another seed than the five:
//! `--epochs 30 --seeds 1 --seed 100 --rho-factor ..`.

use candle_core::{Result, Tensor};
use candle_nn::VarMap;
use sam_runtime::variants::{Combination, MomentumBuffers, Radius, Schedule, Scope, named};
use sam_runtime::{FunctionalSam, Sam, nn, sam};

use crate::models::Model;

/// A variant.
pub struct Variant {
    /// Its name in reports.
    pub name: &'static str,
    /// The radius; `None` for a variant without one, or with another constant in its place.
    pub rho: Option<f64>,
    /// Its configuration.
    pub make: fn(&Setting<'_>) -> Sam,
    /// Its loss function.
    pub loss: fn(&Sam, &Model, &Tensor, &Tensor) -> Result<Tensor>,
}

/// What a variant may need of the run.
pub struct Setting<'a> {
    /// The radius.
    pub rho: f64,
    /// The variables of the model.
    pub vars: &'a VarMap,
    /// The momentum buffers of the optimizer.
    pub velocities: MomentumBuffers,
    /// The largest learning rate; the smallest is 0.
    pub rate: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub epoch: u64,
}

#[sam(with = sam)]
fn whole(sam: &Sam, model: &Model, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    model.cross_entropy(x, y)
}

#[sam(with = sam, shards(x, y; m = 32))]
fn shards(sam: &Sam, model: &Model, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    model.cross_entropy(x, y)
}

/// A third of the batch.
#[sam(with = sam, hardest(x, y; k = x.dim(0)? / 3))]
fn hardest(sam: &Sam, model: &Model, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    nn::cross_entropy_per_example(&model.forward(x, true)?, y)
}

/// Half of the batch.
#[sam(with = sam, sharpest(x, y; k = x.dim(0)? / 2))]
fn sharpest(sam: &Sam, model: &Model, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    nn::cross_entropy_per_example(&model.forward(x, true)?, y)
}

fn functional(sam: &Sam, model: &Model, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let functional = FunctionalSam::default();
    sam.loss(|| nn::cross_entropy_per_example(&functional.apply(&model.forward(x, true)?)?, y)?.mean_all())
}

/// All variants, each with its best radius here.
#[must_use]
pub fn variants() -> Vec<Variant> {
    let with = |name, rho, make, loss| Variant { name, rho, make, loss };
    let new = |name, rho, make| with(name, rho, make, whole);
    vec![
        new("SGD", None, |_| Sam::new(0.0)),
        new("SAM", Some(0.4), |s| Sam::new(s.rho)),
        new("SAM, p = ∞", Some(0.002), |s| Sam::new(s.rho).p(f64::INFINITY)),
        new("SAM, p = 1.5", Some(2.0), |s| Sam::new(s.rho).p(1.5)),
        new("SAM, a ball for each variable", Some(0.2), |s| Sam::new(s.rho).scope(Scope::PerVariable)),
        new("SAM, 3 ascents of ρ/2", Some(0.4), |s| Sam::new(s.rho).ascent_steps(3, 0.5)),
        with("m-sharpness, m = 32", Some(0.2), |s| Sam::new(s.rho), shards),
        new("second order", Some(0.4), |s| Sam::second_order().radius(Radius::Constant(s.rho))),
        new("unnormalized", Some(0.8), |s| Sam::usam(s.rho)),
        new("random direction", Some(0.4), |s| {
            Sam::random_direction(s.rho, named(s.vars, |name| !name.contains("running")))
        }),
        new("stale direction", Some(0.4), |s| Sam::previous_gradient().radius(Radius::Constant(s.rho))),
        new("ASAM", Some(4.0), |s| Sam::asam(s.vars).radius(Radius::Constant(s.rho))),
        new("Fisher SAM", Some(0.4), |s| Sam::fisher().radius(Radius::Constant(s.rho))),
        new("LayerSAM", Some(0.025), |s| Sam::layer_sam().radius(Radius::Constant(s.rho))),
        new("SAM-ON", Some(8.0), |s| Sam::sam_on(s.vars).radius(Radius::Constant(s.rho))),
        new("sparse SAM (SSAM-F)", Some(0.4), |s| Sam::sparse_sam(s.epoch).radius(Radius::Constant(s.rho))),
        new("GSAM", Some(0.2), |s| {
            let radius = Radius::LinkedToLr { rho: s.rho / 6.0..=s.rho, rate: 0.0..=s.rate };
            Sam::gsam(0.0..=s.rate).radius(radius)
        }),
        new("WSAM", Some(0.4), |s| Sam::wsam().radius(Radius::Constant(s.rho))),
        new("WSAM, coupled", Some(0.025), |s| Sam::new(s.rho).combination(Combination::Wsam { gamma: 0.9 })),
        new("Stable SAM", Some(0.4), |s| Sam::stable().radius(Radius::Constant(s.rho))),
        with("Functional-SAM", Some(0.4), |s| Sam::new(s.rho), functional),
        new("F-SAM", Some(0.4), |s| Sam::f_sam().radius(Radius::Constant(s.rho))),
        new("VaSSO", Some(0.4), |s| Sam::vasso().radius(Radius::Constant(s.rho))),
        new("MSAM", Some(2.0), |s| Sam::momentum_sam(s.velocities.clone()).radius(Radius::Constant(s.rho))),
        new("LookSAM-5", Some(0.0125), |s| Sam::look_sam().radius(Radius::Constant(s.rho))),
        with("ESAM", Some(0.1), |s| Sam::esam().radius(Radius::Constant(s.rho)), sharpest),
        with("K-SAM, a third", Some(0.1), |s| Sam::new(s.rho), hardest),
        new("AE-SAM", Some(0.8), |s| Sam::ae_sam(s.steps).radius(Radius::Constant(s.rho))),
        new("RST", Some(0.8), |s| Sam::rst().radius(Radius::Constant(s.rho))),
        new("every second step", Some(0.8), |s| Sam::new(s.rho).schedule(Schedule::Every(2))),
        new("in the last half", Some(0.8), |s| Sam::new(s.rho).schedule(Schedule::FromStep(s.steps / 2))),
        new("LE-SAM, σ", Some(0.2), |s| Sam::le_sam(s.rho, 1.0)),
    ]
}
