//! Stochastic gradient descent with momentum, as the paper trains.

use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};

use super::gradients::{gradient_of, ready};
use super::group::{ParamGroup, Rates, members};
use super::momentum::MomentumBuffers;
use super::state_file::{self, Contents, Kind, Owners, StateFile, checked};
use crate::core::dtype::wide;
use crate::core::identity::storage_of;
use crate::core::names::Names;
use crate::core::overlap::note_moved;
use crate::kernels::{self, Move, SgdStep};

const FILE: Kind = Kind { label: "sam-runtime sgd velocities", what: "the velocities of an `Sgd`", version: 1 };

/// The constants of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamsSgd {
    /// The learning rate.
    pub lr: f64,
    /// μ, the share of the velocity that each step keeps.
    pub momentum: f64,
    /// Whether the step looks ahead along the velocity (Sutskever et al. 2013, as PyTorch writes it).
    pub nesterov: bool,
    /// λ of the L2 penalty ½λ‖w‖², coupled: λw is added to the gradient.
    pub weight_decay: f64,
}

impl Default for ParamsSgd {
    /// The paper's constants for CIFAR: learning rate 0.1, Nesterov momentum 0.9, weight decay 5e-4.
    fn default() -> Self {
        Self { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 5e-4 }
    }
}

/// Stochastic gradient descent with momentum, Nesterov's or the classical one, and coupled weight decay.
///
/// ```text
/// g ← ∇L + λ w
/// v ← μ v + g
/// w ← w - lr (g + μ v)        Nesterov
/// w ← w - lr v                classical
/// ```
///
/// as in PyTorch's `SGD` without dampening. Variables without a gradient stay as they are. On the CPU, w, v and the gradient
/// are read once and w and v written once; on CUDA one launch does this for all variables. Variables in half precision (f16,
/// bf16) have their velocity in f32.
///
/// A variable that is listed several times, as [`VarMap::all_vars`] lists one that has two names (tied weights), is one
/// variable: it moves once in a step, and has one velocity. Variables that are not of a floating point type are ignored.
///
/// [`step`](Optimizer::step) and `backward_step` compare the shape, type and device of every gradient with those of its
/// variable before any variable moves; on an error all is as before. They do not look for NaN and infinities, as PyTorch's do
/// not: a sharpness-aware loss has checked its gradient (on the CPU), one that you take otherwise is yours to check.
///
/// Variables in f16 or bf16 are rounded after each step. A step of less than half the distance to the next number, in bf16
/// 1/512 of the weight, leaves it where it is: train weights in f32, and convert them with `to_dtype` in the forward pass.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use candle_nn::Optimizer;
/// use sam_runtime::optim::{ParamsSgd, Sgd};
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, -2.], &Device::Cpu)?;
/// let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd { lr: 0.05, ..Default::default() })?;
/// for _ in 0..200 {
///     sgd.backward_step(&w.sqr()?.sum_all()?)?;
/// }
/// assert!(w.sqr()?.sum_all()?.to_scalar::<f64>()? < 1e-8);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sgd {
    vars: Vec<Moving>,
    params: ParamsSgd,
    shown: MomentumBuffers,
}

/// A variable and its velocity, which it has from its first step on.
#[derive(Debug)]
struct Moving {
    var: Var,
    rates: Rates,
    velocity: Option<Tensor>,
}

impl Optimizer for Sgd {
    type Config = ParamsSgd;

    fn new(vars: Vec<Var>, params: ParamsSgd) -> Result<Self> {
        Self::with_groups([ParamGroup::new(vars)], params)
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.advance(|var| grads.get(var))
    }

    /// The backward pass and [`step`](Self::step). Gradients of this crate's layers, and of SAM's loss, are not copied.
    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        let gradient = gradient_of(loss)?;
        self.advance(|var| gradient.get(&var.id()))
    }

    fn learning_rate(&self) -> f64 {
        self.params.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.params.lr = lr;
    }
}

impl Sgd {
    /// With groups of variables that have a learning rate or a weight decay of their own.
    ///
    /// # Errors
    /// If a variable is in two groups that differ, or a group's numbers are negative or not finite.
    pub fn with_groups(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsSgd) -> Result<Self> {
        let vars = members(groups)?.into_iter().map(|(var, rates)| Moving { var, rates, velocity: None });
        Ok(Self { vars: vars.collect(), params, shown: MomentumBuffers::default() })
    }

    /// Adds a variable, with the learning rate and weight decay of [`ParamsSgd`]. One that is there already stays as it is.
    pub(crate) fn push(&mut self, var: &Var) {
        let storage = storage_of(var);
        if var.dtype().is_float() && self.vars.iter().all(|moving| storage_of(&moving.var) != storage) {
            self.vars.push(Moving { var: var.clone(), rates: Rates::default(), velocity: None });
        }
    }

    /// The variables.
    pub(crate) fn into_vars(self) -> Vec<Var> {
        self.vars.into_iter().map(|moving| moving.var).collect()
    }

