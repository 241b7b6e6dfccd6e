//! Tables of runs: a base, axes of choices, and what single cells change.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::fields::Changes;
use super::spans::{Blame, File};
use crate::trainer::Outcome;

/// What numbers of a table are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The share of test images that the last model gets wrong, in %.
    Error,
    /// The share of test images that it gets right, in %.
    Accuracy,
    /// The share of test images whose label is not among its five likeliest, in %.
    #[serde(rename = "top-5-error")]
    Top5Error,
    /// L(w + ε̂) - L(w) in the last epoch of training, on the examples that share a perturbation.
    Sharpness,
}

impl Measure {
    /// The number of a table for what a training came to, if it has it.
    #[must_use]
    pub fn of(self, outcome: &Outcome) -> Option<f64> {
        match self {
            Self::Error => Some(100.0 * outcome.test_error),
            Self::Accuracy => Some(100.0 * (1.0 - outcome.test_error)),
            Self::Top5Error => outcome.top_5_error.map(|error| 100.0 * error),
            Self::Sharpness => outcome.sharpness,
        }
    }

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error in %",
            Self::Accuracy => "accuracy in %",
            Self::Top5Error => "top-5 error in %",
            Self::Sharpness => "L(w + ε̂) - L(w)",
        }
    }
}

/// A table of the paper, or an ablation.
#[derive(Clone, Debug)]
pub struct Table {
    /// The first part of its cells' names.
    pub name: String,
    /// What stands above it.
    pub title: String,
    /// What stands below it.
    pub note: String,
    /// What its numbers are.
    pub measure: Measure,
    /// What stands beside them, if anything.
    pub beside: Option<Measure>,
    /// Its cells, in order.
    pub cells: Vec<Cell>,
}

/// One number of a table: a recipe, to be run with several seeds.
#[derive(Clone, Debug)]
pub struct Cell {
    /// `table1/wrn-28-10/cutout/cifar100/sam`
    pub name: String,
    /// What its recipe says.
    pub changes: Changes,
    /// The paper's number, if it has one.
    pub paper: Option<Published>,
    /// The paper's number of what stands beside.
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
    from: Vec<Blame<String>>,
    #[serde(default)]
    base: Changes,
    axis: Vec<Axis>,
    #[serde(default)]
    change: Vec<Change>,
    #[serde(default)]
    skip: Vec<Blame<String>>,
    #[serde(default)]
    paper: IndexMap<Spanned<String>, Vec<f64>>,
    #[serde(default)]
    paper_beside: IndexMap<Spanned<String>, Vec<f64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    choices: IndexMap<String, Changes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    cells: Blame<String>,
    set: Changes,
}

