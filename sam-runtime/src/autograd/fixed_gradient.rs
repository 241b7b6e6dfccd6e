//! A loss whose gradient is given: what a sharpness-aware step returns.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::{CpuStorage, CudaStorage, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor, TensorId};

use super::gradient::gradient;
use super::join_op::{JoinOp, join};
use crate::core::lock::lock;
use crate::core::pass::Context;
use crate::core::var_list::Gradient;
use crate::kernels::cuda_token;

/// A loss of this value whose gradient is this one, scaled by whatever is done to the loss afterwards.
///
/// A custom operation has three inputs at most: the variables are the leaves of a tree of such operations.
pub(crate) fn loss_with_gradient(value: &Tensor, gradient: Gradient) -> Result<Tensor> {
    let value = value.detach().force_contiguous()?;
    let (dtype, mut nodes) = (value.dtype(), Vec::new());
    let mut level = Vec::with_capacity(gradient.len().div_ceil(3));
    for vars in gradient.chunks(3) {
        let grads = vars.iter().map(|(_, grad)| grad.clone()).collect();
        let vars: Vec<_> = vars.iter().map(|(var, _)| var.as_tensor()).collect();
        level.push(join(FixedGradientOp::Leaf { grads, dtype }, &vars)?);
    }
    while level.len() > 1 {
        nodes.extend(level.iter().map(Tensor::id));
        let joined = |parts: &[Tensor]| join(FixedGradientOp::Join { dtype }, &parts.iter().collect::<Vec<_>>());
        level = level.chunks(3).map(joined).collect::<Result<_>>()?;
    }
    let Some(root) = level.pop() else { return Ok(value) };
    nodes.push(root.id());
    let known = Arc::new(OnceLock::new());
    let loss = join(FixedGradientOp::Root { value, _known: RegistryGuard(Arc::clone(&known)) }, &[&root])?;
    registry().insert(*known.get_or_init(|| loss.id()), nodes, gradient);
    Ok(loss)
}

/// ∇L for whoever only reads it. That of a loss to which nothing has been done since it was given its gradient is at hand:
/// no graph, no factor, and no synchronization with a device to see that the factor is 1.
pub(crate) fn registered_gradient_or_backward(loss: &Tensor) -> Result<Gradient> {
    let known = registry().gradient(loss);
    known.map_or_else(|| gradient(loss), Ok)
}

/// Whether one of these nodes is a loss that was given its gradient in this call of a loss function.
pub(crate) fn has_loss_of_call<'a>(mut nodes: impl Iterator<Item = &'a Tensor>, call: u64) -> bool {
    let known = registry();
    nodes.any(|node| known.losses.get(&node.id()).is_some_and(|loss| loss.call == call))
}

/// Whether this node belongs to a loss that was given its gradient: that does not change with the weights.
pub(crate) fn has_fixed_gradient(node: &Tensor) -> bool {
    let known = registry();
    known.losses.contains_key(&node.id()) || known.nodes.contains(&node.id())
}

/// The losses that were given a gradient, as long as they live.
#[derive(Default)]
struct Registry {
    losses: HashMap<TensorId, FixedLoss>,
    /// All other nodes of their graphs.
    nodes: HashSet<TensorId>,
}

struct FixedLoss {
    gradient: Gradient,
    nodes: Vec<TensorId>,
    /// The call of a loss function that it was made in.
    call: u64,
}

impl Registry {
    fn insert(&mut self, loss: TensorId, nodes: Vec<TensorId>, gradient: Gradient) {
        self.nodes.extend(&nodes);
        self.losses.insert(loss, FixedLoss { gradient, nodes, call: Context::current_call() });
    }

    fn gradient(&self, loss: &Tensor) -> Option<Gradient> {
        self.losses.get(&loss.id()).map(|loss| loss.gradient.clone())
    }

    fn remove(&mut self, loss: TensorId) -> Option<FixedLoss> {
        let known = self.losses.remove(&loss)?;
        for node in &known.nodes {
            self.nodes.remove(node);
        }
        Some(known)
    }
}

fn registry() -> MutexGuard<'static, Registry> {
    static ALL: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    lock(&ALL)
}

