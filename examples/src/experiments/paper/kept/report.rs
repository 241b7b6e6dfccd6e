//! What was measured at kept weights, as Markdown, JSON and PNG.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::chart;
use super::hessians::{AtWeights, Place, places};
use crate::experiments::paper::runs::Settings;
use crate::io::atomic::write_atomic;
use crate::io::table::align;
use crate::metrics::Mean;
use crate::recipe::{Kept, KeptMeasure, Table};

/// Writes what was measured as Markdown, JSON and PNG, and returns the text; empty if nothing was.
///
/// # Errors
/// If a file cannot be read or written.
pub(in crate::experiments::paper) fn write(table: &Table, settings: &Settings, foot: &[String]) -> Result<String> {
    let Some(kept) = table.kept.as_ref().filter(|kept| kept.measure == KeptMeasure::Hessian) else {
        return Ok(String::new());
    };
    let mut places = places(table, kept, settings)?;
    places.retain(|place| !place.found.is_empty());
    if places.is_empty() {
        return Ok(String::new());
    }
    let text = markdown(table, kept, &places);
    let path = |extension: &str| settings.out.join(settings.tag()).join(format!("{}-hessian.{extension}", table.name));
    write_atomic(&path("md"), text.as_bytes())?;
    let mut values = serde_json::to_value(&places)?;
    // The picture shows the densities; the values are enough for the rest.
    for found in values.as_array_mut().into_iter().flatten().filter_map(|place| place["found"].as_array_mut()).flatten()
    {
        if let Some(spectrum) = found["spectrum"].as_object_mut() {
            spectrum.remove("density");
        }
    }
    let all = json!({ "table": table.name, "scale": settings.tag(), "images": kept.images, "places": values });
    write_atomic(&path("json"), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    chart::draw(&path("png"), &places, foot)?;
    Ok(text)
}

fn markdown(table: &Table, kept: &Kept, places: &[Place]) -> String {
    let head = [
        "epoch",
        "paper's epoch",
        "network",
        "paper, λ₁",
        "ours, λ₁",
        "paper, λ₁ / λ₅",
        "ours, λ₁ / λ₅",
        "sharpness",
        "training error in %",
        "test error in %",
        "n",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut by_epoch: Vec<&Place> = places.iter().collect();
    by_epoch.sort_by_key(|place| place.index);
    for place in by_epoch {
        let mean = |of: fn(&AtWeights) -> Option<f64>, digits: usize| {
            let values: Vec<f64> = place.found.iter().filter_map(of).collect();
            if values.is_empty() {
                return String::new();
            }
            let Mean { mean, interval } = Mean::of(&values);
            let interval = interval.map_or_else(String::new, |interval| format!(" ± {interval:.digits$}"));
            format!("{mean:.digits$}{interval}")
        };
        let paper = |i: usize| place.paper.map_or_else(String::new, |paper| format!("{:.1}", paper[i]));
        rows.push(vec![
            place.epoch.to_string(),
            place.paper_epoch.to_string(),
            place.cell.clone(),
            paper(0),
            mean(|found| found.spectrum.values.first().copied(), 1),
            paper(1),
            mean(|found| found.spectrum.ratio(), 1),
            mean(|found| Some(found.sharpness), 3),
            mean(|found| Some(100.0 * found.train_error), 1),
            mean(|found| Some(100.0 * found.test_error), 1),
            place.found.len().to_string(),
        ]);
    }
    let heading = table.title.split_once(": ").map_or(&*table.title, |(heading, _)| heading);
    let mut text = format!("# {heading}: the Hessian, and sharpness against generalization\n\n{}", align(&rows));
    let (mut of_sharpness, mut of_largest) = (Vec::new(), Vec::new());
    for index in 0..=places.iter().map(|place| place.index).max().unwrap_or(0) {
        let here: Vec<_> = places.iter().filter(|place| place.index == index).flat_map(|place| &place.found).collect();
        let gaps: Vec<f64> = here.iter().map(|found| found.gap()).collect();
        let rank = |of: fn(&AtWeights) -> f64| {
            format!("{:.2}", kendall(&here.iter().map(|found| of(found)).collect::<Vec<_>>(), &gaps))
        };
        of_sharpness.push(rank(|found| found.sharpness));
        of_largest.push(rank(|found| found.spectrum.values.first().copied().unwrap_or_default()));
    }
    let error = places.iter().flat_map(|place| &place.found).map(|found| found.spectrum.error).fold(0.0, f64::max);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "\nOn the first {} training images, and as many test images. Sharpness: L(w + ε̂) - L(w) with ρ = {}. ± is the 95 % \
         interval of the mean over n seeds. Kendall's rank correlation with the generalization gap, test error minus training \
         error, among the networks of one epoch: {} of the sharpness, {} of λ₁, in the order of the epochs. Products with the \
         Hessian have a relative error of {error:.0e} at most.",
        kept.images,
        kept.rho,
        of_sharpness.join(", "),
        of_largest.join(", "),
    );
    text
}

/// Kendall's rank correlation: the share of pairs in one order minus that of pairs in opposite orders.
fn kendall(x: &[f64], y: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..x.len() {
        for j in 0..i {
            let product = (x[i] - x[j]) * (y[i] - y[j]);
            sum += if product == 0.0 { 0.0 } else { product.signum() };
        }
    }
    let pairs = (x.len() * x.len().saturating_sub(1) / 2).max(1);
    sum / pairs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlations() {
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[0.1, 0.2, 7.0]), 1.0);
        assert_eq!(kendall(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(kendall(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 4.0, 3.0]), 4.0 / 6.0);
        assert_eq!(kendall(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
        assert_eq!(kendall(&[], &[]), 0.0);
    }
}
