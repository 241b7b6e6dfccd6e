//! The graph of a loss: all of it has to be made in the pass whose backward pass uses it.
//!
//! A tensor that was computed from variables before the pass, be it outside of the loss function or in the first of two
//! passes, does not move with the weights to w + ε̂. A gradient that goes through it is neither ∇L(w + ε̂) nor ∇L(w). Views
//! of variables do move with them, and a loss that was given its gradient has the same one everywhere: these may be older.

use std::collections::HashSet;

use candle_core::{Device, Result, Tensor};

use super::fixed_gradient::has_fixed_gradient;
use super::slots::is_token;
use crate::core::error::Error;
use crate::core::identity::{number_of, storage_of};

/// A moment of the process, among those at which tensors were made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self(number_of(Tensor::new(0u8, &Device::Cpu)?.id())))
    }
}

/// An error if some of the graph is older than this. `nodes`: as [`Tensor::sorted_nodes`] has them.
pub(crate) fn check_made_since(moment: Moment, nodes: &[&Tensor]) -> Result<()> {
    let is_old = |node: &Tensor| !node.is_variable() && number_of(node.id()) < moment.0;
    let mut old = nodes.iter().filter(|node| is_old(node)).peekable();
    if old.peek().is_none() {
        return Ok(());
    }
    let variables: HashSet<_> = nodes.iter().filter(|node| node.is_variable()).map(|node| storage_of(node)).collect();
    let mut stale = old.filter(|node| !has_fixed_gradient(node) && !variables.contains(&storage_of(node)));
    let Some(first) = stale.next() else { return Ok(()) };
    let shown = std::iter::once(first).chain(stale).find(|node| !is_token(node));
    Err(Error::StaleGraph { shape: shown.map(|node| node.shape().clone()) }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_numbered_as_they_are_made() -> Result<()> {
        let before = Moment::now()?;
        let a = Tensor::new(0f32, &Device::Cpu)?;
        let b = (&a + 1.0)?;
        assert!(
            before.0 < number_of(a.id())
                && number_of(a.id()) < number_of(b.id())
                && number_of(b.id()) < Moment::now()?.0
        );
        Ok(())
    }
}
