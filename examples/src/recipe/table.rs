//! Tables of runs: a base, axes of choices, and overrides per cell.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::bases::bases;
use super::keys::RecipePatch;
use super::patterns::{begins, check_name, matches, within_table};
use super::spans::{File, WithSpan};

/// The measure of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The share of test images that the last model misclassifies, in %.
    Error,
    /// The share of test images that it classifies correctly, in %.
    Accuracy,
    /// The share of test images whose label is not among its five likeliest, in %.
    #[serde(rename = "top-5-error")]
    Top5Error,
    /// L(w + ε̂) - L(w) in the last epoch of training, on the examples of a shard.
    Sharpness,
    /// The cross-entropy of a language model on its test text, in bits for each token.
    BitsPerToken,
}

impl Measure {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error in %",
            Self::Accuracy => "accuracy in %",
            Self::Top5Error => "top-5 error in %",
            Self::Sharpness => "L(w + ε̂) - L(w)",
            Self::BitsPerToken => "bits per token",
        }
    }
}

/// A table of the paper, or an ablation.
#[derive(Clone, Debug)]
pub struct Table {
    /// The first part of its cells' names.
    pub name: String,
    /// The heading.
    pub title: String,
    /// The text below it.
    pub note: String,
    /// The measure of its numbers.
    pub measure: Measure,
    /// A second measure, if any.
    pub beside: Option<Measure>,
    /// What is measured at the weights that its runs keep, if anything.
    pub kept: Option<Kept>,
    /// Its cells, in order.
    pub cells: Vec<Cell>,
}

/// What `paper` measures at the weights of `keep-epochs`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kept {
    /// What.
    pub measure: KeptMeasure,
    /// The number of training images of the loss, from the first one on, and at most as many test images.
    pub images: usize,
    /// Products with the Hessian.
    pub order: usize,
    /// The radius of the ball for the sharpness.
    pub rho: f64,
    /// Points along each side of the plane of a landscape.
    #[serde(default = "default_grid")]
    pub grid: usize,
    /// The paper's λ₁ and λ₁ / λ₅ of a cell, one pair for each of its `keep-epochs`.
    #[serde(default)]
    pub paper: IndexMap<String, Vec<[f64; 2]>>,
}

/// What is measured at weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptMeasure {
    /// The loss around the last weights of each cell, for the first seed.
    Landscape,
    /// Spectrum of the Hessian, sharpness and generalization gap, of all weights.
    Hessian,
}

fn default_grid() -> usize {
    25
}

impl Kept {
    fn check(&self) -> Result<()> {
        ensure!(self.images > 0 && self.order > 0, "`images` and `order` of `kept` have to be at least 1");
        ensure!(self.rho.is_finite() && self.rho > 0.0, "`rho` of `kept` is {}: expected more than 0", self.rho);
        ensure!((2..=1001).contains(&self.grid), "`grid` of `kept` is {}: expected 2 to 1001", self.grid);
        Ok(())
    }
}

/// One number of a table: a recipe, to be run with several seeds.
#[derive(Clone, Debug)]
pub struct Cell {
    /// `table1/wrn-28-10/cutout/cifar100/sam`
    pub name: String,
    /// Its recipe.
    pub changes: RecipePatch,
    /// The paper's number, if it has one.
    pub paper: Option<Published>,
    /// The paper's number of the second measure.
    pub paper_beside: Option<Published>,
}

/// A number of the paper, in %, and its 95 % interval if one is given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Published {
    /// The number.
    pub mean: f64,
    /// Half of the interval.
    pub interval: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    title: String,
    #[serde(default)]
    note: String,
    measure: Measure,
    beside: Option<Measure>,
    #[serde(default)]
    from: Vec<WithSpan<String>>,
    #[serde(default)]
    base: RecipePatch,
    kept: Option<Kept>,
    axis: Vec<Axis>,
    #[serde(default)]
    change: Vec<Change>,
    #[serde(default)]
    skip: Vec<WithSpan<String>>,
    #[serde(default)]
    paper: IndexMap<Spanned<String>, Vec<f64>>,
    #[serde(default)]
    paper_beside: IndexMap<Spanned<String>, Vec<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    choices: IndexMap<String, RecipePatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    cells: WithSpan<String>,
    set: RecipePatch,
}