    fn advance<'a>(&mut self, grad: impl Fn(&Var) -> Option<&'a Tensor>) -> Result<()> {
        let vars: Vec<_> = self.vars.iter().map(|moving| &moving.var).collect();
        let grads = ready(&vars, self.vars.iter().filter_map(|moving| moving.velocity.as_ref()), grad)?;
        let mut steps = Vec::with_capacity(grads.len());
        for (i, grad) in grads {
            let Moving { var, velocity, .. } = &self.vars[i];
            let velocity = match velocity {
                None if self.params.momentum != 0.0 => {
                    Some(Tensor::zeros(var.shape(), wide(var.dtype()), var.device())?)
                }
                velocity => velocity.clone(),
            };
            steps.push((i, grad, velocity));
        }
        let ParamsSgd { lr, momentum, nesterov, weight_decay } = self.params;
        let moves: Vec<_> = steps
            .iter()
            .map(|(i, grad, velocity)| {
                let Moving { var, rates, .. } = &self.vars[*i];
                let (lr, weight_decay) = (rates.lr(lr), rates.weight_decay(weight_decay));
                let step = SgdStep { lr, momentum, nesterov, weight_decay };
                Move { step, var, grad: grad.clone(), velocity: velocity.as_ref() }
            })
            .collect();
        kernels::sgd(&moves)?;
        note_moved(moves.iter().map(|step| step.var));

        let mut new = false;
        for (i, _, velocity) in steps {
            new |= self.vars[i].velocity.is_none() && velocity.is_some();
            self.vars[i].velocity = velocity;
        }
        if new {
            self.show_velocities();
        }
        Ok(())
    }

    /// Writes the velocities to a safetensors file, under the names that their variables have in `names`. One with several
    /// names is saved under the first in alphabetical order, and can be loaded under any. The file is replaced
    /// [atomically](crate::write_atomically), and the same velocities give the same bytes.
    ///
    /// # Errors
    /// If a variable has no name, or the file cannot be written.
    pub fn save(&self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::write(path.as_ref(), &self.to_bytes(names)?)
    }

    /// What [`save`](Self::save) writes, for a checkpoint that holds more than this.
    ///
    /// # Errors
    /// If a variable has no name.
    pub fn to_bytes(&self, names: &VarMap) -> Result<Vec<u8>> {
        let names = Names::of(names);
        let mut file = StateFile::new(&FILE);
        for Moving { var, velocity, .. } in &self.vars {
            if let Some(velocity) = velocity {
                let name = file.name(&names, var)?.to_owned();
                file.insert(name, velocity);
            }
        }
        file.serialize()
    }

    /// Reads the velocities from a file of [`save`](Self::save). Variables that have none there begin anew. On an error all is
    /// as before.
    ///
    /// Files that do not say what they hold, from before 0.1.0 was released, are read as well. If such a file holds the
    /// values of the variables themselves, it is taken for one of weights and refused.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else, if it has a velocity for a variable that is not here, or one of
    /// another shape or type, or one that is not finite.
    pub fn load(&mut self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::read(path.as_ref(), |bytes| self.load_bytes(names, bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&mut self, names: &VarMap, bytes: &[u8]) -> Result<()> {
        let names = Names::of(names);
        let velocities = state_file::parse(bytes, &FILE, |file| self.velocities_of(&names, &file))?;
        for (moving, velocity) in self.vars.iter_mut().zip(velocities) {
            moving.velocity = velocity;
        }
        self.show_velocities();
        Ok(())
    }

    /// The velocity of each variable in a file.
    fn velocities_of(&self, names: &Names, file: &Contents<'_>) -> Result<Vec<Option<Tensor>>> {
        let owners = Owners::new(names, file, self.vars.iter().map(|moving| &moving.var), "this optimizer");
        let mut velocities = vec![None; self.vars.len()];
        for (name, view) in &file.tensors {
            let i = owners.find(name, "the velocity")?;
            let var = &self.vars[i].var;
            let velocity = checked(&format!("the velocity of `{name}`"), view, var, wide(var.dtype()))?;
            if !file.is_labeled() && is_value_of(var, &velocity)? {
                candle_core::bail!("`{name}` holds the values of the variable: expected {}, found weights", FILE.what)
            }
            if velocities[i].replace(velocity.to_device(var.device())?).is_some() {
                return Err(state_file::second_entry(name, "velocity", var));
            }
        }
        Ok(velocities)
    }

    /// The velocities, for [`Direction::Momentum`](crate::variants::Direction::Momentum) or your own use: what they are after
    /// the latest step.
    #[must_use]
    pub fn momentum_buffers(&self) -> MomentumBuffers {
        self.shown.clone()
    }

    fn show_velocities(&self) {
        let velocities = self.vars.iter().filter_map(|moving| Some((moving.var.clone(), moving.velocity.clone()?)));
        *self.shown.lock() = velocities.collect();
    }
}

/// Whether these are the values of a variable, and not all 0.
fn is_value_of(var: &Var, values: &Tensor) -> Result<bool> {
    let bits = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>();
    let (own, values) = (bits(&var.to_device(values.device())?)?, bits(values)?);
    Ok(own == values && values.iter().any(|value| *value != 0.0))
}
