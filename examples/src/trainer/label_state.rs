//! The labels and images that a noisy-label method trains on.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};

use crate::noisy_labels::MethodState;

/// The labels and images that a method trains on, and its state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LabelState {
    pub(super) labels: Vec<u32>,
    pub(super) kept: Vec<u32>,
    pub(super) selected: Vec<u32>,
    pub(super) state: MethodState,
}

impl LabelState {
    pub(super) fn tensors(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![
            ("labels".to_owned(), to_tensor(&self.labels)?),
            ("kept".to_owned(), to_tensor(&self.kept)?),
            ("selected".to_owned(), to_tensor(&self.selected)?),
            ("each".to_owned(), to_tensor(&self.state.each)?),
            ("few".to_owned(), to_tensor(&self.state.few)?),
        ])
    }

    /// The inverse of [`tensors`](Self::tensors), for a training of so many images of so many classes.
    ///
    /// # Errors
    /// If a tensor is missing or does not fit.
    pub(super) fn from_tensors(mut tensors: BTreeMap<String, Tensor>, images: usize, classes: usize) -> Result<Self> {
        let mut take = |name: &str| match tensors.remove(name) {
            Some(tensor) => Ok(tensor),
            None => bail!("the checkpoint has no `{name}`"),
        };
        let found = Self {
            labels: take("labels")?.to_vec1()?,
            kept: take("kept")?.to_vec1()?,
            selected: take("selected")?.to_vec1()?,
            state: MethodState { each: take("each")?.to_vec1()?, few: take("few")?.to_vec1()? },
        };
        let Self { labels, kept, selected, state } = &found;
        ensure!(labels.len() == images, "the checkpoint has {} labels: expected {images}", labels.len());
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            bail!("the checkpoint has a label {label}: expected 0 to {}", classes - 1)
        }
        for (name, indices) in [("kept", kept), ("selected", selected)] {
            if let Some(index) = indices.iter().find(|index| **index as usize >= images) {
                bail!("`{name}` of the checkpoint names image {index}: expected 0 to {}", images - 1)
            }
        }
        let each = state.each.len();
        ensure!(each == 0 || each == images, "`each` of the checkpoint has {each} numbers: expected {images}");
        Ok(found)
    }
}

/// Numbers as a tensor on the CPU.
fn to_tensor<T: candle_core::WithDType>(numbers: &[T]) -> Result<Tensor> {
    Ok(Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_that_of_its_images() {
        let plan = LabelState {
            labels: vec![3, 1],
            selected: vec![],
            kept: vec![0],
            state: MethodState { each: vec![0.5, 0.25], few: vec![0.1] },
        };
        let load = |change: &dyn Fn(&mut LabelState)| {
            let mut plan = plan.clone();
            change(&mut plan);
            LabelState::from_tensors(plan.tensors().unwrap().into_iter().collect(), 2, 4)
        };
        assert_eq!(load(&|_| ()).unwrap(), plan);
        for (change, words) in [
            (&(|plan: &mut LabelState| plan.labels[0] = 4) as &dyn Fn(&mut LabelState), "label 4: expected 0 to 3"),
            (&|plan| plan.labels.push(0), "3 labels: expected 2"),
            (&|plan| plan.kept.push(2), "`kept` of the checkpoint names image 2: expected 0 to 1"),
            (&|plan| plan.selected.push(u32::MAX), "`selected`"),
            (&|plan| plan.state.each.truncate(1), "`each` of the checkpoint has 1 numbers"),
        ] {
            let error = load(change).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
