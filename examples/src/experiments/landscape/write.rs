//! The files of a landscape: picture, page and table.

use std::path::Path;

use anyhow::Result;

use super::draw::draw;
use super::measure::{Landscapes, Settings};
use super::page::page;
use crate::io::atomic::write_atomic;
use crate::io::table::align;

/// Writes `name`.png, .html and .md to a folder, and returns the table.
///
/// # Errors
/// If a file cannot be written.
pub fn write(found: &Landscapes, settings: &Settings, title: &str, folder: &Path, name: &str) -> Result<String> {
    let head = ["network", "test error, %", "training loss", "sharpness", "λ₁", "λ₁ / λ₅", "trace"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for network in &found.networks {
        let number = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
        rows.push(vec![
            network.name.clone(),
            format!("{:.2}", 100.0 * network.test_error),
            format!("{:.4}", network.loss),
            format!("{:.4}", network.sharpness),
            number(network.spectrum.values.first().copied(), 2),
            number(network.spectrum.ratio(), 1),
            format!("{:.1} ± {:.1}", network.trace[0], 2.0 * network.trace[1]),
        ]);
    }
    let mut methods: Vec<&str> = found.networks.iter().map(|network| &*network.spectrum.method).collect();
    methods.dedup();
    let note = format!(
        "Sharpness: L(w + ε̂) - L(w) with ρ = {}. Trace: ± two standard errors. Hessian: {}.",
        settings.rho,
        methods.join("; ")
    );
    let heading = format!("Loss landscape: {title}");
    let table = format!("# {heading}\n\n{}\n{note}\n", align(&rows));
    let path = |extension: &str| folder.join(format!("{name}.{extension}"));
    write_atomic(&path("md"), table.as_bytes())?;
    draw(found, title, &path("png"))?;
    write_atomic(&path("html"), page(found, &heading, &note, &rows).as_bytes())?;
    Ok(table)
}
