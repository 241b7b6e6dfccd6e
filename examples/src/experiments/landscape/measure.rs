//! What is measured of each network, and between two.

use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::Var;
use sam_runtime::Sam;
use sam_runtime::sharpness::{Landscape, WeightVector};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::log::PointLog;
use crate::data::ImageSet;
use crate::experiments::hessian::{Eigenvalues, landscape};
use crate::metrics::Scores;
use crate::models::Model;
use crate::models::params::{named, trained_vars};
use crate::util::numbers::spaced;
use crate::util::stop::Stop;

/// What the measurements depend on, besides networks and images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Points of the plane along each of its sides.
    pub grid: usize,
    /// How far the plane goes, in units of the filters' norms.
    pub span: f64,
    /// Products of the Lanczos method.
    pub order: usize,
    /// The radius of the ball for the sharpness.
    pub rho: f64,
    /// Of the random directions.
    pub seed: u64,
}

/// A network with a name.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Network {
    /// What it is called in tables and pictures.
    pub name: String,
    /// The network with its weights.
    pub model: Model,
}

/// What was measured of a network. A loss that is not finite is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// That of the network.
    pub name: String,
    /// Test error, from 0 to 1.
    pub test_error: f64,
    /// L(w)
    pub loss: f64,
    /// L(w + ε̂) - L(w)
    pub sharpness: f64,
    /// Of the Hessian, with its standard error.
    pub trace: [f64; 2],
    /// Of the Hessian.
    pub spectrum: Eigenvalues,
    /// The loss in the plane, a row for each y.
    pub plane: Vec<Vec<Option<f64>>>,
    /// The loss along the gradient, in units of ρ.
    pub ascent: Vec<(f64, Option<f64>)>,
}

/// The loss on the way from one network to the next.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Which loss of which two.
    pub name: String,
    /// The share of the way, and the loss there.
    pub points: Vec<(f64, Option<f64>)>,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Landscapes {
    /// The coordinates of the plane's points, along both sides.
    pub x: Vec<f64>,
    /// In the order of the networks.
    pub networks: Vec<Measured>,
    /// From each network to the next.
    pub lines: Vec<Line>,
}

/// Points of a line.
const POINTS: usize = 25;
const TRACES: usize = 10;

/// How many values there are to measure.
#[must_use]
pub fn count(networks: usize, settings: &Settings) -> usize {
    networks * (3 + POINTS + settings.grid * settings.grid) + networks.saturating_sub(1) * 2 * POINTS
}

/// The log of these networks, which says what its values depend on. The digests are those of the files of weights.
///
/// # Errors
/// As [`PointLog::open`].
pub fn open_log(
    path: &Path,
    networks: &[Network],
    digests: &[String],
    data: &str,
    images: [&ImageSet; 2],
    settings: &Settings,
    stop: &Stop,
) -> Result<PointLog> {
    let names: Vec<&String> = networks.iter().map(|network| &network.name).collect();
    let about = json!({
        "landscape": settings,
        "networks": names,
        "weights": digests,
        "data": data,
        "images": images.map(ImageSet::len),
    });
    PointLog::open(path, &about, stop)
}

/// Measures everything that the log does not have yet, and calls `tell` after each value. `None` if the process was told to stop.
///
/// # Errors
/// Those of the networks, and if the log cannot be written.
pub fn measure(
    networks: &[Network],
    [train, test]: [&ImageSet; 2],
    settings: &Settings,
    log: &mut PointLog,
    tell: &mut impl FnMut(),
) -> Result<Option<Landscapes>> {
    let mut found = Landscapes { x: spaced(settings.span, settings.grid), networks: Vec::new(), lines: Vec::new() };
    for network in networks {
        let Some(measured) = of_network(network, [train, test], settings, log, tell)? else { return Ok(None) };
        found.networks.push(measured);
    }
    for pair in networks.windows(2) {
        let [from, to] = pair else { continue };
        for (what, images) in [("training loss", train), ("test loss", test)] {
            let Some(line) = between(from, to, what, images, log, tell)? else { return Ok(None) };
            found.lines.push(line);
        }
    }
    Ok(Some(found))
}

