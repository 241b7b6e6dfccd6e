//! Variables, each with a tensor: gradients, and what is remembered of them.

use std::collections::{HashMap, HashSet};

use candle_core::{Result, Tensor, TensorId, Var};

/// The variables that a loss depends on, each with its gradient: in the order of the graph, which is that of the
/// loss's own operations and not that in which a map returns its variables; tied ones once.
pub(crate) type Gradient = Vec<(Var, Tensor)>;

/// A tensor for some variables, in an order.
#[derive(Clone, Debug, Default)]
pub(crate) struct VarTensors {
    pairs: Gradient,
    indices: HashMap<TensorId, usize>,
}

impl VarTensors {
    pub(crate) fn new(pairs: Gradient) -> Self {
        let indices = pairs.iter().enumerate().map(|(index, (var, _))| (var.id(), index)).collect();
        Self { pairs, indices }
    }

    pub(crate) fn get(&self, var: &Var) -> Option<&Tensor> {
        self.indices.get(&var.id()).map(|index| &self.pairs[*index].1)
    }

    /// This, with other tensors for these variables.
    pub(crate) fn with(&self, newer: Gradient) -> Self {
        let mut all = self.clone();
        for (var, value) in newer {
            if let Some(index) = all.indices.get(&var.id()) {
                all.pairs[*index].1 = value;
            } else {
                all.indices.insert(var.id(), all.pairs.len());
                all.pairs.push((var, value));
            }
        }
        all
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Var, Tensor)> {
        self.pairs.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What of this is finite, and in place of the rest what was there before, or zeros. Asks no device to answer.
    pub(crate) fn finite_or(self, before: &Self) -> Result<Self> {
        let choose = |(var, value): (Var, Tensor)| {
            if value.elem_count() == 0 {
                return Ok((var, value));
            }
            // 0 for finite numbers, and NaN for the others.
            let flag = (&value * 0.0)?.sum_all()?.broadcast_as(value.shape())?;
            let old = before.get(&var).map_or_else(|| value.zeros_like(), |old| old.to_dtype(value.dtype()))?;
            Ok((var, flag.eq(&flag)?.where_cond(&value, &old)?))
        };
        self.pairs.into_iter().map(choose).collect::<Result<_>>().map(Self::new)
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        self.pairs.iter().all(|(_, value)| value.device().is_cpu())
    }
}

/// Variables, each once, in the order in which they were listed first.
#[derive(Clone, Debug, Default)]
pub(crate) struct VarSet {
    vars: Vec<Var>,
    ids: HashSet<TensorId>,
}

impl VarSet {
    pub(crate) fn contains(&self, var: &Var) -> bool {
        self.ids.contains(&var.id())
    }

    pub(crate) fn as_slice(&self) -> &[Var] {
        &self.vars
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }
}

impl FromIterator<Var> for VarSet {
    fn from_iter<I: IntoIterator<Item = Var>>(listed: I) -> Self {
        let mut ids = HashSet::new();
        let vars = listed.into_iter().filter(|var| ids.insert(var.id())).collect();
        Self { vars, ids }
    }
}
