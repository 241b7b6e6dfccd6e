//! The gradient of a loss, and the loss whose gradient is a given one.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    TensorId, Var,
};

use crate::kernels::cuda_mark;
use crate::nn::backward_through_layers;
use crate::{Error, Pass};

/// The variables that a loss depends on, each with its gradient: in the order of the graph, which is that of the
/// loss's own operations and not that in which a map hands out its variables; tied ones once.
pub(crate) type Gradient = Vec<(Var, Tensor)>;

/// ∇L, as buffers of its own: whoever holds it holds no activation, and may write over them.
pub(crate) fn gradient(loss: &Tensor) -> Result<Gradient> {
    let backward = || if backward_through_layers(loss)? { Ok(GradStore::default()) } else { loss.backward() };
    let (mut grads, mut direct) = Direct::during(backward)?;
    let mut gradient = Vec::new();
    let mut seen = HashSet::new();
    for node in loss.sorted_nodes() {
        if !node.is_variable() {
            continue;
        }
        let grad = match (grads.remove(node), direct.remove(&node.id())) {
            (None, None) => continue,
            (Some(grad), None) | (None, Some(grad)) => grad,
            (Some(a), Some(b)) => (a + b)?,
        };
        // A sum hands one gradient to both of its parts.
        let grad = if seen.insert(grad.id()) { grad.detach().contiguous()? } else { grad.detach().copy()? };
        gradient.push((Var::from_tensor(node)?, grad));
    }
    Ok(gradient)
}

thread_local! {
    static DIRECT: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// The gradients of variables that our own operations hand over directly, while there is somebody to take them: candle
/// would add each to zeros.
struct Direct {
    outer: Option<HashMap<TensorId, Tensor>>,
}

impl Direct {
    fn during<T>(backward: impl FnOnce() -> Result<T>) -> Result<(T, HashMap<TensorId, Tensor>)> {
        let scope = Self { outer: DIRECT.replace(Some(HashMap::new())) };
        let result = backward()?;
        let direct = DIRECT.take().unwrap_or_default();
        drop(scope);
        Ok((result, direct))
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        DIRECT.set(self.outer.take());
    }
}

/// Whether there is somebody to take gradients.
fn is_taken() -> bool {
    DIRECT.with_borrow(Option::is_some)
}

/// Takes the gradient of a variable. What is not taken comes back, and is candle's to add up.
pub(crate) fn hand_over(var: &Tensor, grad: Tensor) -> Result<Option<Tensor>> {
    DIRECT.with_borrow_mut(|direct| match direct {
        Some(direct) if var.is_variable() => {
            let sum = match direct.remove(&var.id()) {
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            direct.insert(var.id(), sum);
            Ok(None)
        }
        _ => Ok(Some(grad)),
    })
}

/// A loss that can be differentiated: one finite number. On other devices than the CPU its value is not looked at,
/// which would wait for the device.
pub(crate) fn check_loss(loss: &Tensor, pass: Pass) -> Result<()> {
    if loss.elem_count() != 1 {
        Err(Error::NotScalar(loss.shape().clone()))?;
    }
    if !loss.dtype().is_float() {
        Err(Error::NotFloat(loss.dtype()))?;
    }
    if loss.device().is_cpu() {
        let value = loss.detach().flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
        if !value.is_finite() {
            Err(Error::NonFiniteLoss { pass, value })?;
        }
    }
    Ok(())
}

/// A loss of this value whose gradient is this one, scaled by whatever is done to the loss afterwards.
///
/// A custom operation has three inputs at most: the value passes through one for every two variables.
pub(crate) fn loss_with_gradient(value: &Tensor, gradient: Gradient) -> Result<Tensor> {
    let value = value.copy()?.detach();
    let (mut loss, known) = (value.clone(), Arc::new(OnceLock::new()));
    let last = gradient.len().div_ceil(2);
    for (i, pair) in gradient.chunks(2).enumerate() {
        let grads = pair.iter().map(|(_, grad)| grad.clone()).collect();
        let value = (i + 1 == last).then(|| value.clone());
        let surrogate = Surrogate { grads, value, _known: Known(Arc::clone(&known)) };
        loss = match pair {
            [(a, _), (b, _)] => loss.apply_op3(a, b, surrogate)?,
            _ => loss.apply_op2(&pair[0].0, surrogate)?,
        };
    }
    if !gradient.is_empty() {
        all_known().insert(*known.get_or_init(|| loss.id()), gradient);
    }
    Ok(loss)
}

/// ∇L for whoever only reads it. That of a loss to which nothing has been done since it was given its gradient is at hand:
/// no graph, no factor, and no wait for a device to see that the factor is 1.
pub(crate) fn gradient_to_read(loss: &Tensor) -> Result<Gradient> {
    let known = all_known().get(&loss.id()).cloned();
    known.map_or_else(|| gradient(loss), Ok)
}

/// The gradients of losses that were given one, as long as these live.
fn all_known() -> MutexGuard<'static, HashMap<TensorId, Gradient>> {
    static ALL: LazyLock<Mutex<HashMap<TensorId, Gradient>>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In the graph of such a loss, to end with it.
struct Known(Arc<OnceLock<TensorId>>);

impl Drop for Known {
    fn drop(&mut self) {
        // Without the lock: what goes here is memory.
        let forgotten = self.0.get().and_then(|id| all_known().remove(id));
        drop(forgotten);
    }
}

/// (loss, w, ..) ↦ loss, with a given gradient of each w.
struct Surrogate {
    grads: Vec<Tensor>,
    /// The loss, for the last. On CUDA those before hand no value on: to copy it would be a word to the device for each.
    value: Option<Tensor>,
    _known: Known,
}

impl Surrogate {
    const NAME: &str = "sam-surrogate";

    fn on_cuda(&self, loss: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let Some(value) = &self.value else { return cuda_mark(loss, layout.shape(), loss.dtype()) };
        match &*value.storage_and_layout().0 {
            Storage::Cuda(storage) => copied(storage, value.layout()),
            other => candle_core::bail!("expected a loss on CUDA, found one on {:?}", other.device().location()),
        }
    }

    fn of(&self, place: usize, var: &Tensor, outer: &Tensor) -> Result<Option<Tensor>> {
        let grad = &self.grads[place];
        let handed = scaled(grad, outer)?;
        // Whoever takes it may write over it, and this loss may be gone through again.
        hand_over(var, if handed.id() == grad.id() && is_taken() { handed.copy()? } else { handed })
    }
}

impl CustomOp2 for Surrogate {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, loss: &CpuStorage, layout: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(loss, layout)
    }

    fn cuda_fwd(&self, loss: &CudaStorage, at: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(loss, at)
    }

    fn metal_fwd(
        &self,
        loss: &MetalStorage,
        layout: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        copied(loss, layout)
    }

    fn bwd(&self, _: &Tensor, var: &Tensor, _: &Tensor, outer: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(outer.clone()), self.of(0, var, outer)?))
    }
}

