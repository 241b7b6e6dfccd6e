//! The loss around the last weights of each cell (Figure 1).

use anyhow::{Context as _, Result};

use crate::experiments::landscape::{self, Network, digest_of};
use crate::experiments::paper::runs::{Ended, Settings};
use crate::recipe::{Kept, Table};
use crate::trainer::WeightsInfo;
use crate::util::stop::Stop;

/// Measures and draws the loss around the last weights that the first seed of each cell has kept, once all have finished: the files
/// `TABLE-landscape`.png, .html, .md and .jsonl. Returns the table, `None` before that or if the process was told to stop. `tell` is
/// told after each value how many there are.
///
/// # Errors
/// If the data is missing, or a file cannot be read or written.
pub fn landscape(
    table: &Table,
    kept: &Kept,
    settings: &Settings,
    stop: &Stop,
    mut tell: impl FnMut(usize),
) -> Result<Option<String>> {
    let name = format!("{}-landscape", table.name);
    let (mut networks, mut digests, mut set) = (Vec::new(), Vec::new(), None);
    for cell in &table.cells {
        let run = settings.run(cell, 0)?;
        if !matches!(run.ended(), Ok(Some(Ended::Trained(_)))) {
            return Ok(None);
        }
        let path = run.kept_weights().pop().with_context(|| format!("{}: `keep-epochs` names no epoch", cell.name))?.1;
        let (info, model) = WeightsInfo::load(&path, &settings.device)?;
        if set.is_none() {
            let folder = settings.data.as_deref().filter(|folder| run.reads(folder));
            set = Some((info.data_set(&path, folder, &settings.device.device)?, info.model));
        }
        digests.push(digest_of(&path)?);
        let short = cell.name.strip_prefix(&format!("{}/", table.name)).unwrap_or(&cell.name);
        networks.push(Network { name: short.to_owned(), model });
    }
    let Some((data, model)) = set else { return Ok(None) };
    let [train, test] = [data.train.first(kept.images), data.test.first(kept.images)];
    let measured = landscape::Settings { grid: kept.grid, span: 1.0, order: kept.order, rho: kept.rho, seed: 0 };
    let folder = settings.out.join(settings.tag());
    let log = folder.join(format!("{name}.jsonl"));
    let mut log = landscape::open_log(&log, &networks, &digests, &data.name, [&train, &test], &measured, stop)?;
    let all = landscape::count(networks.len(), &measured);
    let found = landscape::measure(&networks, [&train, &test], &measured, &mut log, &mut || tell(all))?;
    let Some(found) = found else { return Ok(None) };
    let title = format!("{model}, {} images of {}", train.len(), data.name);
    landscape::write(&found, &measured, &title, &folder, &name).map(Some)
}
