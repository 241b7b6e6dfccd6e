//! AdamW, as PyTorch computes it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};

use super::gradients::{gradient_of, ready};
use super::group::{ParamGroup, Rates, members};
use super::momentum::MomentumBuffers;
use super::state_file::{self, Contents, Kind, Owners, StateFile, checked};
use crate::core::dtype::wide;
use crate::core::names::Names;
use crate::core::overlap::note_moved;
use crate::kernels::{self, AdamWMove, AdamWStep};

const FILE: Kind = Kind { label: "sam-runtime adamw moments", what: "the moments of an `AdamW`", version: 1 };

const FIRST: &str = "first";
const SECOND: &str = "second";
const STEPS: &str = "steps";

/// AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>): Adam with decoupled weight decay.
///
/// ```text
/// m ← m + (1 - β₁) (g - m)
/// v ← β₂ v + (1 - β₂) g²
/// w ← (1 - lr λ) w - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
/// ```
///
/// The arithmetic is that of PyTorch's `AdamW(fused=True)` on the CPU, operation by operation, in the type of the variable; so
/// are the results, to the last bit on processors with AVX2 or AVX-512 (PyTorch rounds the last few elements of a tensor
/// otherwise, and with `fused=False` one weight in many thousand). `t` counts the steps of each variable in which it had a
/// gradient, as PyTorch's does; `candle_nn`'s counts those of the optimizer.
///
/// It has the interface of [`candle_nn::AdamW`], and takes its place. On the CPU w, m, v and the gradient are read once and w, m
/// and v written once; on CUDA one launch does this for all variables of a group. Variables in half precision (f16, bf16) have
/// their moments in f32, and are computed in f32; they are rounded after each step, and one of less than half the distance to the
/// next number is lost (in bf16 1/512 of the weight), so train weights in f32 where you can.
///
/// Variables without a gradient stay as they are. A variable that is listed several times is one, and moves once. Variables that
/// are not of a floating point type are ignored. [`step`](Optimizer::step) and `backward_step` compare every gradient with its
/// variable before any moves; on an error all is as before. They do not look for NaN and infinities.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use candle_nn::Optimizer;
/// use sam_runtime::optim::{AdamW, ParamsAdamW};
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[3f64, -2.], &Device::Cpu)?;
/// let mut adamw = AdamW::new(vec![w.clone()], ParamsAdamW { lr: 0.1, ..Default::default() })?;
/// for _ in 0..200 {
///     adamw.backward_step(&w.sqr()?.sum_all()?)?;
/// }
/// assert!(w.sqr()?.sum_all()?.to_scalar::<f64>()? < 1e-4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdamW {
    vars: Vec<Adapting>,
    params: ParamsAdamW,
    shown: MomentumBuffers,
}

/// A variable, and its moments, which it has from its first step on.
#[derive(Debug)]
struct Adapting {
    var: Var,
    rates: Rates,
    moments: Option<Moments>,
}

