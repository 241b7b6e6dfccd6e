//! Loss scaling for f16.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::backprop::GradStore;
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::Optimizer;

use super::state_file::{self, Kind, StateFile};
use crate::autograd::fixed_gradient::{has_fixed_gradient, registered_gradient_or_backward};
use crate::autograd::gradient::gradient;
use crate::core::error::Error;
use crate::core::lock::lock;
use crate::core::var_list::Gradient;
use crate::kernels;

const FILE: Kind = Kind { label: "sam-runtime grad scaler", what: "the state of a `GradScaler`", version: 1 };

const SCALE: &str = "scale";
const GOOD_STEPS: &str = "good steps";

/// Below this a gradient that is not finite is no matter of scale: the training has diverged.
const LEAST: f64 = 1.0 / 65536.0;
/// More than any loss can be multiplied by.
const MOST: f64 = 1e30;

/// Dynamic loss scaling: gradients that f16 would round to 0 survive a backward pass of the loss times a large number, and are
/// divided by it afterwards. Where they overflow, the step is left out and the scale halved; after so many good steps it is
/// doubled, as by PyTorch's `GradScaler`.
///
/// With a plain loss this is all. With a sharpness-aware one both passes have to be scaled: give the scaler to the
/// [`Sam`](crate::Sam::grad_scaler) too. It multiplies the loss by the scale of the moment in each pass, and divides each gradient
/// before anything is done with it, so ε̂, also one that is not normalized, and all that a variant remembers are those of the loss
/// itself. If the gradient of any pass overflows, the weights are put back and nothing is remembered; the step is left out here.
///
/// ```
/// # use candle_core::{Device, Result, Tensor, Var};
/// # use sam_runtime::sam;
/// use sam_runtime::Sam;
/// use sam_runtime::optim::{AdamW, GradScaler};
///
/// #[sam(with = sam)]
/// fn loss(w: &Var, sam: &Sam) -> Result<Tensor> {
///     w.sqr()?.sum_all()
/// }
/// # fn main() -> Result<()> {
/// # let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
/// let mut adamw = AdamW::new_lr(vec![w.clone()], 0.1)?;
/// let scaler = GradScaler::default();
/// let sam = Sam::new(0.05).grad_scaler(&scaler);
/// for _ in 0..10 {
///     if let Some(loss) = scaler.step(&mut adamw, || loss(&w, &sam))? {
///         println!("{loss}");
///     } // else the step was left out
/// }
/// # Ok(())
/// # }
/// ```
///
/// Variables should be f32, and the activations f16: the gradient of a variable in f16 is rounded to f16 when it has been divided,
/// and what is below 6e-8 is lost then.
///
/// A clone is a handle to the same scale: so does a `Sam` know it. Whether a gradient is finite has to be read: one
/// synchronization with the device per step.
#[derive(Clone, Debug)]
pub struct GradScaler(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct State {
    scale: f64,
    good_steps: u64,
    /// Good steps after which the scale is doubled.
    interval: u64,
}

impl Default for GradScaler {
    /// PyTorch's: a scale of 65536 that is doubled after 2000 good steps.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { scale: 65536.0, good_steps: 0, interval: 2000 })))
    }
}

impl GradScaler {
    /// With this scale, a power of two so that nothing is rounded, to be doubled after so many good steps.
    ///
    /// # Errors
    /// If the scale is not a finite number above 0, or the interval is 0.
    pub fn new(scale: f64, interval: u64) -> Result<Self> {
        check_scale(scale)?;
        if interval == 0 {
            candle_core::bail!("the interval of a `GradScaler` is 0: expected 1 step or more")
        }
        Ok(Self(Arc::new(Mutex::new(State { scale, good_steps: 0, interval }))))
    }

