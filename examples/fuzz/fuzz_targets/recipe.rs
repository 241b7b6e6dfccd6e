//! Any text as a recipe, or as a table of recipes.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use libfuzzer_sys::fuzz_target;
use sam_examples::recipe::{RecipePatch, Scale, Table};

fuzz_target!(|text: &str| {
    if let Ok(recipe) = RecipePatch::parse("recipe.toml", text).and_then(|changes| changes.recipe(&Scale::default())) {
        // What it says in full is the same recipe.
        let whole = recipe.to_toml().unwrap();
        let again = RecipePatch::parse("whole.toml", &whole).unwrap().recipe(&Scale::default()).unwrap();
        assert_eq!(again, recipe);
    }
    if let Ok(table) = Table::parse("table.toml", text) {
        for cell in &table.cells {
            let _ = cell.changes.recipe(&Scale::default());
            assert!(!cell.name.split('/').any(|part| part.is_empty() || part.starts_with('.')), "{}", cell.name);
        }
    }
});
