//! Names of cells, and patterns for them.

use anyhow::{Result, ensure};

/// A cell's name without its table's.
pub(super) fn within_table(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// Checks that the name of a table or a choice is also a valid and unambiguous name of a folder.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || "._-+=@".contains(c);
    ensure!(
        (1..=100).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_allowed),
        "`{name}` cannot be a name, since folders are named so: expected letters, digits and any of `._-+=@`, and no dot at \
         the beginning"
    );
    Ok(())
}

/// Whether a path fits a pattern of as many segments, in which `*` stands for any characters within a segment.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    pattern.split('/').count() == path.split('/').count() && begins(pattern, path)
}

/// Whether the first segments of a path fit a pattern.
pub(super) fn begins(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    pattern.split('/').all(|pattern| segments.next().is_some_and(|segment| fits(pattern, segment)))
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| fits(rest, &text[at..]))
        }),
    }
}
