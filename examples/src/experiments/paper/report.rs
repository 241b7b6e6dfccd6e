//! Tables of the paper's numbers and ours beside each other: Markdown, JSON and a picture.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::chart::picture;
use super::{Ended, Settings, Unusable};
use crate::experiments::compare::report::{Mean, align, write_whole};
use crate::recipe::{Cell, Measure, Published, Table};
use crate::trainer::Outcome;

/// A cell with its numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The cell's name, without the table's.
    pub cell: String,
    /// Of the table's measure.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Of what stands beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Numbers>,
    /// Why seeds have no number though they have a result: `diverged`, `damaged`, ..
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<&'static str>,
    /// What was trained on.
    pub data: BTreeSet<String>,
    /// Seconds of all runs.
    pub seconds: f64,
}

/// The paper's number and ours.
#[derive(Clone, Debug, Serialize)]
pub struct Numbers {
    /// The paper's.
    pub paper: Option<Published>,
    /// Ours, one for each seed that has been run.
    pub ours: Vec<f64>,
    /// Their mean.
    pub mean: Option<f64>,
    /// Half of the mean's 95 % interval, by Student's distribution; none for fewer than two seeds.
    pub interval: Option<f64>,
}

impl Numbers {
    fn of(measure: Measure, paper: Option<Published>, outcomes: &[Outcome]) -> Self {
        let ours: Vec<f64> = outcomes.iter().filter_map(|outcome| measure.of(outcome)).collect();
        let mean = (!ours.is_empty()).then(|| Mean::of(&ours));
        let interval = mean.and_then(|mean| mean.error).map(|error| error * student(ours.len() - 1));
        Self { paper, mean: mean.map(|mean| mean.mean), interval, ours }
    }

    /// The paper's number and ours, in words.
    fn words(&self, measure: Measure) -> [String; 2] {
        let paper = self.paper.map_or_else(String::new, |paper| number(measure, Some(paper.mean), paper.interval));
        [paper, number(measure, self.mean, self.interval)]
    }
}

/// A table that has been written.
#[derive(Debug)]
pub struct Written {
    /// In Markdown.
    pub text: String,
    /// Results that could not be used.
    pub unusable: Vec<Unusable>,
}

/// The row of a cell, of the runs that are done.
fn row(table: &Table, cell: &Cell, settings: &Settings, unusable: &mut Vec<Unusable>) -> Result<Row> {
    let short = cell.name.strip_prefix(&format!("{}/", table.name)).unwrap_or(&cell.name).to_owned();
    let (mut outcomes, mut data, mut seconds, mut without) = (Vec::new(), BTreeSet::new(), 0.0, BTreeSet::new());
    for seed in 0..settings.seeds {
        match settings.run(cell, seed)?.ended() {
            Ok(None) => (),
            Ok(Some(Ended::Trained(outcome))) => {
                let place = if outcome.place.is_empty() { String::new() } else { format!(", {}", outcome.place) };
                data.insert(format!("{}, {} training images{place}", outcome.data, outcome.train_images));
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

/// 97.5 % of Student's distribution, by degrees of freedom from 1.
fn student(freedom: usize) -> f64 {
    const STUDENT: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    STUDENT.get(freedom - 1).copied().unwrap_or(1.96 + 2.4 / freedom as f64)
}

/// A number of a table, in words: with its interval, or empty if there is none.
#[must_use]
pub fn number(measure: Measure, mean: Option<f64>, interval: Option<f64>) -> String {
    let digits = if measure == Measure::Sharpness { 3 } else { 2 };
    match (mean, interval) {
        (Some(mean), Some(interval)) => format!("{mean:.digits$} ± {interval:.digits$}"),
        (Some(mean), None) => format!("{mean:.digits$}"),
        _ => String::new(),
    }
}

/// The table in Markdown.
fn markdown(table: &Table, settings: &Settings, rows: &[Row]) -> String {
    let measure = table.measure.name();
    let mut text = format!("# {}\n\n", table.title);
    // Writing to a string does not fail.
    if !settings.scaled().is_empty() {
        let _ = writeln!(
            text,
            "**Scaled: {}. These are not the paper's experiments; its numbers stand beside for their shape only.**\n",
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
    // Where the paper has no numbers there is no column for them.
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
        text += "\n`diverged`: a loss or gradient was not finite in a run, which the mean is without.\n";
    }
    if !table.note.is_empty() {
        let _ = writeln!(text, "\n{}", table.note);
    }
    text
}

/// Writes the table as Markdown, JSON and PNG: the cells that `only` names, or all, and whatever else has been run. A result
/// that cannot be used has a word in its cell.
///
/// # Errors
/// If a file cannot be written, or a pattern fits no cell.
pub fn write(table: &Table, only: &[String], settings: &Settings) -> Result<Written> {
    let (mut unusable, mut rows) = (Vec::new(), Vec::new());
    let wanted = table.only(only)?.cells;
    for cell in &table.cells {
        let is_wanted = wanted.iter().any(|it| it.name == cell.name);
        // Of the others some may be no runs at all with what all are told.
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
    write_whole(&path("md"), text.as_bytes())?;
    let all = json!({
        "table": table.name,
        "title": table.title,
        "measure": table.measure.name(),
        "beside": table.beside.map(Measure::name),
        "scale": settings.tag(),
        "rows": rows,
        "note": table.note,
    });
    write_whole(&path("json"), (serde_json::to_string_pretty(&all)? + "\n").as_bytes())?;
    let on = rows.iter().flat_map(|row| &row.data).collect::<BTreeSet<_>>().into_iter().cloned().collect::<Vec<_>>();
    let on = if on.is_empty() { String::new() } else { format!("Trained on: {}", on.join("; ")) };
    let scaled = settings.scaled();
    let scaled = if scaled.is_empty() { scaled } else { format!("Scaled: {scaled}") };
    picture(&path("png"), table, &rows, &[on, scaled])?;
    Ok(Written { text, unusable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            test_error: 0.0,
            top_5_error: None,
            sharpness: None,
            loss: 0.0,
            steps: 1,
            seconds: 1.0,
            parameters: 1,
            train_images: 1,
            test_images: 1,
            data: String::new(),
            place: String::new(),
            scaled: String::new(),
        }
    }

    #[test]
    fn intervals_are_students() {
        let of = |errors: &[f64]| {
            let outcomes: Vec<_> = errors.iter().map(|&test_error| Outcome { test_error, ..outcome() }).collect();
            Numbers::of(Measure::Error, None, &outcomes)
        };
        assert_eq!(of(&[0.5]).words(Measure::Error)[1], "50.00");
        assert_eq!(of(&[0.5]).interval, None);
        let five = of(&[0.01, 0.02, 0.03, 0.04, 0.05]);
        assert!((five.interval.unwrap() - 2.776 * (2.5f64 / 5.0).sqrt()).abs() < 1e-9);
        assert_eq!(five.words(Measure::Error)[1], "3.00 ± 1.96");
        assert_eq!(of(&[]).words(Measure::Error), ["", ""]);
        assert_eq!(number(Measure::Sharpness, Some(0.0123), None), "0.012");
    }
}