impl Table {
    /// Reads a table from the text of a file of this name; the table is named after the file.
    ///
    /// # Errors
    /// If it is invalid; the error names file and line.
    pub fn parse(file_name: &str, text: &str) -> Result<Self> {
        let file = Arc::new(File { name: file_name.to_owned(), text: text.to_owned() });
        let document: Document = file.parse()?;
        let stem = file_name.rsplit(['/', '\\']).next().unwrap_or(file_name).trim_end_matches(".toml");
        let mut base = document.base.in_file(&file);
        let bases = bases()?;
        for from in document.from.iter().rev() {
            let Some(changes) = bases.get(&from.value) else {
                let known = bases.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(from.in_file(&file).error(format!("unknown base `{}`: expected {known}", from.value)));
            };
            base = base.or(changes);
        }

        check_name(stem).map_err(|error| file.error(None, error))?;
        if let Some(kept) = &document.kept {
            kept.check().map_err(|error| file.error(None, error.to_string()))?;
        }
        let mut cells = vec![(String::new(), base)];
        for axis in document.axis {
            for (name, _) in &axis.choices {
                check_name(name).map_err(|error| file.error(None, error))?;
            }
            let choices: Vec<_> =
                axis.choices.into_iter().map(|(name, changes)| (name, changes.in_file(&file))).collect();
            let longer = |(path, changes): &(String, RecipePatch)| -> Vec<(String, RecipePatch)> {
                choices.iter().map(|(name, choice)| (format!("{path}/{name}"), choice.or(changes))).collect()
            };
            cells = cells.iter().flat_map(longer).collect();
        }
        for Change { cells: pattern, set } in document.change {
            let set = set.in_file(&file);
            let mut count = 0;
            for (_, changes) in cells.iter_mut().filter(|(path, _)| matches(&pattern.value, within_table(path))) {
                *changes = set.or(changes);
                count += 1;
            }
            if count == 0 {
                return Err(pattern.in_file(&file).error(format!("`{}` is no cell of this table", pattern.value)));
            }
        }
        for pattern in document.skip {
            let before = cells.len();
            cells.retain(|(path, _)| !matches(&pattern.value, within_table(path)));
            if cells.len() == before {
                return Err(pattern.in_file(&file).error(format!("`{}` is no cell of this table", pattern.value)));
            }
        }
        let mut table = Self {
            name: stem.to_owned(),
            title: document.title,
            note: document.note,
            measure: document.measure,
            beside: document.beside,
            kept: document.kept,
            cells: cells
                .into_iter()
                .map(|(path, changes)| Cell { name: format!("{stem}{path}"), changes, paper: None, paper_beside: None })
                .collect(),
        };
        for (path, numbers) in document.paper {
            let (cell, published) = table.published(&file, &path, &numbers)?;
            cell.paper = Some(published);
        }
        for path in table.kept.iter().flat_map(|kept| kept.paper.keys()) {
            if !table.cells.iter().any(|cell| cell.name == format!("{stem}/{path}")) {
                return Err(file.error(None, format!("`{path}` of `kept.paper` is no cell of this table")));
            }
        }
        let is_landscape = |kept: &Kept| kept.measure == KeptMeasure::Landscape;
        if table.kept.as_ref().is_some_and(is_landscape) && !(1..=4).contains(&table.cells.len()) {
            return Err(file.error(None, format!("{} cells: a landscape is of 1 to 4", table.cells.len())));
        }
        for (path, numbers) in document.paper_beside {
            let (cell, published) = table.published(&file, &path, &numbers)?;
            cell.paper_beside = Some(published);
        }
        Ok(table)
    }

    fn published(
        &mut self,
        file: &Arc<File>,
        path: &Spanned<String>,
        numbers: &[f64],
    ) -> Result<(&mut Cell, Published)> {
        let name = format!("{}/{}", self.name, path.get_ref());
        let wrong = |what: &str| file.error(Some(&path.span()), format!("`{}` {what}", path.get_ref()));
        let Some(cell) = self.cells.iter_mut().find(|cell| cell.name == name) else {
            return Err(wrong("is no cell of this table"));
        };
        let published = match *numbers {
            [mean] => Published { mean, interval: None },
            [mean, interval] => Published { mean, interval: Some(interval) },
            _ => return Err(wrong("has other than one or two numbers: expected [number, interval]")),
        };
        Ok((cell, published))
    }

    /// The same table with the cells that match one of these patterns; with all cells, if there is no pattern.
    ///
    /// # Errors
    /// If a pattern matches no cell.
    pub fn only(&self, patterns: &[String]) -> Result<Self> {
        let mut found = self.clone();
        if patterns.is_empty() {
            return Ok(found);
        }
        let mut wanted = Vec::new();
        for pattern in patterns {
            let cells = self.cells_like(pattern);
            if cells.is_empty() {
                bail!("`{pattern}` is no cell of {}: `paper list {}` names them", self.name, self.name)
            }
            wanted.extend(cells.into_iter().map(|cell| &cell.name));
        }
        found.cells.retain(|cell| wanted.contains(&&cell.name));
        Ok(found)
    }