impl CustomOp3 for Surrogate {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        loss: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        copied(loss, layout)
    }

    fn cuda_fwd(
        &self,
        loss: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(loss, layout)
    }

    fn metal_fwd(
        &self,
        loss: &MetalStorage,
        layout: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        copied(loss, layout)
    }

    fn bwd(
        &self,
        _: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        outer: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(outer.clone()), self.of(0, a, outer)?, self.of(1, b, outer)?))
    }
}

fn copied<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    Ok((storage.try_clone(layout)?, layout.shape().clone()))
}

/// `grad` times the number `outer`. On the CPU the number can be looked at, and 1, the common one, costs nothing.
fn scaled(grad: &Tensor, outer: &Tensor) -> Result<Tensor> {
    if outer.device().is_cpu() {
        let factor = outer.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
        return if factor.to_bits() == 1f64.to_bits() { Ok(grad.clone()) } else { grad * factor };
    }
    let factor = outer.flatten_all()?.squeeze(0)?.to_dtype(grad.dtype())?.to_device(grad.device())?;
    grad.broadcast_mul(&factor)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// The gradient that a loss was given is at hand for as long as the loss lives, and for no other loss.
    #[test]
    fn the_gradient_of_a_loss_dies_with_it() {
        let w = Var::new(&[1f64, 2.], &Device::Cpu).unwrap();
        let grad = Tensor::new(&[3f64, 4.], &Device::Cpu).unwrap();
        let loss = loss_with_gradient(&Tensor::new(5f64, &Device::Cpu).unwrap(), vec![(w, grad)]).unwrap();
        let twice = (&loss * 2.0).unwrap();
        let read = |loss: &Tensor| gradient_to_read(loss).unwrap()[0].1.to_vec1::<f64>().unwrap();
        assert_eq!((read(&loss), read(&twice)), (vec![3., 4.], vec![6., 8.]));
        let id = loss.id();
        assert!(all_known().contains_key(&id));
        drop(loss);
        assert!(all_known().contains_key(&id), "in the graph of another");
        drop(twice);
        assert!(!all_known().contains_key(&id));
        assert!(loss_with_gradient(&Tensor::new(5f64, &Device::Cpu).unwrap(), Vec::new()).is_ok());
    }
}
