//! A training on several ranks: what they share, and what each has of its own.
//!
//! Each rank takes its part of every batch, with a perturbation of its own (m-sharpness), and its part of every test. Weights,
//! optimizer and progress are the same on all ranks; running statistics and what a variant of SAM remembers are a rank's own.
//! Rank 0 writes the files.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{Device, Tensor};
use candle_nn::VarMap;
use sam_runtime::Sam;
use sam_runtime::distributed::Comm;
use serde_json::{Value, json};

use super::checkpoint::{Checkpoint, bytes_tensor};
use super::ema::Average;
use super::recipe_diff::difference;
use crate::models::params::{Statistic, is_statistic, keeping_statistics, statistics};
use crate::noisy_labels::NoisyLabelMethod;
use crate::recipe::Recipe;

/// Checks that a recipe can be trained on these ranks.
pub(super) fn check(recipe: &Recipe, batch: usize, world: &Comm) -> Result<()> {
    let ranks = world.size();
    let each = share("`batch`", batch, world)?;
    if ranks == 1 {
        return Ok(());
    }
    ensure!(
        recipe.m == 0 || recipe.m >= batch || each.is_multiple_of(recipe.m),
        "each of {ranks} ranks has {each} images of a batch, and `m` is {}: expected shards of equal size; set `m` to a divisor of \
         {each}, or start another number of processes",
        recipe.m
    );
    match recipe.method {
        NoisyLabelMethod::Plain | NoisyLabelMethod::Gce | NoisyLabelMethod::Mixup => Ok(()),
        method => bail!(
            "`method` is {}, which keeps what it has found of each image in one process: start it without mpirun",
            serde_json::to_string(&method)?.replace('"', "")
        ),
    }
}

/// How many images of a batch each rank has.
///
/// # Errors
/// If they cannot all have as many; the message calls the number of the batch by this name.
pub fn share(name: &str, batch: usize, world: &Comm) -> Result<usize> {
    let ranks = world.size();
    ensure!(
        batch.is_multiple_of(ranks),
        "a batch has {batch} images, for {ranks} ranks: expected as many for each; set {name} to a multiple of {ranks}, or start \
         another number of processes"
    );
    Ok(batch / ranks)
}

/// Checks that all ranks train the same: the same recipe, seed and data.
pub(super) fn check_same(words: &str, world: &Comm) -> Result<()> {
    let of_rank_0 = String::from_utf8(world.broadcast_bytes(words.as_bytes())?)?;
    let difference = difference(&of_rank_0, words);
    ensure!(
        difference.is_none(),
        "rank {} has another training than rank 0: start all with the same options and data; {}",
        world.rank(),
        difference.unwrap_or_default()
    );
    Ok(())
}

/// The mean over the ranks that have a number.
pub(super) fn mean_of_some(number: Option<f64>, world: &Comm) -> Result<Option<f64>> {
    if world.size() == 1 {
        return Ok(number);
    }
    let share = world.mean(number.map_or(0.0, |_| 1.0))?;
    let mean = world.mean(number.unwrap_or(0.0))?;
    Ok((share > 0.0).then(|| mean / share))
}

/// Runs `f` with the mean of the ranks' running statistics; afterwards each rank has its own again.
///
/// # Errors
/// Those of `f`, and of the communication.
pub fn with_mean_statistics<R>(vars: &VarMap, world: &Comm, f: impl FnOnce() -> Result<R>) -> Result<R> {
    if world.size() == 1 {
        return f();
    }
    keeping_statistics(vars, || {
        world.average(statistics(vars)?.into_iter().map(|statistic| statistic.var))?;
        f()
    })
}

const RANK: &str = "rank/";
const STATISTIC: &str = "statistic/";
const AVERAGE: &str = "average/";
const SAM: &str = "sam";

/// The line of the log with the images a second that this session has trained on each rank, and the seconds that each has
/// waited for the others.
pub(super) fn pace(step: usize, throughput: f64, world: &Comm) -> Result<Value> {
    let own = json!({ "images per second": throughput, "seconds waited": world.waited().as_secs_f64() });
    let ranks = world.gather_bytes(own.to_string().as_bytes())?;
    let ranks = ranks.iter().map(|bytes| serde_json::from_slice::<Value>(bytes)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "step": step, "ranks": ranks }))
}

/// Adds to a checkpoint what each rank has of its own, and in place of rank 0's statistics the mean of all ranks.
pub(super) fn put_own_state(
    checkpoint: &mut Checkpoint,
    vars: &VarMap,
    average: Option<&Average>,
    sam: &Sam,
    world: &Comm,
) -> Result<()> {
    if world.size() == 1 {
        return Ok(());
    }
    let mut own = BTreeMap::new();
    for (name, value) in values_of_statistics(vars)? {
        own.insert(format!("{STATISTIC}{name}"), value.to_device(&Device::Cpu)?);
    }
    let averages = average.map_or(Ok(Vec::new()), Average::tensors)?;
    for (name, value) in averages.into_iter().filter(|(name, _)| is_statistic(name)) {
        own.insert(format!("{AVERAGE}{name}"), value.to_device(&Device::Cpu)?);
    }
    own.insert(SAM.to_owned(), bytes_tensor(sam.to_bytes(vars)?)?);
    let all = world.gather_bytes(&safetensors::serialize(&own, None::<HashMap<_, _>>)?)?;
    for (rank, own) in all.into_iter().enumerate() {
        checkpoint.put(RANK, [(format!("{rank:05}"), bytes_tensor(own)?)]);
    }

    checkpoint.put("weight/", with_mean_statistics(vars, world, || values_of_statistics(vars))?);
    if let Some(average) = average {
        let means = average.during(|| with_mean_statistics(vars, world, || values_of_statistics(vars)))?;
        checkpoint.put(AVERAGE, means);
    }
    Ok(())
}

fn values_of_statistics(vars: &VarMap) -> Result<Vec<(String, Tensor)>> {
    Ok(statistics(vars)?.into_iter().map(|Statistic { name, value, .. }| (name, value)).collect())
}

/// Puts what this rank had of its own into a checkpoint in place of what all ranks share, so that it is restored. With another
/// number of ranks the shared state stays: means of running statistics, and the state of SAM.
///
/// # Errors
/// If the number of ranks has changed, and each SAM remembers something else, of its own part of the batches.
pub(super) fn take_own_state(checkpoint: &mut Checkpoint, world: &Comm) -> Result<()> {
    let all = checkpoint.take(RANK);
    let load = |(rank, own): (&String, &Tensor)| {
        let own = candle_core::safetensors::load_buffer(&own.to_vec1::<u8>()?, &Device::Cpu);
        own.with_context(|| format!("the state of rank {rank}"))
    };
    let mut all = all.iter().map(load).collect::<Result<Vec<_>>>()?;
    let (before, ranks) = (all.len().max(1), world.size());
    if before != ranks {
        let memories = all.iter().map(|own| Ok(own.get(SAM).map(Tensor::to_vec1::<u8>).transpose()?));
        let memories = memories.collect::<Result<Vec<_>>>()?;
        ensure!(
            memories.windows(2).all(|pair| pair[0] == pair[1]),
            "the checkpoint is of {before} ranks, and there are {ranks}: this variant of SAM remembers something else on each; resume \
             with {before}, or start again"
        );
        return Ok(());
    }
    if all.is_empty() {
        return Ok(());
    }
    for (name, value) in all.swap_remove(world.rank()) {
        let name = name.strip_prefix(STATISTIC).map_or(name.clone(), |name| format!("weight/{name}"));
        checkpoint.tensors.insert(name, value);
    }
    Ok(())
}