    /// The cells whose names begin with this, segment by segment, or match it with `*` for a segment.
    #[must_use]
    pub fn cells_like(&self, pattern: &str) -> Vec<&Cell> {
        let full = if pattern.split('/').next() == Some(self.name.as_str()) {
            pattern.to_owned()
        } else {
            format!("{}/{pattern}", self.name)
        };
        self.cells.iter().filter(|cell| begins(&full, &cell.name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::Scale;
    use super::*;

    const SMALL: &str = r#"
title = "A test"
measure = "error"
skip = ["b/sgd"]

[base]
epochs = 3.0

[[axis]]
[axis.choices]
b = { batch = 64 }
a = { batch = 32 }

[[axis]]
[axis.choices]
sam = { rho = 0.05 }
sgd = {}

[[change]]
cells = "a/s*m"
set = { rho = 0.2 }

[paper]
"b/sam" = [2.7, 0.1]
"#;

    #[test]
    fn cells_are_the_product_of_the_axes_in_order() {
        let table = Table::parse("x/small.toml", SMALL).unwrap();
        let names: Vec<_> = table.cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names, ["small/b/sam", "small/a/sam", "small/a/sgd"]);
        let recipes: Vec<_> = table.cells.iter().map(|cell| cell.changes.recipe(&Scale::default()).unwrap()).collect();
        let values: Vec<_> = recipes.iter().map(|recipe| (recipe.batch, recipe.rho, recipe.epochs)).collect();
        assert_eq!(values, [(64, 0.05, 3.0), (32, 0.2, 3.0), (32, 0.0, 3.0)]);
        assert_eq!(table.cells[0].paper, Some(Published { mean: 2.7, interval: Some(0.1) }));
        assert_eq!(table.cells_like("a").len(), 2);
        assert_eq!(table.cells_like("small/*/sam").len(), 2);
        assert_eq!(table.cells_like("c").len(), 0);
    }

    #[test]
    fn errors_name_file_and_line() {
        for (from, to, line, words) in [
            ("b = { batch = 64 }", "b = { bach = 64 }", 11, "bach"),
            ("\"a/s*m\"", "\"a/nothing\"", 20, "no cell"),
            ("[\"b/sgd\"]", "[\"z\"]", 4, "no cell"),
            ("\"b/sam\" = [2.7, 0.1]", "\"b/sam\" = []", 24, "one or two numbers"),
            ("\"b/sam\" = [2.7", "\"b/som\" = [2.7", 24, "no cell"),
            ("measure = \"error\"", "measure = \"size\"", 3, "size"),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = Table::parse("x/small.toml", &SMALL.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("x/small.toml, line {line}: ")) && error.contains(words), "{error}");
        }
        let table = Table::parse("x/small.toml", &SMALL.replace("rho = 0.2", "rho = -0.2")).unwrap();
        let error = table.cells[1].changes.recipe(&Scale::default()).unwrap_err().to_string();
        assert!(error.starts_with("x/small.toml, line 21: "), "{error}");
    }

    /// Folders are named after cells.
    #[test]
    fn names_lead_nowhere_else() {
        for bad in ["\"..\"", "\"../../x\"", "\"a/b\"", "\"\"", "\".hidden\"", "\"a\\\\b\""] {
            let text = SMALL.replace("a = { batch = 32 }", &format!("{bad} = {{ batch = 32 }}"));
            let text = text.replace("[[change]]\ncells = \"a/s*m\"\nset = { rho = 0.2 }\n", "");
            let error = Table::parse("x/small.toml", &text).unwrap_err().to_string();
            assert!(error.contains("x/small.toml") && error.contains("cannot be a name"), "{bad}: {error}");
        }
        assert!(Table::parse("x/...toml", SMALL).is_err());
    }

    /// A table without axes is one cell, and its name is the table's.
    #[test]
    fn a_table_may_have_no_axes() {
        let text = |skip: &str| format!("title = \"A\"\nmeasure = \"error\"\naxis = []\n{skip}");
        let table = Table::parse("one.toml", &text("")).unwrap();
        assert_eq!(table.cells.iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>(), ["one"]);
        let error = Table::parse("one.toml", &text("skip = [\"b\"]\n")).unwrap_err().to_string();
        assert!(error.contains("`b` is no cell"), "{error}");
        assert!(Table::parse("one.toml", &text("change = [{ cells = \"x\", set = {} }]\n")).is_err());
    }
}
