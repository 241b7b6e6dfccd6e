//! What several tables have in common, compiled in.

use std::sync::Arc;

use anyhow::Result;
use indexmap::IndexMap;

use super::keys::RecipePatch;
use super::spans::File;

/// The bases of the tables, by name.
pub(super) fn bases() -> Result<IndexMap<String, RecipePatch>> {
    let (name, text) = ("recipes/bases.toml", include_str!("../../recipes/bases.toml"));
    let file = Arc::new(File { name: name.to_owned(), text: text.to_owned() });
    let bases: IndexMap<String, RecipePatch> = file.parse()?;
    Ok(bases.into_iter().map(|(name, changes)| (name, changes.in_file(&file))).collect())
}
