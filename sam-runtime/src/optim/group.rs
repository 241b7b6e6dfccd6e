//! Groups of variables with a learning rate and a weight decay of their own.

use std::collections::HashMap;

use candle_core::{Result, Var};
use candle_nn::VarMap;

use crate::core::identity::storage_of;
use crate::core::names::{Names, describe};

/// Variables with a learning rate and a weight decay of their own, for [`Sgd::with_groups`](super::Sgd::with_groups) and
/// [`AdamW::with_groups`](super::AdamW::with_groups).
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{Init, VarMap};
/// use sam_runtime::optim::{AdamW, ParamGroup, ParamsAdamW};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// for i in 0..4 {
///     vars.get((8, 8), &format!("layers.{i}.weight"), Init::Const(1.), DType::F32, &Device::Cpu)?;
/// }
/// // Layer-wise rates: lower ones nearer to the input.
/// let layer = |i: i32| ParamGroup::named(&vars, |name| name.starts_with(&format!("layers.{i}."))).lr_scale(0.75f64.powi(3 - i));
/// let adamw = AdamW::with_groups((0..4).map(layer), ParamsAdamW::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The variables.
    pub vars: Vec<Var>,
    /// What the optimizer's learning rate is multiplied by for these. 1 by default.
    pub lr_scale: f64,
    /// Their weight decay; `None`, the default: that of the optimizer's parameters.
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// Variables with the optimizer's learning rate and weight decay.
    #[must_use]
    pub fn new(vars: Vec<Var>) -> Self {
        Self { vars, lr_scale: 1.0, weight_decay: None }
    }

    /// The variables of a map whose name is `wanted`, in the order of their names.
    #[must_use]
    pub fn named(vars: &VarMap, wanted: impl Fn(&str) -> bool) -> Self {
        let vars = Names::of(vars).into_vars().into_iter();
        Self::new(vars.filter(|(name, _)| wanted(name)).map(|(_, var)| var).collect())
    }

    /// With this factor of the learning rate.
    #[must_use]
    pub fn lr_scale(self, lr_scale: f64) -> Self {
        Self { lr_scale, ..self }
    }

    /// With this weight decay.
    #[must_use]
    pub fn weight_decay(self, weight_decay: f64) -> Self {
        Self { weight_decay: Some(weight_decay), ..self }
    }
}

/// All variables of a map in two groups: those of two dimensions and more, and the others, norms and biases, without weight
/// decay.
///
/// ```
/// # use candle_core::{DType, Device, Result};
/// # use candle_nn::{VarBuilder, VarMap};
/// use sam_runtime::optim::{AdamW, ParamsAdamW, decay_groups};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let layer = candle_nn::linear(3, 2, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// let adamw = AdamW::with_groups(decay_groups(&vars), ParamsAdamW { weight_decay: 0.1, ..Default::default() })?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn decay_groups(vars: &VarMap) -> Vec<ParamGroup> {
    let vars = Names::of(vars).into_vars().into_values();
    let (matrices, rest) = vars.partition(|var| var.rank() >= 2);
    vec![ParamGroup::new(matrices), ParamGroup::new(rest).weight_decay(0.0)]
}

/// What a group says about its variables.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) lr_scale: f64,
    pub(super) weight_decay: Option<f64>,
}

impl Default for Rates {
    fn default() -> Self {
        Self { lr_scale: 1.0, weight_decay: None }
    }
}

impl Rates {
    pub(super) fn lr(self, lr: f64) -> f64 {
        lr * self.lr_scale
    }

    pub(super) fn weight_decay(self, default: f64) -> f64 {
        self.weight_decay.unwrap_or(default)
    }
}

/// The variables of floating point type in all groups, each once, with what its group says.
pub(super) fn members(groups: impl IntoIterator<Item = ParamGroup>) -> Result<Vec<(Var, Rates)>> {
    let mut members = Vec::new();
    let mut known: HashMap<usize, Rates> = HashMap::new();
    for ParamGroup { vars, lr_scale, weight_decay } in groups {
        check("lr_scale", lr_scale)?;
        check("weight_decay", weight_decay.unwrap_or_default())?;
        let rates = Rates { lr_scale, weight_decay };
        for var in vars.into_iter().filter(|var| var.dtype().is_float()) {
            match known.insert(storage_of(&var), rates) {
                None => members.push((var, rates)),
                Some(before) if before == rates => {}
                Some(_) => candle_core::bail!(
                    "{} is in two groups that differ: expected each variable in one group (a variable with two names, \
                     such as a tied weight, is one)",
                    describe(&var)
                ),
            }
        }
    }
    Ok(members)
}

fn check(what: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    candle_core::bail!("`{what}` of a group is {value}: expected a finite number, 0 or more")
}