    /// What losses are multiplied by now.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.lock().scale
    }

    /// Runs the loss function, the backward pass of the scaled loss, and the optimizer's step along the gradient of the loss
    /// itself. Returns the loss, or `None` if the gradient was not finite: nothing has moved then, and the scale is half of what it
    /// was.
    ///
    /// # Errors
    /// Those of the loss function and of the optimizer, and if the scale has been halved so often that the training must have
    /// diverged.
    pub fn step(
        &self,
        optimizer: &mut impl Optimizer,
        loss: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let Some((loss, grads)) = self.backward(loss)? else { return Ok(None) };
        optimizer.step(&grads)?;
        Ok(Some(loss))
    }

    /// [`step`](Self::step) without the optimizer's: the loss and its gradient, to be clipped or added up. The scale is halved or
    /// the step counted as a good one.
    ///
    /// ```
    /// # use candle_core::{Device, Result, Var};
    /// # use candle_nn::Optimizer;
    /// # use sam_runtime::optim::{AdamW, GradScaler, clip_grad_norm};
    /// # fn main() -> Result<()> {
    /// # let w = Var::new(&[3f32, 4.], &Device::Cpu)?;
    /// # let mut adamw = AdamW::new_lr(vec![w.clone()], 0.1)?;
    /// # let scaler = GradScaler::default();
    /// if let Some((loss, mut grads)) = scaler.backward(|| w.sqr()?.sum_all())? {
    ///     clip_grad_norm(&mut grads, &[w.clone()], 1.0)?;
    ///     adamw.step(&grads)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`step`](Self::step), but for the optimizer's.
    pub fn backward(&self, loss: impl FnOnce() -> Result<Tensor>) -> Result<Option<(Tensor, GradStore)>> {
        let loss = match loss() {
            Ok(loss) => loss,
            Err(error) if Error::of(&error).is_some_and(Error::is_overflow) => {
                return self.update(false).map(|()| None);
            }
            Err(error) => return Err(error),
        };
        let gradient = self.unscaled_gradient(&loss)?;
        let finite = kernels::all_finite(&gradient.iter().map(|(_, grad)| grad).collect::<Vec<_>>())?;
        self.update(finite)?;
        if !finite {
            return Ok(None);
        }
        let mut grads = GradStore::default();
        for (var, grad) in gradient {
            grads.insert(&var, grad);
        }
        Ok(Some((loss, grads)))
    }

    fn unscaled_gradient(&self, loss: &Tensor) -> Result<Gradient> {
        // SAM has scaled its passes, and has divided the gradient; scaled again, it could overflow.
        if loss.sorted_nodes().into_iter().any(has_fixed_gradient) {
            return registered_gradient_or_backward(loss);
        }
        let scale = self.scale();
        let gradient = gradient(&(loss * scale)?)?;
        let (vars, grads): (Vec<Var>, Vec<Tensor>) = gradient.into_iter().unzip();
        let Some(like) = grads.first() else { return Ok(Vec::new()) };
        let factor = kernels::number(like, scale.recip())?;
        let unscaled = kernels::scaled(&grads.iter().collect::<Vec<_>>(), &factor)?;
        Ok(vars.into_iter().zip(unscaled).collect())
    }

    /// Takes note of a step whose gradient was finite or not, for a loop that does the rest itself.
    ///
    /// # Errors
    /// If the scale has been halved so often that the training must have diverged.
    pub fn update(&self, finite: bool) -> Result<()> {
        let mut state = self.lock();
        if finite {
            state.good_steps += 1;
            if state.good_steps >= state.interval {
                state.good_steps = 0;
                state.scale = (2.0 * state.scale).min(MOST.max(state.scale));
            }
            return Ok(());
        }
        if state.scale < LEAST {
            candle_core::bail!(
                "the gradient is not finite with a loss scale of {}: the training has diverged",
                state.scale
            )
        }
        state.good_steps = 0;
        state.scale /= 2.0;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Writes the scale and the number of good steps to a safetensors file. The file is replaced
    /// [atomically](crate::write_atomically).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        state_file::write(path.as_ref(), &self.to_bytes()?)
    }

    /// What [`save`](Self::save) writes, for a checkpoint that holds more than this.
    ///
    /// # Errors
    /// None today.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let State { scale, good_steps, .. } = *self.lock();
        let mut file = StateFile::new(&FILE);
        file.insert(SCALE, &Tensor::new(scale, &Device::Cpu)?);
        file.insert(GOOD_STEPS, &Tensor::new(good_steps.cast_signed(), &Device::Cpu)?);
        file.serialize()
    }

    /// Reads a file of [`save`](Self::save). On an error all is as before.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<()> {
        state_file::read(path.as_ref(), |bytes| self.load_bytes(bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&self, bytes: &[u8]) -> Result<()> {
        let (scale, good_steps) = state_file::parse(bytes, &FILE, |file| {
            let number = |key: &str| match file.tensors.get(key) {
                Some(view) => view.load(&Device::Cpu),
                None => candle_core::bail!("the file has no `{key}`"),
            };
            let scale = number(SCALE)?;
            if scale.rank() != 0 || scale.dtype() != DType::F64 {
                candle_core::bail!("`{SCALE}` is {:?} {:?}: expected one F64", scale.dtype(), scale.dims())
            }
            let scale = scale.to_scalar()?;
            check_scale(scale)?;
            Ok((scale, state_file::count(&number(GOOD_STEPS)?, "the number of good steps")?))
        })?;
        let mut state = self.lock();
        (state.scale, state.good_steps) = (scale, good_steps);
        Ok(())
    }
}

fn check_scale(scale: f64) -> Result<()> {
    if scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    candle_core::bail!("the scale of a `GradScaler` is {scale}: expected a finite number above 0")
}
