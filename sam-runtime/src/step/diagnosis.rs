//! Which variables of a model a loss reaches.

use std::collections::HashSet;
use std::fmt;

use candle_core::Var;
use candle_nn::VarMap;

use crate::autograd::gradient::{check_loss, gradient};
use crate::core::names::Names;
use crate::core::pass::{Pass, plain};
use crate::sam::Sam;
use crate::step::output::LossOutput;

/// Which variables of a model get a gradient, by name, in alphabetical order. See [`Sam::diagnose`].
///
/// Its `Display` is a report to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// Those that get one: they are trained and perturbed.
    pub with_gradient: Vec<String>,
    /// Those that get none. Running statistics are here, and whatever the loss does not use.
    pub without_gradient: Vec<String>,
    /// How many variables the loss reaches that are not in the map: they are perturbed too, unless `vars` says otherwise.
    pub unknown: usize,
}

impl Sam {
    /// Runs a loss once, without a perturbation, takes its gradient, and says which variables of the map get one.
    ///
    /// For a loss that falls slowly while some weights never move: an operation without a backward pass cuts candle's graph
    /// silently, and everything below it is neither trained nor perturbed. The layers of [`nn`](crate::nn) have
    /// a backward pass, all of them. The run is one forward and backward pass as [`plain`] makes it: batch normalization in training mode
    /// moves its running statistics.
    ///
    /// # Errors
    /// Those of the loss and of its backward pass, and if the loss is not one finite number.
    ///
    /// ```
    /// use candle_core::{DType, Device, Result, Tensor};
    /// use candle_nn::{Module, VarBuilder, VarMap};
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// let (vars, x) = (VarMap::new(), Tensor::randn(0f32, 1., (4, 8), &Device::Cpu)?);
    /// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    /// let (below, head) = (candle_nn::linear(8, 8, vb.pp("below"))?, candle_nn::linear(8, 2, vb.pp("head"))?);
    ///
    /// let norm = candle_nn::layer_norm(8, 1e-5, vb.pp("norm"))?; // has no backward pass
    /// let loss = || -> Result<Tensor> { head.forward(&norm.forward(&below.forward(&x)?)?)?.sqr()?.mean_all() };
    /// let diagnosis = Sam::diagnose(&vars, loss)?;
    /// assert_eq!(diagnosis.with_gradient, ["head.bias", "head.weight"]);
    /// assert_eq!(diagnosis.without_gradient, ["below.bias", "below.weight", "norm.bias", "norm.weight"]);
    /// println!("{diagnosis}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn diagnose<O, E>(vars: &VarMap, loss: impl FnOnce() -> Result<O, E>) -> Result<Diagnosis, E>
    where
        O: LossOutput,
        E: From<candle_core::Error>,
    {
        let vars = Names::of(vars).into_vars();
        let output = plain(loss)?;
        check_loss(output.loss(), Pass::Plain)?;
        let reached: HashSet<_> = gradient(output.loss())?.iter().map(|(var, _)| var.id()).collect();
        let known: HashSet<_> = vars.values().map(|var| var.id()).collect();
        let (with, without): (Vec<_>, Vec<_>) = vars.into_iter().partition(|(_, var)| reached.contains(&var.id()));
        let names = |vars: Vec<(String, Var)>| vars.into_iter().map(|(name, _)| name).collect();
        Ok(Diagnosis {
            with_gradient: names(with),
            without_gradient: names(without),
            unknown: reached.difference(&known).count(),
        })
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (with, without) = (self.with_gradient.len(), self.without_gradient.len());
        write!(f, "{with} of {} variables get a gradient", with + without)?;
        if self.unknown > 0 {
            write!(f, ", and {} that the map does not have", self.unknown)?;
        }
        if without > 0 {
            write!(
                f,
                "\nthese get none: running statistics need none; others lie below an operation without a backward pass \
                 (candle_nn's LayerNorm, RmsNorm, softmax_last_dim, rope and sdpa; `sam_runtime::nn` has them with one), \
                 were detached, or are not used by the loss:"
            )?;
        }
        self.without_gradient.iter().try_for_each(|name| write!(f, "\n  {name}"))
    }
}
