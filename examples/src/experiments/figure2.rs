//! Figure 2 of the paper: a step of SAM, here of a real run with two weights.
//!
//! A logistic regression without a bias on 40 points of two classes, one coordinate of which is three times the other, so that its
//! valley is narrow. From one point a step of SGD and one of SAM are drawn, with everything that SAM computes, and then the way
//! that both take.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use candle_nn::Optimizer as _;
use plotters::prelude::*;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::sharpness::{Landscape, WeightVector};
use serde::Serialize;

use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, level_lines, line_key, png, style};

const RHO: f64 = 0.5;
const LR: f64 = 1.3;
const START: [f64; 2] = [-0.3, 0.1];
const STEPS: usize = 4;

/// A point of the plane of weights.
pub type Point = [f64; 2];

/// What one step computes.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// w
    pub w: Point,
    /// w + ε̂
    pub adversarial: Point,
    /// w - η ∇L(w)
    pub sgd: Point,
    /// w - η ∇L(w + ε̂)
    pub sam: Point,
    /// The ways of SGD and of SAM from w.
    pub ways: [Vec<Point>; 2],
}

struct Regression {
    w: Var,
    x: Tensor,
    /// 1 and -1.
    y: Tensor,
}

impl Regression {
    fn new() -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for i in 0..40 {
            let label = if i % 2 == 0 { 1.0 } else { -1.0 };
            let mut noise = || rng.random_range(-1.0..1.0f64);
            x.extend([3.0 * (0.25 * label + noise()), 0.6 * label + noise()]);
            y.push(label);
        }
        let cpu = &Device::Cpu;
        let w = Var::new(&START, cpu)?;
        Ok(Self { w, x: Tensor::from_vec(x, (40, 2), cpu)?, y: Tensor::from_vec(y, 40, cpu)? })
    }

    /// The mean of ln(1 + exp(-y ⟨w, x⟩)).
    fn loss(&self) -> candle_core::Result<Tensor> {
        let margin = (self.x.matmul(&self.w.unsqueeze(1)?)?.squeeze(1)? * &self.y)?;
        (margin.neg()?.exp()? + 1.0)?.log()?.mean_all()
    }

    fn place(&self, w: Point) -> candle_core::Result<()> {
        self.w.set(&Tensor::new(&w, &Device::Cpu)?)
    }

    fn landscape(&self) -> Landscape<'_> {
        Landscape::new([self.w.clone()], || self.loss())
    }

    /// Where an optimizer goes from the start.
    fn way(&self, sam: Option<&Sam>) -> candle_core::Result<Vec<Point>> {
        self.place(START)?;
        let mut sgd =
            Sgd::new(vec![self.w.clone()], ParamsSgd { lr: LR, momentum: 0.0, nesterov: false, weight_decay: 0.0 })?;
        let mut way = vec![START];
        for _ in 0..STEPS {
            let loss = match sam {
                Some(sam) => sam.loss(|| self.loss())?,
                None => self.loss()?,
            };
            sgd.backward_step(&loss)?;
            way.push(point(&WeightVector::of_weights([self.w.clone()])?));
        }
        Ok(way)
    }
}

/// Computes the step and the ways.
///
/// # Errors
/// Those of candle.
pub fn step() -> Result<Step> {
    let regression = Regression::new()?;
    let sam = Sam::new(RHO);
    let ways = [regression.way(None)?, regression.way(Some(&sam))?];
    regression.place(START)?;
    let adversarial = regression.landscape().ascent(&sam)?;
    let adversarial = [0, 1].map(|i| START[i] + adversarial.values()[i]);
    Ok(Step { w: START, adversarial, sgd: ways[0][1], sam: ways[1][1], ways })
}

/// Draws the step as a PNG.
///
/// # Errors
/// If the file cannot be written, and those of candle.
pub fn draw(step: &Step, path: &Path) -> Result<()> {
    const GRID: usize = 120;
    let regression = Regression::new()?;
    let (low, high) = ([-1.2, -0.5], [1.3, 2.1]);
    let at = |axis: usize, i: usize| low[axis] + (high[axis] - low[axis]) * i as f64 / GRID as f64;
    let mut values = Vec::with_capacity((GRID + 1) * (GRID + 1));
    for j in 0..=GRID {
        for i in 0..=GRID {
            regression.place([at(0, i), at(1, j)])?;
            values.push(regression.loss()?.to_scalar::<f64>()?);
        }
    }
    let value = |i: usize, j: usize| values[j * (GRID + 1) + i];
    png(path, (1000, 920), |area| chart(area, step, (low, high), GRID, at, value))
}

