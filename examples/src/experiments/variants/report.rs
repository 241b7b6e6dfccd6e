//! The table of a comparison of variants.

use super::list::Variant;
use super::run::Run;
use crate::io::table::align;
use crate::metrics::Mean;

/// The table in Markdown.
#[must_use]
pub fn table(variants: &[Variant], runs: &[Run]) -> String {
    let of = |name: &str| runs.iter().filter(|run| run.variant == name).collect::<Vec<_>>();
    let sam = of("SAM");
    let head = ["variant", "ρ", "passes", "last epoch", "gain", "best epoch", "training error"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for variant in variants {
        let runs = of(variant.name);
        let mean = |value: &dyn Fn(&Run) -> f64| Mean::of(&runs.iter().map(|run| value(run)).collect::<Vec<_>>());
        let gain = Mean::of(&runs.iter().zip(&sam).map(|(run, sam)| sam.last() - run.last()).collect::<Vec<_>>());
        rows.push(vec![
            variant.name.to_owned(),
            runs[0].rho.map_or(String::new(), |rho| format!("{rho}")),
            format!("{:.2}", mean(&|run| run.passes).mean),
            mean(&Run::last).percent(),
            if variant.name == "SAM" || sam.is_empty() { String::new() } else { gain.percent() },
            mean(&Run::best).percent(),
            mean(&|run| run.train_error).percent(),
        ]);
    }
    align(&rows)
}
