//! Tables that compare the paper's numbers with ours: Markdown, JSON and charts.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::numbers::{Numbers, Row};
use super::runs::{Ended, Settings, Unusable};
use super::{chart, curves, kept};
use crate::io::atomic::write_atomic;
use crate::io::table::align;
use crate::recipe::{Cell, Measure, Table};

/// A table that has been written.
#[derive(Debug)]
pub struct Written {
    /// The table in Markdown.
    pub text: String,
    /// Results that could not be used.
    pub unusable: Vec<Unusable>,
}

/// The row of a cell, from its finished runs.
fn row(table: &Table, cell: &Cell, settings: &Settings, unusable: &mut Vec<Unusable>) -> Result<Row> {
    let short = cell.name.strip_prefix(&format!("{}/", table.name)).unwrap_or(&cell.name).to_owned();
    let (mut outcomes, mut data, mut seconds, mut without) = (Vec::new(), BTreeSet::new(), 0.0, BTreeSet::new());
    for seed in 0..settings.seeds {
        match settings.run(cell, seed)?.ended() {
            Ok(None) => (),
            Ok(Some(Ended::Trained(outcome))) => {
                let device = if outcome.device.is_empty() { String::new() } else { format!(", {}", outcome.device) };
                data.insert(format!("{}, {} training images{device}", outcome.data, outcome.train_images));
                seconds += outcome.seconds;
                outcomes.push(outcome);
            }
            Ok(Some(Ended::Diverged { .. })) => {
                without.insert("diverged");
            }
            Err(error) => {
                without.insert(error.word());
                unusable.push(error);
            }
        }
    }
    let numbers = Numbers::of(table.measure, cell.paper, &outcomes);
    let beside = table.beside.map(|measure| Numbers::of(measure, cell.paper_beside, &outcomes));
    Ok(Row { cell: short, numbers, beside, without, data, seconds })
}

/// The table in Markdown.
fn markdown(table: &Table, settings: &Settings, rows: &[Row]) -> String {
    let measure = table.measure.name();
    let mut text = format!("# {}\n\n", table.title);
    // Writing to a string does not fail.
    if !settings.scaled().is_empty() {
        let _ = writeln!(
            text,
            "**Scaled: {}. These are not the paper's experiments; its numbers are shown to compare trends.**\n",
            settings.scaled()
        );
    }
    for data in rows.iter().flat_map(|row| &row.data).collect::<BTreeSet<_>>() {
        let _ = writeln!(text, "Trained on: {data}.\n");
    }
    let mut head = vec!["cell".to_owned(), format!("paper, {measure}"), format!("ours, {measure}")];
    if let Some(beside) = table.beside {
        head.extend([format!("paper, {}", beside.name()), format!("ours, {}", beside.name())]);
    }
    head.push("n".to_owned());
    let body = rows.iter().map(|row| {
        let [paper, ours] = row.numbers.words(table.measure);
        let count = row.numbers.ours.len();
        let ours: Vec<_> = Some(ours).filter(|ours| !ours.is_empty()).into_iter().collect();
        let ours: Vec<_> = ours.into_iter().chain(row.without.iter().map(|&word| word.to_owned())).collect();
        let mut cells = vec![row.cell.clone(), paper, ours.join(", ")];
        cells.extend(row.beside.iter().zip(table.beside).flat_map(|(beside, measure)| beside.words(measure)));
        cells.push(if count == 0 { String::new() } else { count.to_string() });
        cells
    });
    let mut all: Vec<_> = [head].into_iter().chain(body).collect();
    // A column of the paper without numbers is left out.
    for i in (1..all[0].len()).rev() {
        if all[0][i].starts_with("paper") && all[1..].iter().all(|row| row[i].is_empty()) {
            for row in &mut all {
                row.remove(i);
            }
        }
    }
    text += &align(&all);
    let _ = writeln!(
        text,
        "\n± is the 95 % interval of the mean over n seeds; an empty cell has not been run. Last epoch's model."
    );
    if rows.iter().any(|row| row.without.contains("diverged")) {
        text += "\n`diverged`: a loss or gradient was not finite in a run, and the mean is that of the others.\n";
    }
    if !table.note.is_empty() {
        let _ = writeln!(text, "\n{}", table.note);
    }
    text
}

/// Writes the table as Markdown, JSON and PNG, and its curves, if it has any, as another PNG: the cells that `only` names, or all, and all other cells with results. A
/// result that cannot be used is marked in its cell.
///
/// # Errors
/// If a file cannot be written, or a pattern fits no cell.
pub fn write(table: &Table, only: &[String], settings: &Settings) -> Result<Written> {
    let (mut unusable, mut rows) = (Vec::new(), Vec::new());
    let wanted = table.only(only)?.cells;
    for cell in &table.cells {
        let is_wanted = wanted.iter().any(|it| it.name == cell.name);
        // Recipes of other cells may be invalid with these settings.
        if !is_wanted && settings.recipe(cell).is_err() {
            continue;
        }
        let row = row(table, cell, settings, &mut unusable)?;
        if is_wanted || !row.numbers.ours.is_empty() || !row.without.is_empty() {
            rows.push(row);
        }
    }
    let text = markdown(table, settings, &rows);
    let folder = settings.out.join(settings.tag());
    std::fs::create_dir_all(&folder)?;
    let path = |extension: &str| folder.join(format!("{}.{extension}", table.name));
    write_atomic(&path("md"), text.as_bytes())?;
    let all = json!({
        "table": table.name,
        "title": table.title,
        "measure": table.measure.name(),
        "beside": table.beside.map(Measure::name),
        "scale": settings.tag(),
        "rows": rows,
        "note": table.note,
    });
    write_atomic(&path("json"), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    let on = rows.iter().flat_map(|row| &row.data).collect::<BTreeSet<_>>().into_iter().cloned().collect::<Vec<_>>();
    let on = if on.is_empty() { String::new() } else { format!("Trained on: {}", on.join("; ")) };
    let scaled = settings.scaled();
    let scaled = if scaled.is_empty() { scaled } else { format!("Scaled: {scaled}") };
    let foot = [on, scaled];
    chart::draw(&path("png"), table, &rows, &foot)?;
    curves::draw(&folder.join(format!("{}-curves.png", table.name)), table, settings, &foot)?;
    let of_kept = kept::write(table, settings, &foot)?;
    let text = if of_kept.is_empty() { text } else { format!("{text}\n{of_kept}") };
    Ok(Written { text, unusable })
}
