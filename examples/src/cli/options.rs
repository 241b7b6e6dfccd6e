//! Command lines: parsing, shell completions, checks of numbers.

use std::fmt::Display;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};
use clap::error::ErrorKind;
use clap::{Arg, Parser, value_parser};
use clap_complete::Shell;

use crate::util::numbers::MOST;

/// Reads the command line; with `--completions SHELL` alone it prints a script for that shell and ends the program.
#[must_use]
pub fn parse<T: Parser>() -> T {
    let completions = Arg::new("completions")
        .long("completions")
        .value_name("SHELL")
        .value_parser(value_parser!(Shell))
        .exclusive(true)
        .help("Print a script that completes the options in a shell");
    let mut command = T::command().arg(completions);
    let matches = command.get_matches_mut();
    if let Some(shell) = matches.get_one::<Shell>("completions") {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut command, name, &mut script);
        super::console::print(&String::from_utf8_lossy(&script));
        std::process::exit(0);
    }
    // The matches are those of the command with the additional argument.
    T::from_arg_matches(&matches)
        .unwrap_or_else(|error| T::command().error(ErrorKind::MissingRequiredArgument, error).exit())
}

/// Checks that an option is in a range.
///
/// # Errors
/// If it is not; NaN is in none.
///
/// ```
/// use sam_examples::cli::options::within;
///
/// within("epochs", 3, 1..=100)?;
/// assert_eq!(within("epochs", 0, 1..=100).unwrap_err().to_string(), "--epochs is 0: expected 1 to 100");
/// # Ok::<_, anyhow::Error>(())
/// ```
#[expect(clippy::needless_pass_by_value, reason = "numbers are small")]
pub fn within<T: Display + PartialOrd>(option: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    ensure!(range.contains(&value), "--{option} is {value}: expected {} to {}", range.start(), range.end());
    Ok(())
}

/// Checks that an option is a finite number above 0.
///
/// # Errors
/// If it is not.
pub fn above_0(option: &str, value: f64) -> Result<()> {
    ensure!(value > 0.0 && value.is_finite(), "--{option} is {value}: expected a number above 0");
    Ok(())
}

/// Checks that an option is a finite number, 0 or more.
///
/// # Errors
/// If it is not.
pub fn at_least_0(option: &str, value: f64) -> Result<()> {
    ensure!(value >= 0.0 && value.is_finite(), "--{option} is {value}: expected 0 or more");
    Ok(())
}

/// Checks a number of seeds, and that the last one is a valid seed.
///
/// # Errors
/// If there is no seed, or the last one is too large.
pub fn seeds(first: u64, count: u64) -> Result<()> {
    within("seeds", count, 1..=MOST)?;
    let most = u64::MAX - count;
    ensure!(first <= most, "--seed is {first}: expected at most {most}, because {count} seeds are used from there on");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert!(within("p", f64::NAN, 1.0..=f64::INFINITY).is_err());
        within("p", f64::INFINITY, 1.0..=f64::INFINITY).unwrap();
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(above_0("lr", bad).unwrap_err().to_string().contains("--lr is "));
        }
        at_least_0("momentum", 0.0).unwrap();
        assert!(at_least_0("momentum", f64::NAN).is_err() && at_least_0("momentum", -0.1).is_err());
        seeds(u64::MAX - 3, 3).unwrap();
        assert!(seeds(u64::MAX, 1).unwrap_err().to_string().contains("--seed is"));
        assert!(seeds(0, 0).unwrap_err().to_string().contains("--seeds is 0"));
    }
}
