//! Stochastic gradient descent with momentum, as the paper trains.

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};

use crate::checkpoint::{names_of, read, write};
use crate::gradient::gradient_to_read;
use crate::kernels::{self, Move};
use crate::variants::Velocities;

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
/// as in PyTorch's `SGD` without dampening. Variables without a gradient stay as they are. On the CPU one pass over the
/// memory does it all: w, v and the gradient are read, w and v written; on CUDA so does one launch for all variables. Halves have their velocity in f32.
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
    shown: Velocities,
}

/// A variable and its velocity, which it has from its first step on.
#[derive(Debug)]
struct Moving {
    var: Var,
    velocity: Option<Tensor>,
}

impl Optimizer for Sgd {
    type Config = ParamsSgd;

    fn new(vars: Vec<Var>, params: ParamsSgd) -> Result<Self> {
        let vars = vars.into_iter().filter(|var| var.dtype().is_float());
        let vars = vars.map(|var| Moving { var, velocity: None }).collect();
        Ok(Self { vars, params, shown: Velocities::default() })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.advance(|var| grads.get(var))
    }

    /// Backward and [`step`](Self::step). Gradients of this crate's layers, and of SAM's loss, come without a copy.
    fn backward_step(&mut self, loss: &Tensor) -> Result<()> {
        let gradient: HashMap<_, _> = gradient_to_read(loss)?.into_iter().map(|(var, grad)| (var.id(), grad)).collect();
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
    fn advance<'a>(&mut self, grad: impl Fn(&Var) -> Option<&'a Tensor>) -> Result<()> {
        let mut new = false;
        let mut moves = Vec::with_capacity(self.vars.len());
        for Moving { var, velocity } in &mut self.vars {
            let Some(grad) = grad(var) else { continue };
            if self.params.momentum != 0.0 && velocity.is_none() {
                *velocity = Some(Tensor::zeros(var.shape(), kernels::wide(var.dtype()), var.device())?);
                new = true;
            }
            moves.push(Move { var, grad: grad.detach().contiguous()?, velocity: velocity.as_ref() });
        }
        kernels::sgd(self.params, &moves)?;
        if new {
            self.show_velocities();
        }
        Ok(())
    }

    /// Writes the velocities to a safetensors file, under the names that their variables have in `names`. The file is
    /// there whole or not at all.
    ///
    /// # Errors
    /// If a variable has no name, or the file cannot be written.
    pub fn save(&self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        let names = names_of(names);
        let mut velocities = HashMap::new();
        for Moving { var, velocity } in &self.vars {
            let Some(velocity) = velocity else { continue };
            let Some(name) = names.get(&var.id()) else {
                candle_core::bail!("a variable of shape {:?} has no name to save its velocity under", var.shape())
            };
            velocities.insert(name.clone(), velocity.clone());
        }
        write(&velocities, path.as_ref())
    }

    /// Reads the velocities from a file of [`save`](Self::save). On an error all is as before.
    ///
    /// # Errors
    /// If the file cannot be read, has a velocity under a name that no variable has, or one of another shape.
    pub fn load(&mut self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        let names = names_of(names);
        let velocities = read(path.as_ref(), |mut file| {
            let mut velocities = Vec::with_capacity(self.vars.len());
            for Moving { var, .. } in &self.vars {
                let velocity = names.get(&var.id()).and_then(|name| Some((name, file.remove(name)?)));
                velocities.push(match velocity {
                    Some((name, velocity)) if velocity.shape() != var.shape() => candle_core::bail!(
                        "the velocity of `{name}` has shape {:?}, its variable {:?}",
                        velocity.shape(),
                        var.shape()
                    ),
                    Some((_, velocity)) => {
                        Some(velocity.to_dtype(kernels::wide(var.dtype()))?.to_device(var.device())?)
                    }
                    None => None,
                });
            }
            match file.into_keys().min() {
                Some(name) => candle_core::bail!("the velocity of `{name}` belongs to no variable of this optimizer"),
                None => Ok(velocities),
            }
        })?;
        for (moving, velocity) in self.vars.iter_mut().zip(velocities) {
            moving.velocity = velocity;
        }
        self.show_velocities();
        Ok(())
    }

    /// The velocities, for whoever follows them: [`Direction::Momentum`](crate::variants::Direction::Momentum).
    #[must_use]
    pub fn velocities(&self) -> Velocities {
        self.shown.clone()
    }

    fn show_velocities(&self) {
        let velocities = self.vars.iter().filter_map(|moving| Some((moving.var.clone(), moving.velocity.clone()?)));
        *self.shown.lock() = velocities.collect();
    }
}
