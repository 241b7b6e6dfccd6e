//! Options that choose a recipe.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::recipe::{Recipe, RecipePatch, Scale, table};

/// The options for a recipe, changes of it, its data and seed.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// A cell, such as table1/wrn-28-10/basic/cifar10/sam, or a TOML file of recipe keys
    #[arg(value_name = "RECIPE")]
    pub name: String,

    /// Folder of the data sets, or the text of a language model
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// A smaller run: a share of epochs, images and width, or `epochs=0.1,images=0.2,width=0.5`
    #[arg(long, default_value = "1")]
    scale: Scale,

    /// Change the recipe, `key = value` in TOML
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RecipeArgs {
    /// The recipe.
    ///
    /// # Errors
    /// If there is no such cell, or more than one, or the file or `--set` is invalid, or a setting has no effect.
    pub fn recipe(&self) -> Result<Recipe> {
        let recipe = self.named()?.recipe_with(&self.set, &self.scale)?;
        RecipePatch::check_effect(&self.set, &recipe)?;
        Ok(recipe)
    }

    /// A label for the changes of the recipe; empty if there are none.
    #[must_use]
    pub fn scaled(&self) -> String {
        self.scale.with(&self.set)
    }

    fn named(&self) -> Result<RecipePatch> {
        let name = &self.name;
        if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
            return RecipePatch::parse(
                name,
                &std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?,
            );
        }
        let found = table(name.split('/').next().unwrap_or(name))?.only(std::slice::from_ref(name))?;
        match &found.cells[..] {
            [cell] => Ok(cell.changes.clone()),
            cells => {
                bail!("`{name}` names {} cells: expected the whole name of one, such as {}", cells.len(), cells[0].name)
            }
        }
    }
}