macro_rules! or_stop {
    ($value:expr) => {
        match $value {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

fn of_network(
    Network { name, model }: &Network,
    [train, test]: [&ImageSet; 2],
    settings: &Settings,
    log: &mut PointLog,
    tell: &mut impl FnMut(),
) -> Result<Option<Measured>> {
    let key = |what: &str| format!("{name}: {what}");
    let mut value = |what: &str, measure: &mut dyn FnMut() -> Result<Value>| {
        let value = log.value(&key(what), measure)?;
        tell();
        Ok::<_, anyhow::Error>(value)
    };
    let sam = Sam::new(settings.rho);
    let mut loss = landscape(model, train)?;
    let scores = || Ok(json!(Scores::of(model, test.in_order(test.test_batch()))?.error));
    let test_error: f64 = read(or_stop!(value("test error", &mut { scores })?))?;
    let [at_w, highest]: [f64; 2] = read(or_stop!(value("sharpness", &mut || {
        let worst = loss.sharpness(&sam, 1)?;
        Ok(json!([worst.at_w, worst.highest]))
    })?))?;
    let (spectrum, trace): (Eigenvalues, [f64; 2]) = read(or_stop!(value("Hessian", &mut || {
        let mut hessian = loss.hessian()?;
        let (spectrum, _) = Eigenvalues::of(&mut hessian, settings.order, settings.seed)?;
        let trace = hessian.trace(TRACES, settings.seed)?;
        Ok(json!([spectrum, [trace.mean, trace.standard_error]]))
    })?))?;
    let epsilon = loss.ascent(&sam)?;
    let mut ascent = Vec::new();
    for t in spaced(4.0, POINTS) {
        let there =
            or_stop!(value(&format!("along the gradient {t}"), &mut || Ok(json!(loss.loss_at(&epsilon.scaled(t))?)))?);
        ascent.push((t, there.as_f64()));
    }
    let [u, v] = directions(model, settings.seed)?;
    let x = spaced(settings.span, settings.grid);
    let mut plane = Vec::new();
    for b in &x {
        let mut row = Vec::new();
        for a in &x {
            let there = || Ok(json!(loss.loss_at(&u.scaled(*a).plus(&v, *b)?)?));
            row.push(or_stop!(value(&format!("plane {a} {b}"), &mut { there })?).as_f64());
        }
        plane.push(row);
    }
    let (name, sharpness) = (name.clone(), highest - at_w);
    Ok(Some(Measured { name, test_error, loss: at_w, sharpness, trace, spectrum, plane, ascent }))
}

/// The loss on the straight line from one network to another, running statistics included.
fn between(
    from: &Network,
    to: &Network,
    what: &str,
    images: &ImageSet,
    log: &mut PointLog,
    tell: &mut impl FnMut(),
) -> Result<Option<Line>> {
    let all = |model: &Model| -> Vec<Var> { named(model.vars()).into_iter().map(|(_, var)| var).collect() };
    let (start, end) = (WeightVector::of_weights(all(&from.model))?, WeightVector::of_weights(all(&to.model))?);
    let way = start.with_values(end.values().to_vec())?.plus(&start, -1.0)?;
    let mut loss: Landscape<'_> = landscape(&from.model, images)?.with_vars(all(&from.model));
    let name = format!("{what}, {} to {}", from.name, to.name);
    let mut points = Vec::new();
    for t in spaced(1.0, POINTS).iter().map(|t| 0.5 + t) {
        let value = log.value(&format!("{name} {t}"), || Ok(json!(loss.loss_at(&way.scaled(t))?)))?;
        tell();
        points.push((t, or_stop!(value).as_f64()));
    }
    Ok(Some(Line { name, points }))
}

/// Two random directions, the same for networks of one kind up to the norms of their filters.
fn directions(model: &Model, seed: u64) -> Result<[WeightVector; 2]> {
    let vars = || trained_vars(model.vars());
    Ok([
        WeightVector::gaussian(vars(), seed)?.filter_normalized()?,
        WeightVector::gaussian(vars(), seed ^ 0x5a5a)?.filter_normalized()?,
    ])
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("a value of the log has another form: remove the log, and measure again")
}
