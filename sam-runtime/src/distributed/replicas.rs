//! Variables that are to be the same on all ranks: copied from rank 0, averaged, compared.

use std::collections::HashSet;
use std::fmt::Write as _;

use candle_core::{Device, Result, Tensor, Var};

use super::action::{Action, Contents};
use super::comm::Comm;
use super::digest::Digest;
use super::mean::contents;
use crate::core::error::Error;
use crate::core::identity::number_of;
use crate::core::names::describe;

impl Comm {
    /// Gives the variables the values that they have on rank 0: at the start, and after a checkpoint was read.
    ///
    /// Here and below, variables go by the order in which they were made, which is that of the program: the list may be in any
    /// order, such as that of `VarMap::all_vars`.
    ///
    /// ```
    /// use candle_core::{DType, Device, Result};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use sam_runtime::distributed::Comm;
    ///
    /// # fn main() -> Result<()> {
    /// # let world = Comm::solo();
    /// let vars = VarMap::new();
    /// let model = candle_nn::linear(4, 3, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    /// world.broadcast_vars(vars.all_vars())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the ranks have other variables; none has changed then.
    pub fn broadcast_vars(&self, vars: impl IntoIterator<Item = Var>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let vars = in_order(vars);
        self.agree(Action::BroadcastVars, contents_of(&vars), 0)?;
        for var in &vars {
            let mut bytes = bytes_of(var)?;
            self.collective().broadcast(&mut bytes)?;
            if self.rank() > 0 {
                var.set(&Tensor::from_raw_buffer(&bytes, var.dtype(), var.dims(), var.device())?)?;
            }
        }
        Ok(())
    }

    /// The bytes that rank 0 has, on all ranks: for the state of an optimizer, a schedule, a [`Sam`](crate::Sam). The bytes of the
    /// other ranks are not used, and may be as many as they like.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result};
    /// # use candle_nn::VarMap;
    /// # use sam_runtime::distributed::Comm;
    /// # use sam_runtime::optim::AdamW;
    /// # fn main() -> Result<()> {
    /// # let (world, vars) = (Comm::solo(), VarMap::new());
    /// # vars.get(3, "w", candle_nn::Init::Const(1.), DType::F32, &Device::Cpu)?;
    /// let mut adamw = AdamW::new_lr(vars.all_vars(), 0.01)?;
    /// let state = world.broadcast_bytes(&adamw.to_bytes(&vars)?)?;
    /// adamw.load_bytes(&vars, &state)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the ranks do not all call it.
    pub fn broadcast_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        if self.size() == 1 {
            return Ok(bytes);
        }
        let lens = self.agree(Action::BroadcastBytes, Contents::default(), bytes.len() as u64)?;
        bytes.resize(lens.first().map_or(0, |len| *len as usize), 0);
        self.collective().broadcast(&mut bytes)?;
        Ok(bytes)
    }

    /// Gives the variables the mean of their values over the ranks: for the running statistics of a batch normalization, of
    /// which each rank has its own, before an evaluation and before a checkpoint.
    ///
    /// # Errors
    /// If the ranks have other variables, or one is not of floats; none has changed then.
    pub fn average(&self, vars: impl IntoIterator<Item = Var>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let vars = in_order(vars);
        if let Some(var) = vars.iter().find(|var| !var.dtype().is_float()) {
            candle_core::bail!("{} cannot be averaged: expected floats", describe(var))
        }
        let values = vars.iter().map(|var| Ok((var.clone(), var.as_detached_tensor())));
        let means = self.mean_of(Action::Average, values.collect::<Result<_>>()?)?;
        means.iter().try_for_each(|(var, mean)| var.set(mean))
    }

    /// An error, on all ranks, unless the variables are bitwise the same on all: it names the first that is not. Every hundred
    /// steps, say: it reads the variables once and sends one number. Leave out what each rank has of its own, such as running
    /// statistics, see [`named`](crate::variants::named).
    ///
    /// # Errors
    /// [`Error::Replicas`], and if the ranks have other variables.
    pub fn check_replicas(&self, vars: impl IntoIterator<Item = Var>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let vars = in_order(vars);
        let digests = vars.iter().map(digest_of).collect::<Result<Vec<_>>>()?;
        let mut all = Digest::default();
        for digest in &digests {
            all.add_word(*digest);
        }
        let found = self.agree(Action::CheckReplicas, contents_of(&vars), all.finish())?;
        if found.iter().all(|digest| *digest == found[0]) {
            return Ok(());
        }
        let found = self.collective().all_gather(&digests)?;
        let of_ranks: Vec<&[u64]> = found.chunks_exact(digests.len().max(1)).collect();
        for (index, var) in vars.iter().enumerate() {
            let values: Vec<u64> = of_ranks.iter().map(|digests| digests[index]).collect();
            if let Some(ranks) = dissent(&values) {
                Err(Error::Replicas { variable: describe(var), ranks })?;
            }
        }
        Ok(())
    }
}

/// Each variable once, in the order in which they were made.
fn in_order(vars: impl IntoIterator<Item = Var>) -> Vec<Var> {
    let mut seen = HashSet::new();
    let mut vars: Vec<Var> = vars.into_iter().filter(|var| seen.insert(var.id())).collect();
    vars.sort_by_key(|var| number_of(var.id()));
    vars
}

fn contents_of(vars: &[Var]) -> Contents {
    contents(&vars.iter().map(Var::as_tensor).collect::<Vec<_>>())
}

fn bytes_of(var: &Var) -> Result<Vec<u8>> {
    Ok(safetensors::View::data(&var.as_detached_tensor().to_device(&Device::Cpu)?).into_owned())
}

fn digest_of(var: &Var) -> Result<u64> {
    let mut digest = Digest::default();
    digest.add(&bytes_of(var)?);
    Ok(digest.finish())
}

/// Which ranks have another value than most, or than rank 0 where there is no majority.
fn dissent(values: &[u64]) -> Option<String> {
    let count = |value: u64| values.iter().filter(|other| **other == value).count();
    let first = *values.first()?;
    let most = values.iter().fold(first, |most, value| if count(*value) > count(most) { *value } else { most });
    let others: Vec<_> = (0..values.len()).filter(|rank| values[*rank] != most).collect();
    let (one, more) = others.split_first()?;
    let mut text = format!("rank {one}");
    for rank in more {
        let _ = write!(text, ", rank {rank}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_right_and_otherwise_rank_0() {
        let text = |values: &[u64]| dissent(values).unwrap_or_default();
        assert_eq!(text(&[1, 1, 1]), "");
        assert_eq!(text(&[1, 2]), "rank 1");
        assert_eq!(text(&[1, 2, 2]), "rank 0");
        assert_eq!(text(&[1, 2, 3]), "rank 1, rank 2");
    }
}
