//! What a loss is multiplied by between the step that returns it and its backward pass.

use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Tensor};

use crate::core::lock::lock;
use crate::core::var_list::VarTensors;
use crate::kernels::{mix, number};

/// The derivative of what was differentiated with respect to a loss, as the last backward pass through the loss has found
/// it; 0 if there was none, as candle has none through a loss that was multiplied by 0. The default belongs to no loss: 1.
#[derive(Clone, Debug, Default)]
pub(crate) struct LossFactor(Option<Arc<Mutex<Option<Tensor>>>>);

impl LossFactor {
    /// For a loss that is about to be returned.
    pub(crate) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// The same loss, which tells this its factor in each backward pass.
    pub(crate) fn watch(&self, loss: &Tensor) -> Result<Tensor> {
        loss.apply_op1(Watched(self.clone()))
    }

    fn record(&self, outer: &Tensor) {
        if let Some(found) = &self.0 {
            *lock(found) = Some(outer.detach());
        }
    }

    /// `value` times the factor, as a number for tensors like `like`.
    pub(crate) fn times(&self, value: f64, like: &Tensor) -> Result<Tensor> {
        let Some(found) = &self.0 else { return number(like, value) };
        let Some(factor) = lock(found).clone() else {
            return number(like, 0.0);
        };
        let value = number(like, value)?;
        let factor = factor.flatten_all()?.squeeze(0)?.to_dtype(value.dtype())?.to_device(value.device())?;
        value * factor
    }

    /// These tensors times the factor.
    pub(crate) fn applied(&self, kept: &VarTensors) -> Result<VarTensors> {
        let applied = kept.iter().map(|(var, value)| {
            let scaled = value.copy()?;
            mix(&scaled, &self.times(1.0, value)?, value, &number(value, 0.0)?)?;
            Ok((var.clone(), scaled))
        });
        applied.collect::<Result<_>>().map(VarTensors::new)
    }
}

struct Watched(LossFactor);

impl CustomOp1 for Watched {
    fn name(&self) -> &'static str {
        "sam-loss-factor"
    }

    fn cpu_fwd(&self, loss: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((loss.try_clone(layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(&self, loss: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((loss.try_clone(layout)?, layout.shape().clone()))
    }

    fn metal_fwd(&self, loss: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        Ok((loss.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, outer: &Tensor) -> Result<Option<Tensor>> {
        self.0.record(outer);
        Ok(Some(outer.clone()))
    }
}
