//! The variables of a model: parameters, which are trained, and the running statistics of batch normalizations.

use candle_core::{Result, Tensor, Var};
use candle_nn::VarMap;

/// Whether a variable of this name is a running statistic of a batch normalization, and not trained.
#[must_use]
pub fn is_statistic(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// The variables of a map, sorted by name: the order of the map itself changes from process to process.
#[must_use]
pub fn named(vars: &VarMap) -> Vec<(String, Var)> {
    let vars = vars.data().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut named: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

/// The parameters, sorted by name.
#[must_use]
pub fn trained(vars: &VarMap) -> Vec<(String, Var)> {
    named(vars).into_iter().filter(|(name, _)| !is_statistic(name)).collect()
}

/// The same without the names.
#[must_use]
pub fn trained_vars(vars: &VarMap) -> Vec<Var> {
    trained(vars).into_iter().map(|(_, var)| var).collect()
}

/// A running statistic, and a copy of its value.
#[derive(Clone, Debug)]
pub struct Statistic {
    /// Its name in the model.
    pub name: String,
    /// The variable.
    pub var: Var,
    /// What it was when it was copied.
    pub value: Tensor,
}

/// The running statistics, sorted by name.
///
/// # Errors
/// Those of candle.
pub fn statistics(vars: &VarMap) -> Result<Vec<Statistic>> {
    let statistics = named(vars).into_iter().filter(|(name, _)| is_statistic(name));
    statistics.map(|(name, var)| Ok(Statistic { name, value: var.as_detached_tensor().copy()?, var })).collect()
}

/// The number of parameters, each element counted.
#[must_use]
pub fn parameter_count(vars: &VarMap) -> usize {
    trained(vars).iter().map(|(_, var)| var.elem_count()).sum()
}

/// Runs `f` and restores the running statistics afterwards.
///
/// # Errors
/// Those of `f`, and of candle.
pub fn keeping_statistics<R>(vars: &VarMap, f: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<R> {
    let before = statistics(vars)?;
    let result = f();
    for Statistic { var, value, .. } in before {
        var.set(&value)?;
    }
    result
}
