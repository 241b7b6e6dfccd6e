//! The epochs of a training as a CSV file, made from its log.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::io::atomic::write_atomic;

const HEAD: &str = "stage,epoch,step,loss,rate,sharpness,test_error";

/// A further column, of the tests of a text.
const TEST_LOSS: (&str, &str) = ("test loss", "test_loss");

/// Writes the table of a log.
///
/// # Errors
/// If the log cannot be read, or the table not be written.
pub(super) fn write(log: &Path, table: &Path) -> Result<()> {
    let log = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    write_atomic(table, of(&log).as_bytes())
}

/// A line for each test: the epoch and the number of steps before it, the mean loss and sharpness of the steps that were
/// logged since the one before, and the last learning rate.
fn of(log: &str) -> String {
    let mut table = HEAD.to_owned();
    let is_of_text = log.contains(TEST_LOSS.0);
    table.extend(is_of_text.then(|| format!(",{}", TEST_LOSS.1)));
    table.push('\n');
    let (mut losses, mut rises, mut rate) = (Vec::new(), Vec::new(), None);
    for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        losses.extend(line["loss"].as_f64());
        rises.extend(line["sharpness"].as_f64());
        rate = line["rate"].as_f64().or(rate);
        let Some(error) = line["test error"].as_f64() else { continue };
        let mean = |numbers: &[f64]| {
            let sum: f64 = numbers.iter().sum();
            if numbers.is_empty() { String::new() } else { (sum / numbers.len() as f64).to_string() }
        };
        let (loss, rise, rate) = (mean(&losses), mean(&rises), rate.map_or_else(String::new, |rate| rate.to_string()));
        let of_test = line[TEST_LOSS.0].as_f64().map_or_else(String::new, |loss| format!(",{loss}"));
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "{},{},{},{loss},{rate},{rise},{error}{of_test}",
            line["stage"], line["epoch"], line["step"]
        );
        losses.clear();
        rises.clear();
    }
    table
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_for_each_test() {
        let log = r#"{"recipe":{},"seed":0}
{"stage":0,"step":0,"loss":2.0,"rate":0.1,"sharpness":0.5}
{"stage":0,"step":10,"loss":1.0,"rate":0.05,"sharpness":0.25}
{"stage":0,"step":20,"epoch":2,"test error":0.125}
{"stage":1,"step":0,"loss":0.5,"rate":0.01}
{"stage":1,"step":7,"epoch":1,"test error":0.25}
"#;
        let table = super::of(log);
        let lines: Vec<_> = table.lines().skip(1).collect();
        assert_eq!(lines, ["0,2,20,1.5,0.05,0.375,0.125", "1,1,7,0.5,0.01,,0.25"]);
        let table = super::of(&log.replace("\"test error\":", "\"test loss\":1.5,\"test error\":"));
        assert!(table.starts_with("stage,epoch,step,loss,rate,sharpness,test_error,test_loss\n"));
        assert!(table.ends_with(",0.25,1.5\n"), "{table}");
    }
}
