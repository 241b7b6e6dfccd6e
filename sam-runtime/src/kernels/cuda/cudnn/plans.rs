//! Times cuDNN's plans for each convolution, and caches the fastest.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use candle_core::Result;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda::{CudaDevice, WrapErr};

use super::backend::Handle;
use super::graph::{Addresses, Operation, Plan, Target};

/// Bytes of workspace, at most. A plan that needs more is skipped.
const WORKSPACE: usize = 1 << 30;

/// How many plans are timed. Each runs once as a warm-up, then the best of `ROUNDS` rounds of `CALLS` calls counts.
const PLANS: usize = 16;
const ROUNDS: usize = 3;
const CALLS: usize = 3;

/// The plan cache, the handle, and one workspace for all convolutions.
#[derive(Default)]
pub(crate) struct Convolutions {
    plans: HashMap<Operation, Option<Plan>>,
    workspace: Option<CudaSlice<u8>>,
    /// Created with the first convolution: it takes time and device memory.
    handle: Option<Handle>,
}

impl Convolutions {
    /// Runs the fastest plan, which the first call finds by timing. Returns whether there is one.
    pub(super) fn run(
        &mut self,
        device: &CudaDevice,
        stream: &Arc<CudaStream>,
        operation: Operation,
        at: Addresses,
    ) -> Result<bool> {
        let handle = match &mut self.handle {
            Some(handle) => handle,
            place => place.insert(Handle::new(stream)?),
        };
        let plan = match self.plans.entry(operation) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(fastest(device, stream, handle, &operation, at)?),
        };
        let Some(plan) = plan else { return Ok(false) };
        let workspace = match &mut self.workspace {
            Some(workspace) if workspace.len() >= plan.bytes => workspace,
            place => {
                *place = None; // It is free, in the order of the stream, before the larger one is taken.
                place.insert(room(device, plan.bytes)?)
            }
        };
        // SAFETY: the caller's operands are those of the operation, and `self` keeps the workspace.
        unsafe { plan.run(handle, at, workspace.device_ptr(stream).0)? };
        Ok(true)
    }
}

fn room(device: &CudaDevice, bytes: usize) -> Result<CudaSlice<u8>> {
    // SAFETY: plans write the workspace before they read it.
    unsafe { device.alloc::<u8>(bytes.max(1)) }
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
    // SAFETY: as in `run` above. The workspace is freed in the order of the stream.
    let run = |plan: &Plan, workspace: &CudaSlice<u8>| unsafe { plan.run(handle, at, workspace.device_ptr(stream).0) };
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
