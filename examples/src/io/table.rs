//! Tables in Markdown.

use std::fmt::Write as _;

/// A table in Markdown whose columns line up; the first row is its head.
#[must_use]
pub fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "| {cell:<width$} ");
        }
        text += "|\n";
        if i == 0 {
            for &width in &widths {
                let _ = write!(text, "| {:-<width$} ", "");
            }
            text += "|\n";
        }
    }
    text
}
