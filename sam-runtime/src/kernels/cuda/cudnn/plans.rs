//! Caches of cuDNN's plans: the fastest for each convolution, by timing, and the preferred one for attention.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda::{CudaDevice, WrapErr};

use super::attention_graph;
use super::backend::Handle;
use super::convolution_graph::{Addresses, Operation};
use super::plan::{Operand, Plan, Target};

/// Bytes of workspace, at most. A plan that needs more is skipped.
const WORKSPACE: usize = 1 << 30;

/// How many plans are timed. Each runs once as a warm-up, then the best of `ROUNDS` rounds of `CALLS` calls counts.
const PLANS: usize = 16;
const ROUNDS: usize = 3;
const CALLS: usize = 3;

/// How many plans attention gets. cuDNN compiles each, which takes a second: text of ever new lengths must not wait for
/// that at every step.
const ATTENTION_PLANS: usize = 128;

/// The plan caches, the handle, and one workspace for all plans.
#[derive(Default)]
pub(crate) struct Plans {
    convolutions: HashMap<Operation, Option<Plan>>,
    attention: HashMap<attention_graph::Operation, Option<Plan>>,
    workspace: Option<CudaSlice<u8>>,
    /// Created with the first plan: it takes time and device memory.
    handle: Option<Handle>,
}

impl Plans {
    /// Runs the fastest plan, which the first call finds by timing. Returns whether there is one.
    ///
    /// # Safety
    ///
    /// The addresses must be those of the operands of the operation, in its dtype.
    pub(super) unsafe fn convolve(
        &mut self,
        device: &CudaDevice,
        stream: &Arc<CudaStream>,
        operation: Operation,
        at: Addresses,
    ) -> Result<bool> {
        let handle = handle(&mut self.handle, stream)?;
        let plan = match self.convolutions.entry(operation) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(fastest(device, stream, handle, &operation, at)?),
        };
        let Some(plan) = plan else { return Ok(false) };
        let workspace = workspace(&mut self.workspace, device, plan.bytes)?;
        // SAFETY: the caller's operands are those of the operation, and `self` keeps the workspace.
        unsafe { plan.run(handle, &at.operands(), workspace.device_ptr(stream).0)? };
        Ok(true)
    }

    /// Runs the plan that cuDNN's heuristic prefers. Returns whether there is one.
    ///
    /// # Safety
    ///
    /// The operands must be those of the operation, with addresses of memory of their sizes and types.
    pub(super) unsafe fn attend(
        &mut self,
        device: &CudaDevice,
        stream: &Arc<CudaStream>,
        operation: &attention_graph::Operation,
        operands: &[Operand],
    ) -> Result<bool> {
        let handle = handle(&mut self.handle, stream)?;
        let full = self.attention.len() >= ATTENTION_PLANS;
        let plan = match self.attention.entry(*operation) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(_) if full => return Ok(false),
            Entry::Vacant(place) => place.insert(preferred(handle, operation)),
        };
        let Some(plan) = plan else { return Ok(false) };
        let workspace = workspace(&mut self.workspace, device, plan.bytes)?;
        // SAFETY: the caller's operands are those of the operation, and `self` keeps the workspace.
        unsafe { plan.run(handle, operands, workspace.device_ptr(stream).0)? };
        Ok(true)
    }
}

fn handle<'a>(place: &'a mut Option<Handle>, stream: &Arc<CudaStream>) -> Result<&'a Handle> {
    match place {
        Some(handle) => Ok(handle),
        place => Ok(place.insert(Handle::new(stream)?)),
    }
}

fn workspace<'a>(place: &'a mut Option<CudaSlice<u8>>, device: &CudaDevice, bytes: usize) -> Result<&'a CudaSlice<u8>> {
    // One that is too small is free, in the order of the stream, before the larger one is taken.
    drop(place.take_if(|workspace| workspace.len() < bytes));
    match place {
        Some(workspace) => Ok(workspace),
        place => Ok(place.insert(room(device, bytes)?)),
    }
}

fn room(device: &CudaDevice, bytes: usize) -> Result<CudaSlice<u8>> {
    // SAFETY: plans write the workspace before they read it.
    unsafe { device.alloc::<u8>(bytes.max(1)) }
}

/// The first plan that can be made, and needs no more workspace than there may be. It is the same in every thread.
fn preferred(handle: &Handle, operation: &attention_graph::Operation) -> Option<Plan> {
    let mut trouble = None;
    let plans = operation.plans(Target::Of(handle)).map_err(|error| trouble = Some(error));
    for plan in plans.into_iter().flatten() {
        match plan {
            Ok(plan) if plan.bytes <= WORKSPACE => {
                tracing::debug!(?operation, bytes = plan.bytes, "the plan for attention");
                return Some(plan);
            }
            Ok(plan) => tracing::debug!(?operation, bytes = plan.bytes, "a plan for attention that is too large"),
            Err(error) => trouble = Some(error),
        }
    }
    tracing::debug!(?operation, ?trouble, "cuDNN has no plan for attention");
    None
}

/// Times the plans. Only this synchronizes with the device.
fn fastest(
    device: &CudaDevice,
    stream: &Arc<CudaStream>,
    handle: &Handle,
    operation: &Operation,
    at: Addresses,
) -> Result<Option<Plan>> {
    let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let (mut best, mut tried, mut trouble) = (None::<(f32, Plan)>, 0, None);
    let plans = operation.plans(Target::Of(handle)).map_err(|error| trouble = Some(error));
    // SAFETY: as in `convolve` above. The workspace is freed in the order of the stream.
    let run = |plan: &Plan, workspace: &CudaSlice<u8>| unsafe {
        plan.run(handle, &at.operands(), workspace.device_ptr(stream).0)
    };
    for plan in plans.into_iter().flatten() {
        // A plan that cannot be made or run, or whose workspace cannot be allocated, is skipped.
        let ready = plan.and_then(|plan| {
            if plan.bytes > WORKSPACE {
                candle_core::bail!("a plan asks for {} bytes", plan.bytes)
            }
            let workspace = room(device, plan.bytes)?;
            run(&plan, &workspace)?;
            Ok((plan, workspace))
        });
        let (plan, workspace) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                trouble = Some(error);
                continue;
            }
        };
        let mut least = f32::INFINITY;
        for _ in 0..ROUNDS {
            let start = stream.record_event(timed).w()?;
            for _ in 0..CALLS {
                run(&plan, &workspace)?;
            }
            let end = stream.record_event(timed).w()?;
            least = least.min(start.elapsed_ms(&end).w()? / CALLS as f32);
        }
        tracing::debug!(?operation, tried, bytes = plan.bytes, ms = least, "a plan to convolve");
        if best.as_ref().is_none_or(|(other, _)| least < *other) {
            best = Some((least, plan));
        }
        tried += 1;
        if tried == PLANS {
            break;
        }
    }
    match (&best, trouble) {
        (Some((ms, _)), _) => tracing::debug!(?operation, tried, ms, "the plan to convolve"),
        (None, trouble) => tracing::warn!(?operation, ?trouble, "cuDNN has no plan to convolve"),
    }
    Ok(best.map(|(_, plan)| plan))
}
