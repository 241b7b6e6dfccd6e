//! The tables of this repository, compiled in, and those of custom files.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::table::Table;

/// All tables of this repository.
///
/// # Errors
/// If one is invalid.
pub fn tables() -> Result<Vec<Table>> {
    macro_rules! recipes {
        ($($name:literal)*) => {
            [$(($name, include_str!(concat!("../../recipes/", $name, ".toml")))),*]
        };
    }
    let texts = recipes!(
        "table1" "table2" "table3" "table4" "table4-literature" "table5" "table8" "table9" "rho-grid" "p-norm" "inner-steps"
        "second-order" "m-sharpness" "figure1" "figure3" "chen2022" "cifar-transformers" "gpt" "families"
    );
    let tables = texts.iter().map(|(name, text)| Table::parse(&format!("recipes/{name}.toml"), text));
    tables.collect()
}

/// The table of this name, or that of a custom file.
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
        None => bail!("unknown table `{name}`: expected one of {}, or the path of a TOML file", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::Scale;
    use super::super::table::Published;
    use super::*;

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