/// In the graph of such a loss, to end with it.
struct RegistryGuard(Arc<OnceLock<TensorId>>);

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        // Dropped outside of the lock: freeing tensors may run other destructors that take it.
        let forgotten = self.0.get().and_then(|id| registry().remove(*id));
        drop(forgotten);
    }
}

/// The operations that a loss with a given gradient is made of. Each but the root is a scalar that is never read.
enum FixedGradientOp {
    /// Of up to three variables, each with its gradient.
    Leaf { grads: Vec<Tensor>, dtype: DType },
    /// Of up to three leaves or joins.
    Join { dtype: DType },
    /// The loss.
    Root { value: Tensor, _known: RegistryGuard },
}

impl FixedGradientOp {
    fn dtype(&self) -> DType {
        match self {
            Self::Leaf { dtype, .. } | Self::Join { dtype } => *dtype,
            Self::Root { value, .. } => value.dtype(),
        }
    }
}

impl JoinOp for FixedGradientOp {
    fn name(&self) -> &'static str {
        "sam-loss"
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self {
            Self::Root { value, .. } => match &*value.storage_and_layout().0 {
                Storage::Cpu(storage) => copied(storage, value.layout()),
                _ => candle_core::bail!("expected the loss on the device of the variables"),
            },
            _ => Ok((CpuDevice.zeros_impl(&Shape::from(()), self.dtype())?, Shape::from(()))),
        }
    }

    fn on_cuda(&self, like: &CudaStorage) -> Result<(CudaStorage, Shape)> {
        match self {
            Self::Root { value, .. } => match &*value.storage_and_layout().0 {
                Storage::Cuda(storage) => copied(storage, value.layout()),
                _ => candle_core::bail!("expected the loss on the device of the variables"),
            },
            _ => cuda_token(like, &Shape::from(()), self.dtype()),
        }
    }

    fn on_metal(&self, like: &MetalStorage) -> Result<(MetalStorage, Shape)> {
        match self {
            Self::Root { value, .. } => match &*value.storage_and_layout().0 {
                Storage::Metal(storage) => copied(storage, value.layout()),
                _ => candle_core::bail!("expected the loss on the device of the variables"),
            },
            _ => Ok((like.device().zeros_impl(&Shape::from(()), self.dtype())?, Shape::from(()))),
        }
    }

    fn backward(&self, inputs: &[&Tensor], outer: &Tensor) -> Result<Vec<Option<Tensor>>> {
        match self {
            Self::Leaf { grads, .. } => grads.iter().map(|grad| scaled(grad, outer).map(Some)).collect(),
            Self::Join { .. } | Self::Root { .. } => inputs.iter().map(|_| outer.reshape(()).map(Some)).collect(),
        }
    }
}

fn copied<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)> {
    Ok((storage.try_clone(layout)?, layout.shape().clone()))
}

/// `grad` times the number `outer`. On the CPU the number can be read, and 1, the usual one, costs nothing.
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
    use candle_core::{Device, Var};

    use super::*;

    /// The gradient that a loss was given is at hand for as long as the loss lives, and for no other loss.
    #[test]
    fn the_gradient_of_a_loss_dies_with_it() {
        let w = Var::new(&[1f64, 2.], &Device::Cpu).unwrap();
        let grad = Tensor::new(&[3f64, 4.], &Device::Cpu).unwrap();
        let loss = loss_with_gradient(&Tensor::new(5f64, &Device::Cpu).unwrap(), vec![(w, grad)]).unwrap();
        let twice = (&loss * 2.0).unwrap();
        let read = |loss: &Tensor| registered_gradient_or_backward(loss).unwrap()[0].1.to_vec1::<f64>().unwrap();
        assert_eq!((read(&loss), read(&twice)), (vec![3., 4.], vec![6., 8.]));
        let id = loss.id();
        assert!(registry().losses.contains_key(&id));
        drop(loss);
        assert!(registry().losses.contains_key(&id), "in the graph of another");
        drop(twice);
        assert!(!registry().losses.contains_key(&id));
        assert!(loss_with_gradient(&Tensor::new(5f64, &Device::Cpu).unwrap(), Vec::new()).is_ok());
    }
}