impl Table {
    /// Reads a table from the text of a file of this name; the table is named after the file.
    ///
    /// # Errors
    /// If anything in it is not as it should be; the error names file and line.
    pub fn parse(file_name: &str, text: &str) -> Result<Self> {
        let file = Arc::new(File { name: file_name.to_owned(), text: text.to_owned() });
        let document: Document = file.parse()?;
        let stem = file_name.rsplit(['/', '\\']).next().unwrap_or(file_name).trim_end_matches(".toml");
        let mut base = document.base.said_in(&file);
        let bases = bases()?;
        for from in document.from.iter().rev() {
            let Some(changes) = bases.get(&from.value) else {
                let known = bases.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(from.said_in(&file).wrong(format!("`{}` is no base: expected {known}", from.value)));
            };
            base = base.or(changes);
        }

        check_name(stem).map_err(|error| file.wrong(None, error))?;
        let mut cells = vec![(String::new(), base)];
        for axis in document.axis {
            for (name, _) in &axis.choices {
                check_name(name).map_err(|error| file.wrong(None, error))?;
            }
            let choices: Vec<_> =
                axis.choices.into_iter().map(|(name, changes)| (name, changes.said_in(&file))).collect();
            let longer = |(path, changes): &(String, Changes)| -> Vec<(String, Changes)> {
                choices.iter().map(|(name, choice)| (format!("{path}/{name}"), choice.or(changes))).collect()
            };
            cells = cells.iter().flat_map(longer).collect();
        }
        for Change { cells: pattern, set } in document.change {
            let set = set.said_in(&file);
            let mut count = 0;
            for (_, changes) in cells.iter_mut().filter(|(path, _)| matches(&pattern.value, within_table(path))) {
                *changes = set.or(changes);
                count += 1;
            }
            if count == 0 {
                return Err(pattern.said_in(&file).wrong(format!("`{}` is no cell of this table", pattern.value)));
            }
        }
        for pattern in document.skip {
            let before = cells.len();
            cells.retain(|(path, _)| !matches(&pattern.value, within_table(path)));
            if cells.len() == before {
                return Err(pattern.said_in(&file).wrong(format!("`{}` is no cell of this table", pattern.value)));
            }
        }
        let mut table = Self {
            name: stem.to_owned(),
            title: document.title,
            note: document.note,
            measure: document.measure,
            beside: document.beside,
            cells: cells
                .into_iter()
                .map(|(path, changes)| Cell { name: format!("{stem}{path}"), changes, paper: None, paper_beside: None })
                .collect(),
        };
        for (path, numbers) in document.paper {
            let (cell, published) = table.published(&file, &path, &numbers)?;
            cell.paper = Some(published);
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
        let wrong = |what: &str| file.wrong(Some(&path.span()), format!("`{}` {what}", path.get_ref()));
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

    /// The same with those of its cells alone that fit one of these patterns; with all, if there are none.
    ///
    /// # Errors
    /// If a pattern fits no cell.
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

/// A cell's name without its table's.
fn within_table(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

/// Checks that the name of a table or a choice can be that of a folder, and of none but its own.
fn check_name(name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || "._-+=@".contains(c);
    ensure!(
        (1..=100).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_allowed),
        "`{name}` cannot be a name, since folders are named so: expected letters, digits and any of `._-+=@`, and no dot at \
         the beginning"
    );
    Ok(())
}

/// Whether a path fits a pattern of as many segments, in which `*` stands for any characters within a segment.
fn matches(pattern: &str, path: &str) -> bool {
    pattern.split('/').count() == path.split('/').count() && begins(pattern, path)
}

/// Whether the first segments of a path fit a pattern.
fn begins(pattern: &str, path: &str) -> bool {
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

/// What several tables have in common.
fn bases() -> Result<IndexMap<String, Changes>> {
    let (name, text) = ("recipes/bases.toml", include_str!("../../recipes/bases.toml"));
    let file = Arc::new(File { name: name.to_owned(), text: text.to_owned() });
    let bases: IndexMap<String, Changes> = file.parse()?;
    Ok(bases.into_iter().map(|(name, changes)| (name, changes.said_in(&file))).collect())
}

/// Every table of the paper that there is a recipe for.
///
/// # Errors
/// If one is not as it should be.
pub fn tables() -> Result<Vec<Table>> {
    macro_rules! recipes {
        ($($name:literal)*) => {
            [$(($name, include_str!(concat!("../../recipes/", $name, ".toml")))),*]
        };
    }
    let texts = recipes!(
        "table1" "table2" "table3" "table4" "table4-literature" "table5" "table8" "table9" "rho-grid" "p-norm" "inner-steps"
        "second-order" "m-sharpness" "figure3"
    );
    let tables = texts.iter().map(|(name, text)| Table::parse(&format!("recipes/{name}.toml"), text));
    tables.collect()
}

/// The table of this name, or that in a file of the user's own.
///
/// # Errors
/// If there is none.
pub fn table(name: &str) -> Result<Table> {
    if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
        return Table::parse(name, &std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?);
    }
    let tables = tables()?;
    let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
    match tables.into_iter().find(|known| known.name == name) {
        Some(found) => Ok(found),
        None => bail!("`{name}` is no table: expected one of {}, or a file of your own", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Scale;

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

    /// Every cell of every table has a recipe that could be run.
    #[test]
    fn every_table_is_sound() {
        let tables = tables().unwrap();
        let mut names: Vec<_> = tables.iter().flat_map(|table| &table.cells).map(|cell| &cell.name).collect();
        for cell in tables.iter().flat_map(|table| &table.cells) {
            cell.changes.recipe(&Scale::default()).unwrap();
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count > 200, "{count}");
    }

    /// Table 6 of the paper: epochs with SAM, lr, weight decay, ρ for CIFAR-10 and for CIFAR-100.
    const TABLE_6: &str = "
        wrn-28-10            | 200  | 0.1  | 5e-4 | 0.05 | 0.1
        wrn-28-10-1800       | 1800 | 0.05 | 1e-3 | 0.05 | 0.1
        shake-shake          | 1800 | 0.02 | 1e-3 | 0.02 | 0.05
        pyramidnet           | 1800 | 0.05 | 5e-4 | 0.05 | 0.2
        pyramidnet-shakedrop | 1800 | 0.02 | 5e-4 | 0.05 | -
        pyramidnet-shakedrop | 1800 | 0.05 | 5e-4 | -    | 0.05";

    /// Table 7: epochs (on SVHN not the paper's), lr, weight decay, ρ.
    const TABLE_7: &str = "
        wrn-28-10/*/svhn            | 200  | 0.01 | 5e-4 | 0.01
        shake-shake/*/svhn          | 1800 | 0.01 | 5e-4 | 0.01
        wrn-28-10/*/fashion-mnist   | 200  | 0.1  | 5e-4 | 0.05
        shake-shake/*/fashion-mnist | 1800 | 0.1  | 5e-4 | 0.02";

    /// A line's name and numbers, NaN for none.
    fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, Vec<f64>)> {
        table.trim().lines().map(|line| {
            let mut words = line.split('|').map(str::trim);
            (words.next().unwrap(), words.map(|word| word.parse().unwrap_or(f64::NAN)).collect())
        })
    }

    #[track_caller]
    fn has(cell: &str, expected: [f64; 4]) {
        let table = table(cell.split('/').next().unwrap()).unwrap().only(&[cell.to_owned()]).unwrap();
        let recipe = table.cells[0].changes.recipe(&Scale::default()).unwrap();
        let found = [recipe.epochs * recipe.stretch, recipe.lr, recipe.weight_decay, recipe.rho];
        assert_eq!(found, expected, "{cell}");
        assert_eq!((recipe.batch, recipe.m, recipe.momentum), (256, 32, 0.9), "{cell}");
    }

    /// Those that the paper gives: in Table 2 all but two that it prints as "< 0.0", in Table 9 none.
    #[test]
    fn published_numbers_have_their_intervals() {
        let without = |name: &str| -> Vec<String> {
            let cells = table(name).unwrap().cells;
            let published = cells.iter().flat_map(|cell| [(cell, cell.paper), (cell, cell.paper_beside)]);
            published
                .filter(|(_, number)| number.is_some_and(|number| number.interval.is_none()))
                .map(|(cell, _)| cell.name.clone())
                .collect()
        };
        assert_eq!(without("table2"), ["table2/resnet152/100/sgd", "table2/resnet152/400/sgd"]);
        assert!(without("table5").is_empty() && without("table1").is_empty());
        let of_rho: Vec<_> = ["aircraft", "flowers", "pets", "cars", "cifar100", "food101"]
            .map(|set| format!("table3/{set}/sam"))
            .into();
        assert_eq!(without("table3"), [of_rho, vec!["table3/imagenet/sgd".to_owned()]].concat());
        assert_eq!(without("table9").len(), 60);
        let of = |name: &str, cell: &str| {
            let table = table(name).unwrap().only(&[cell.to_owned()]).unwrap();
            let cell = &table.cells[0];
            (cell.paper.unwrap(), cell.paper_beside, cell.changes.recipe(&Scale::default()).unwrap().rho)
        };
        let (top_1, top_5, _) = of("table2", "resnet50/200/sam");
        assert_eq!(top_1, Published { mean: 21.4, interval: Some(0.1) });
        assert_eq!(top_5, Some(Published { mean: 5.82, interval: Some(0.03) }));
        for (cell, mean) in [
            ("shake-shake/basic/cifar10/sam", 2.4),
            ("shake-shake/aa/cifar10/sam", 1.7),
            ("pyramidnet/basic/cifar10/sam", 2.1),
            ("pyramidnet/cutout/cifar100/sam", 13.1),
            ("wrn-28-10/basic/cifar100/sam", 16.5),
        ] {
            let (number, _, rho) = of("table9", cell);
            assert_eq!((number.mean, rho), (mean, 0.05), "{cell}");
        }
    }

    #[test]
    fn figure_3_keeps_the_weights_of_its_epochs() {
        let keeps = |scale: &str| {
            let recipe = table("figure3").unwrap().cells[0].changes.recipe(&scale.parse().unwrap()).unwrap();
            (recipe.epochs, recipe.keep_epochs)
        };
        assert_eq!(keeps("1"), (300.0, vec![1.0, 50.0, 300.0]));
        assert_eq!(keeps("epochs=0.5"), (150.0, vec![0.5, 25.0, 150.0]));
    }

    #[test]
    fn cells_have_the_papers_constants() {
        let mut seen = 0;
        for (model, numbers) in lines(TABLE_6) {
            let [epochs, lr, decay, rho_10, rho_100] = numbers[..] else { panic!("{model} has {numbers:?}") };
            for (set, rho) in [("cifar10", rho_10), ("cifar100", rho_100)].into_iter().filter(|(_, rho)| !rho.is_nan())
            {
                for augmentation in ["basic", "cutout", "aa"] {
                    let cell = format!("table1/{model}/{augmentation}/{set}");
                    has(&format!("{cell}/sam"), [epochs, lr, decay, rho]);
                    has(&format!("{cell}/sgd"), [epochs, lr, decay, 0.0]);
                    has(&format!("{cell}/sgd-2x"), [2.0 * epochs, lr, decay, 0.0]);
                    seen += 3;
                }
            }
        }
        assert_eq!(seen, table("table1").unwrap().cells.len());
        for (cells, numbers) in lines(TABLE_7) {
            let [epochs, lr, decay, rho] = numbers[..] else { panic!("{cells} has {numbers:?}") };
            for augmentation in ["basic", "aa"] {
                let cell = cells.replace('*', augmentation);
                has(&format!("table5/{cell}/sam"), [epochs, lr, decay, rho]);
                has(&format!("table5/{cell}/sgd"), [epochs, lr, decay, 0.0]);
            }
        }
    }
}
