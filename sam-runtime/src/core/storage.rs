//! Exchanging the storages of variables, and putting them back.
//!
//! Weights are not copied: a variable's buffer is exchanged with the one that holds w + ε̂, and exchanged again
//! afterwards. So w is restored bitwise, in no time, whatever happened in between.

use std::cell::RefCell;
use std::collections::HashSet;
use std::mem;

use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, MetalStorage, Result, Tensor, Var};

use crate::core::overlap::Claim;
use crate::core::pass::Step;
use crate::core::var_list::Gradient;

/// Variables that hold other values for a while. Dropped, it puts them back.
#[derive(Debug)]
pub(crate) struct SwapGuard {
    values: Vec<(Var, Tensor)>,
    claim: Claim,
}

impl SwapGuard {
    /// Gives each variable the value that comes with it, and keeps its own to be put back.
    ///
    /// # Errors
    /// If a variable is displaced already; none is then touched.
    pub(crate) fn new(step: &Step, values: Vec<(Var, Tensor)>) -> Result<Self> {
        let mut displaced = Self { values: Vec::with_capacity(values.len()), claim: Claim::new(step) };
        displaced.claim.add(values.iter().map(|(var, _)| var))?;
        for (var, value) in values {
            swap_storage(&var, &value)?;
            displaced.values.push((var, value));
        }
        Ok(displaced)
    }

    /// Keeps what these variables hold now: whatever is written to them meanwhile is undone.
    pub(crate) fn keep(&mut self, vars: &[Var]) -> Result<()> {
        self.claim.add(vars.iter())?;
        for var in vars {
            let scratch = var.as_detached_tensor().copy()?.detach();
            swap_storage(var, &scratch)?;
            self.values.push((var.clone(), scratch));
        }
        Ok(())
    }

    /// The variables, and what they held before.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Var, Tensor)> {
        self.values.iter()
    }

    /// The part of a gradient that belongs to these variables.
    pub(crate) fn of(&self, gradient: &Gradient) -> Gradient {
        let mine: HashSet<_> = self.values.iter().map(|(var, _)| var.id()).collect();
        gradient.iter().filter(|(var, _)| mine.contains(&var.id())).cloned().collect()
    }

    /// Restores the variables.
    pub(crate) fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some((var, old)) = self.values.pop() {
            outcome = outcome.and(swap_storage(&var, &old));
        }
        outcome
    }
}

impl Drop for SwapGuard {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "a variable could not be put back after a failed step");
        }
    }
}

/// Exchanges the buffers of these variables and these values.
pub(crate) fn swap_all(values: &[(Var, Tensor)]) -> Result<()> {
    values.iter().try_for_each(|(var, value)| swap_storage(var, value))
}

/// Exchanges the buffers of two tensors of one shape, type and device; whoever shares them sees the other's values.
///
/// In-place operations are the only door that candle leaves open to a buffer: the first tensor's operation holds its
/// buffer and runs the second tensor's, which exchanges the two.
pub(crate) fn swap_storage(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() || a.dtype() != b.dtype() || !a.device().same_device(b.device()) {
        candle_core::bail!(
            "cannot exchange {:?} {:?} on {:?} with {:?} {:?} on {:?}",
            a.dtype(),
            a.shape(),
            a.device().location(),
            b.dtype(),
            b.shape(),
            b.device().location()
        );
    }
    // Candle takes the strides of an empty tensor for repeated elements, and refuses to write to it.
    if a.elem_count() == 0 { Ok(()) } else { a.inplace_op1(&Outer(b)) }
}

struct Outer<'a>(&'a Tensor);

impl InplaceOp1 for Outer<'_> {
    fn name(&self) -> &'static str {
        "sam-exchange"
    }

    fn cpu_fwd(&self, buffer: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.with(Buffer::Cpu(buffer), layout)
    }

    fn cuda_fwd(&self, buffer: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.with(Buffer::Cuda(buffer), layout)
    }

    fn metal_fwd(&self, buffer: &mut MetalStorage, layout: &Layout) -> Result<()> {
        self.with(Buffer::Metal(buffer), layout)
    }
}

impl Outer<'_> {
    fn with(&self, buffer: Buffer<'_>, layout: &Layout) -> Result<()> {
        check_whole(layout)?;
        self.0.inplace_op1(&Inner(RefCell::new(buffer)))
    }
}

/// The outer tensor's buffer, in the hands of the inner tensor's operation.
struct Inner<'a>(RefCell<Buffer<'a>>);

enum Buffer<'a> {
    Cpu(&'a mut CpuStorage),
    Cuda(&'a mut CudaStorage),
    Metal(&'a mut MetalStorage),
}

impl InplaceOp1 for Inner<'_> {
    fn name(&self) -> &'static str {
        "sam-exchange"
    }

    fn cpu_fwd(&self, mine: &mut CpuStorage, layout: &Layout) -> Result<()> {
        check_whole(layout)?;
        if let Buffer::Cpu(other) = &mut *self.0.borrow_mut() {
            mem::swap(*other, mine);
        }
        Ok(())
    }

    fn cuda_fwd(&self, mine: &mut CudaStorage, layout: &Layout) -> Result<()> {
        check_whole(layout)?;
        if let Buffer::Cuda(other) = &mut *self.0.borrow_mut() {
            mem::swap(*other, mine);
        }
        Ok(())
    }

    fn metal_fwd(&self, mine: &mut MetalStorage, layout: &Layout) -> Result<()> {
        check_whole(layout)?;
        if let Buffer::Metal(other) = &mut *self.0.borrow_mut() {
            mem::swap(*other, mine);
        }
        Ok(())
    }
}

/// A view's elements are not the buffer's: only whole buffers change hands.
fn check_whole(layout: &Layout) -> Result<()> {
    if layout.contiguous_offsets().is_none_or(|(start, _)| start != 0) {
        candle_core::bail!("cannot exchange the buffer of a view ({layout:?})");
    }
    Ok(())
}