#[derive(Clone, Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
    steps: u64,
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, params: ParamsAdamW) -> Result<Self> {
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

impl AdamW {
    /// With PyTorch's and candle's defaults for all but the learning rate.
    ///
    /// # Errors
    /// None today.
    pub fn new_lr(vars: Vec<Var>, learning_rate: f64) -> Result<Self> {
        Self::new(vars, ParamsAdamW { lr: learning_rate, ..ParamsAdamW::default() })
    }

    /// With groups of variables that have a learning rate or a weight decay of their own.
    ///
    /// # Errors
    /// If a variable is in two groups that differ, or a group's numbers are negative or not finite.
    pub fn with_groups(groups: impl IntoIterator<Item = ParamGroup>, params: ParamsAdamW) -> Result<Self> {
        let vars = members(groups)?.into_iter().map(|(var, rates)| Adapting { var, rates, moments: None });
        Ok(Self { vars: vars.collect(), params, shown: MomentumBuffers::default() })
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> &ParamsAdamW {
        &self.params
    }

    /// Sets the parameters, from the next step on.
    pub fn set_params(&mut self, params: ParamsAdamW) {
        self.params = params;
    }

    /// The first moments, for [`Direction::Momentum`](crate::variants::Direction::Momentum) or your own use: what they are
    /// after the latest step.
    #[must_use]
    pub fn momentum_buffers(&self) -> MomentumBuffers {
        self.shown.clone()
    }

    fn advance<'a>(&mut self, grad: impl Fn(&Var) -> Option<&'a Tensor>) -> Result<()> {
        let vars: Vec<_> = self.vars.iter().map(|adapting| &adapting.var).collect();
        let kept = self.vars.iter().filter_map(|adapting| adapting.moments.as_ref());
        let grads = ready(&vars, kept.flat_map(|moments| [&moments.first, &moments.second]), grad)?;
        let mut next = Vec::with_capacity(grads.len());
        for (i, _) in &grads {
            let Adapting { var, moments, .. } = &self.vars[*i];
            next.push(if let Some(moments) = moments {
                Moments { steps: moments.steps + 1, ..moments.clone() }
            } else {
                let zeros = || Tensor::zeros(var.shape(), wide(var.dtype()), var.device());
                Moments { first: zeros()?, second: zeros()?, steps: 1 }
            });
        }
        let moves: Vec<_> = grads
            .into_iter()
            .zip(&next)
            .map(|((i, grad), Moments { first, second, steps })| {
                let Adapting { var, rates, .. } = &self.vars[i];
                (i, AdamWMove { step: constants(&self.params, *rates, *steps), var, grad, first, second })
            })
            .collect();
        let (indices, moves): (Vec<_>, Vec<_>) = moves.into_iter().unzip();
        kernels::adamw(&moves)?;
        note_moved(moves.iter().map(|step| step.var));
        drop(moves);

        let mut new = false;
        for (i, moments) in indices.into_iter().zip(next) {
            new |= self.vars[i].moments.replace(moments).is_none();
        }
        if new {
            self.show_moments();
        }
        Ok(())
    }

    fn show_moments(&self) {
        let first = |adapting: &Adapting| Some((adapting.var.clone(), adapting.moments.as_ref()?.first.clone()));
        *self.shown.lock() = self.vars.iter().filter_map(first).collect();
    }

    /// Writes the moments and the steps of each variable to a safetensors file, under the names that the variables have in
    /// `names`. One with several names is saved under the first in alphabetical order, and can be loaded under any. The file is
    /// replaced [atomically](crate::write_atomically), and the same state gives the same bytes. A run that is resumed with the
    /// same parameters is bitwise the same as one that was not interrupted.
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
        for Adapting { var, moments, .. } in &self.vars {
            if let Some(Moments { first, second, steps }) = moments {
                let name = file.name(&names, var)?.to_owned();
                file.insert(format!("{FIRST}.{name}"), first);
                file.insert(format!("{SECOND}.{name}"), second);
                file.insert(format!("{STEPS}.{name}"), &Tensor::new(steps.cast_signed(), &Device::Cpu)?);
            }
        }
        file.serialize()
    }

    /// Reads a file of [`save`](Self::save). Variables that have nothing there begin anew. On an error all is as before.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else, if it has moments of a variable that is not here, or of another shape
    /// or type, or such as no run can have.
    pub fn load(&mut self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::read(path.as_ref(), |bytes| self.load_bytes(names, bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&mut self, names: &VarMap, bytes: &[u8]) -> Result<()> {
        let names = Names::of(names);
        let mut moments = state_file::parse(bytes, &FILE, |file| self.moments_of(&names, &file))?;
        for (i, adapting) in self.vars.iter_mut().enumerate() {
            adapting.moments = moments.remove(&i);
        }
        self.show_moments();
        Ok(())
    }

    /// The moments of each variable in a file, by its index.
    fn moments_of(&self, names: &Names, file: &Contents<'_>) -> Result<HashMap<usize, Moments>> {
        let owners = Owners::new(names, file, self.vars.iter().map(|adapting| &adapting.var), "this optimizer");
        let mut parts: BTreeMap<usize, (&str, [Option<Tensor>; 3])> = BTreeMap::new();
        for (key, view) in &file.tensors {
            let Some((part, name)) = key.split_once('.') else {
                candle_core::bail!("expected {}, found `{key}`", FILE.what)
            };
            let i = owners.find(name, "the state")?;
            let var = &self.vars[i].var;
            let (place, value) = match part {
                FIRST | SECOND => {
                    let what = format!("the {part} moment of `{name}`");
                    let value = checked(&what, view, var, wide(var.dtype()))?;
                    if part == SECOND && value.elem_count() > 0 {
                        let least = value.flatten_all()?.min(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                        if least < 0.0 {
                            candle_core::bail!("{what} has {least}: expected squares, 0 or more")
                        }
                    }
                    (usize::from(part == SECOND), value.to_device(var.device())?)
                }
                STEPS => (2, view.load(&Device::Cpu)?),
                _ => candle_core::bail!("expected {}, found `{key}`", FILE.what),
            };
            let (saved_as, found) = parts.entry(i).or_insert((name, [const { None }; 3]));
            if *saved_as != name {
                return Err(state_file::second_entry(name, "state", var));
            }
            found[place] = Some(value);
        }
        let whole = parts.into_iter().map(|(i, (name, found))| {
            let [Some(first), Some(second), Some(steps)] = found else {
                candle_core::bail!("the moments of `{name}` are incomplete: the file is damaged")
            };
            let steps = state_file::count(&steps, &format!("the steps of `{name}`"))?;
            Ok((i, Moments { first, second, steps }))
        });
        whole.collect()
    }
}

/// As PyTorch rounds them: in f64, from the numbers of its arguments.
fn constants(params: &ParamsAdamW, rates: Rates, steps: u64) -> AdamWStep {
    let ParamsAdamW { beta1, beta2, eps, .. } = *params;
    let lr = rates.lr(params.lr);
    let steps = steps as f64;
    let lerp = 1.0 - beta1;
    let from_gradient = lerp >= 0.5;
    AdamWStep {
        keep: 1.0 - lr * rates.weight_decay(params.weight_decay),
        lerp: if from_gradient { lerp - 1.0 } else { lerp },
        from_gradient,
        beta2,
        rate2: 1.0 - beta2,
        bias2_root: (1.0 - beta2.powf(steps)).sqrt(),
        eps,
        minus_rate: -(lr / (1.0 - beta1.powf(steps))),
    }
}