fn chart(
    area: &Area<'_>,
    step: &Step,
    (low, high): (Point, Point),
    grid: usize,
    at: impl Fn(usize, usize) -> f64,
    value: impl Fn(usize, usize) -> f64,
) -> DrawResult {
    let mut chart = ChartBuilder::on(area)
        .caption("A step of SGD and one of SAM", ("sans-serif", 44).into_font().color(&INK))
        .margin(40)
        .x_label_area_size(80)
        .y_label_area_size(110)
        .build_cartesian_2d(low[0]..high[0], low[1]..high[1])?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 32);
    mesh.disable_mesh().x_desc("first weight").y_desc("second weight").draw()?;

    let lowest =
        (0..=grid).flat_map(|j| (0..=grid).map(move |i| (i, j))).map(|(i, j)| value(i, j)).fold(f64::MAX, f64::min);
    for level in (0..24).map(|k| lowest + 0.004 * 1.4f64.powi(k)) {
        for line in level_lines(grid, |i, j| (at(0, i), at(1, j)), &value, level) {
            chart.draw_series([PathElement::new(line, INK.mix(0.22).stroke_width(2))])?;
        }
    }

    let [sam, sgd, ascent] = [0, 1, 2].map(|i| COLORS[i].mix(1.0));
    for (way, color) in step.ways.iter().zip([sgd, sam]) {
        let points: Vec<(f64, f64)> = way.iter().map(|[x, y]| (*x, *y)).collect();
        chart.draw_series([PathElement::new(points.clone(), color.mix(0.35).stroke_width(4))])?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 6, color.mix(0.5).filled())))?;
    }
    let moved = |from: Point, to: Point| [from[0] + to[0] - step.w[0], from[1] + to[1] - step.w[1]];
    let arrows = [
        (step.w, step.adversarial, ascent, "to w + ε, where the loss is higher"),
        (step.adversarial, moved(step.adversarial, step.sam), sam.mix(0.45), ""),
        (step.w, step.sgd, sgd, "SGD: - η ∇L(w)"),
        (step.w, step.sam, sam, "SAM: - η ∇L(w + ε), from w"),
    ];
    for (from, to, color, label) in arrows {
        let series = chart.draw_series(arrow(from, to, color))?;
        if !label.is_empty() {
            series.label(label).legend(move |at| EmptyElement::at(at) + line_key(color.stroke_width(6)));
        }
    }
    for (place, name, (right, down)) in [(step.w, "w", (14, -40)), (step.adversarial, "w + ε", (-50, 22))] {
        chart.draw_series([EmptyElement::at((place[0], place[1]))
            + Circle::new((0, 0), 9, INK.filled())
            + Text::new(name, (right, down), ("sans-serif", 36).into_font().color(&INK))])?;
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// A line with a head.
fn arrow(from: Point, to: Point, color: RGBAColor) -> Vec<PathElement<(f64, f64)>> {
    let way = [to[0] - from[0], to[1] - from[1]];
    let length = way[0].hypot(way[1]).max(1e-9);
    let back = |sign: f64| {
        let (x, y) = (way[0] / length * 0.09, way[1] / length * 0.09);
        (to[0] - x - sign * y * 0.6, to[1] - y + sign * x * 0.6)
    };
    let tip = (to[0], to[1]);
    let style = color.stroke_width(5);
    vec![
        PathElement::new(vec![(from[0], from[1]), tip], style),
        PathElement::new(vec![back(1.0), tip, back(-1.0)], style),
    ]
}

fn point(vector: &WeightVector) -> Point {
    [vector.values()[0], vector.values()[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By differences of the loss, which is written once more.
    #[test]
    fn the_arrows_are_those_of_the_formula() {
        let regression = Regression::new().unwrap();
        let (x, y) = (regression.x.to_vec2::<f64>().unwrap(), regression.y.to_vec1::<f64>().unwrap());
        let loss = |w: Point| {
            let each = x.iter().zip(&y).map(|(x, y)| (1.0 + (-y * (w[0] * x[0] + w[1] * x[1])).exp()).ln());
            each.sum::<f64>() / 40.0
        };
        let gradient = |w: Point| {
            let h = 1e-6;
            [
                (loss([w[0] + h, w[1]]) - loss([w[0] - h, w[1]])) / (2.0 * h),
                (loss([w[0], w[1] + h]) - loss([w[0], w[1] - h])) / (2.0 * h),
            ]
        };
        let found = step().unwrap();
        let g = gradient(START);
        let norm = g[0].hypot(g[1]);
        let there = [0, 1].map(|i| START[i] + RHO * g[i] / norm);
        let other = gradient(there);
        for i in 0..2 {
            assert!((found.adversarial[i] - there[i]).abs() < 1e-6);
            assert!((found.sgd[i] - (START[i] - LR * g[i])).abs() < 1e-6);
            assert!((found.sam[i] - (START[i] - LR * other[i])).abs() < 1e-6);
        }
        assert_eq!(found.ways.each_ref().map(Vec::len), [STEPS + 1; 2]);
    }
}
