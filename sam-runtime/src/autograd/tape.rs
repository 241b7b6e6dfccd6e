//! How layers pass gradients to each other.
//!
//! candle adds every gradient to zeros: for each edge of the graph, memory of the activation's size is cleared, read and
//! written once more. Between two of our layers that is saved. The output of a layer has a node, and a token: a small tensor
//! that stands for the node in the graph that candle walks, where tokens depend on tokens and variables. A layer's backward
//! pass leaves the gradient of an input with the input's node, and returns to candle, as the gradient of the token, where it
//! has left it. candle adds these up, so that a node finds in its token's gradient which gradients are its own
//! ([`Slots`]): several backward passes may go through one graph at a time, on several threads, or one inside another. An
//! output that candle's own operations use is joined to its token by an operation too, [`OutputOp`]. Where there are none of
//! candle's at all, [`backward_through_layers`] goes from node to node without candle.
//!
//! Variables get their gradients from candle, or from `backward_through_layers`, and from nothing else.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, TensorId};

use super::fused_op::{FusedOp, Output, backward, forward};
use super::join_op::{JoinOp, join};
use super::slots::{Slots, TOKEN};
use crate::core::image_layout::ImageLayout;
use crate::core::lock::lock;
use crate::kernels::{cuda_token, sum};

/// The output of a layer, as a part of the graph.
pub(crate) fn apply(layer: impl FusedOp, args: &[&Tensor]) -> Result<Tensor> {
    let values: Vec<Tensor> = args.iter().map(|arg| arg.detach()).collect();
    let (storage, shape) = forward(&layer, &values)?;
    let format = if shape.rank() == 4 { ImageLayout::of(&values[0]) } else { ImageLayout::Nchw };
    let output = Mutex::new(Some((storage, format.shape_in_memory(&shape)?)));
    let (mut edges, mut sources) = (Vec::new(), Vec::new());
    for arg in args {
        sources.push(match node_of(arg) {
            _ if !arg.track_op() => GradTarget::Constant,
            Some((tensor, node)) => {
                edges.push(tensor);
                GradTarget::FusedOp(node)
            }
            None => {
                edges.push((*arg).clone());
                if arg.is_variable() { GradTarget::Variable((*arg).clone()) } else { GradTarget::Other }
            }
        });
    }
    if edges.is_empty() {
        return format.named(&values[0].apply_op1_no_bwd(&OutputOp { output, joined: None })?);
    }
    let saved = layer.saved();
    let node = Node {
        layer: Box::new(layer),
        values: if saved.args { values } else { Vec::new() },
        sources,
        edges: edges.clone(),
        format,
        output: OnceLock::new(),
        gradients: Slots::default(),
        waiting: Slots::default(),
    };
    let node = Arc::new(node);
    let tensor = join_edges(&node, &edges)?;
    let joined = OutputNode { id: Arc::default(), node: Arc::clone(&node), format };
    let id = Arc::clone(&joined.id);
    let y = format.named(&tensor.apply_op1(OutputOp { output, joined: Some(joined) })?)?;
    if saved.output {
        node.output.get_or_init(|| y.detach());
    }
    known().insert(*id.get_or_init(|| y.id()), (tensor, node));
    Ok(y)
}

/// A tensor that depends on all edges, however many: an operation of candle has at most three inputs, so further ones are
/// joined with the result of those before.
fn join_edges(node: &Arc<Node>, edges: &[Tensor]) -> Result<Tensor> {
    let mut joined: Option<Tensor> = None;
    for Range { start: begin, end } in groups(edges.len()) {
        let op = Backward { node: Arc::clone(node), begin, chained: joined.is_some(), last: end == edges.len() };
        let inputs: Vec<&Tensor> = joined.iter().chain(&edges[begin..end]).collect();
        joined = Some(join(op, &inputs)?);
    }
    joined.map_or_else(|| candle_core::bail!("expected an input that needs a gradient"), Ok)
}

/// Three edges, and two and two of the others.
fn groups(edges: usize) -> Vec<Range<usize>> {
    let begins = std::iter::once(0).chain((3..edges).step_by(2));
    begins.map(|begin| begin..edges.min(begin + if begin == 0 { 3 } else { 2 })).collect()
}

/// A layer's part in the graph.
struct Node {
    layer: Box<dyn FusedOp>,
    /// The arguments, if the backward pass reads them.
    values: Vec<Tensor>,
    sources: Vec<GradTarget>,
    /// What candle's graph knows of the sources: their tokens, variables, and outputs of candle's operations.
    edges: Vec<Tensor>,
    /// The memory layout of the output, and of its gradient.
    format: ImageLayout,
    /// If the backward pass reads it.
    output: OnceLock<Tensor>,
    /// Gradients of the output so far.
    gradients: Slots<Tensor>,
    /// Gradients of edges whose operation candle has not reached yet; it goes from the last edge to the first.
    waiting: Slots<Vec<Option<Tensor>>>,
}

/// What a node holds of those before it.
type Inputs = (Vec<GradTarget>, Vec<Tensor>);

thread_local! {
    /// The inputs of nodes that are still to be dropped, while one is being dropped.
    static GOING: RefCell<Option<Vec<Inputs>>> = const { RefCell::new(None) };
}

impl Drop for Node {
    /// Each node holds the one before. They are dropped in a loop: recursion would overflow the stack.
    fn drop(&mut self) {
        let mut rest = Some((std::mem::take(&mut self.sources), std::mem::take(&mut self.edges)));
        let first = GOING.try_with(|going| match &mut *going.borrow_mut() {
            Some(going) => {
                going.extend(rest.take());
                false
            }
            none => {
                *none = Some(Vec::from_iter(rest.take()));
                true
            }
        });
        if first == Ok(true) {
            while let Some(rest) = GOING.with_borrow_mut(|going| going.as_mut().and_then(Vec::pop)) {
                drop(rest);
            }
            GOING.set(None);
        }
    }
}

/// Where an argument comes from, and its gradient goes.
enum GradTarget {
    Constant,
    FusedOp(Arc<Node>),
    Variable(Tensor),
    /// An operation of candle's.
    Other,
}

/// The outputs of layers, with their tokens and nodes.
type Known = HashMap<TensorId, (Tensor, Arc<Node>)>;

fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    lock(&KNOWN)
}

/// Whether one of these tensors is the output of a layer, whose gradient has no graph of its own.
pub(crate) fn has_layer<'a>(mut nodes: impl Iterator<Item = &'a Tensor>) -> bool {
    nodes.any(|tensor| node_of(tensor).is_some())
}

fn node_of(y: &Tensor) -> Option<(Tensor, Arc<Node>)> {
    known().get(&y.id()).cloned()
}

impl Node {
    /// The gradients of all edges, given those of the output.
    fn backward(&self, gradients: Vec<Tensor>) -> Result<Vec<Option<Tensor>>> {
        let mut total: Option<Tensor> = None;
        for gradient in gradients {
            total = Some(total.map_or_else(|| Ok(gradient.clone()), |total| sum(&total, &gradient))?);
        }
        let wanted: Vec<bool> = self.sources.iter().map(GradTarget::needs_gradient).collect();
        let gradients = match total {
            Some(dy) => {
                let dy = self.format.arrange(&dy)?;
                backward(&*self.layer, &self.values, &wanted, self.output.get().unwrap_or(&dy), &dy)?
            }
            None => vec![None; wanted.len()],
        };
        Ok(gradients.into_iter().zip(wanted).filter_map(|(gradient, wanted)| wanted.then_some(gradient)).collect())
    }

    fn needing_sources(&self) -> impl Iterator<Item = &GradTarget> {
        self.sources.iter().filter(|source| source.needs_gradient())
    }
}

/// The nodes that one depends on, each before those that depend on it and itself at the end; None if an operation of candle's
/// is among what they depend on.
fn in_order(last: &Arc<Node>) -> Option<Vec<Arc<Node>>> {
    let (mut order, mut seen) = (Vec::new(), HashSet::from([Arc::as_ptr(last)]));
    // Each with the number of its sources that have been visited.
    let mut path = vec![(Arc::clone(last), 0)];
    while let Some((node, visited)) = path.last_mut() {
        let next = node.sources.get(*visited);
        *visited += 1;
        match next {
            Some(GradTarget::Other) => return None,
            Some(GradTarget::FusedOp(source)) if seen.insert(Arc::as_ptr(source)) => {
                let source = Arc::clone(source);
                path.push((source, 0));
            }
            Some(_) => {}
            None => order.extend(path.pop().map(|(node, _)| node)),
        }
    }
    Some(order)
}

/// The gradients of the variables that a loss depends on, if there is nothing of candle's between: in the order that candle
/// would take, without its tensors of zeros, each of which is a launch on a device.
pub(crate) fn backward_through_layers(loss: &Tensor) -> Result<Option<GradStore>> {
    let Some((_, last)) = node_of(loss) else { return Ok(None) };
    let Some(order) = in_order(&last) else { return Ok(None) };
    let mut of_nodes: HashMap<*const Node, Vec<Tensor>> = HashMap::new();
    let mut of_variables = GradStore::default();
    of_nodes.insert(Arc::as_ptr(&last), vec![loss.ones_like()?]);
    for node in order.iter().rev() {
        let sources: Vec<_> = node.needing_sources().collect();
        let mut gradients = node.backward(of_nodes.remove(&Arc::as_ptr(node)).unwrap_or_default())?;
        for edge in groups(sources.len()).into_iter().rev().flatten() {
            match (sources[edge], gradients[edge].take()) {
                (GradTarget::FusedOp(node), Some(gradient)) => {
                    of_nodes.entry(Arc::as_ptr(node)).or_default().push(gradient);
                }
                (GradTarget::Variable(var), gradient) => {
                    let gradient = gradient.map_or_else(|| var.zeros_like(), Ok)?;
                    let sum = match of_variables.remove(var) {
                        Some(sum) => (sum + gradient)?,
                        None => gradient,
                    };
                    of_variables.insert(var, sum);
                }
                _ => {}
            }
        }
    }
    Ok(Some(of_variables))
}

impl GradTarget {
    fn needs_gradient(&self) -> bool {
        !matches!(self, Self::Constant)
    }
}

/// From the nodes and variables that a layer depends on, or some of them, to its own node.
struct Backward {
    node: Arc<Node>,
    /// The first of its edges.
    begin: usize,
    /// Whether its first input stands for the edges before.
    chained: bool,
    /// Whether there are no edges after.
    last: bool,
}

impl JoinOp for Backward {
    fn name(&self) -> &'static str {
        self.node.layer.name()
    }

    /// A node's token. Its elements are 0: as a gradient it stands for none.
    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F64(vec![0.0; TOKEN]), Shape::from(TOKEN)))
    }

    fn on_cuda(&self, like: &CudaStorage) -> Result<(CudaStorage, Shape)> {
        cuda_token(like, &Shape::from(1), DType::F32)
    }

    /// The gradients of the inputs, given that of the node's token: for tokens, where the gradients of their nodes are.
    fn backward(&self, inputs: &[&Tensor], token: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut gradients = if self.last {
            self.node.backward(self.node.gradients.take(token)?)?
        } else {
            self.node.waiting.take(token)?.pop().unwrap_or_default()
        };
        let mine = gradients.split_off(self.begin.min(gradients.len()));
        let (before, edges) = inputs.split_at(usize::from(self.chained));
        let mut returned = Vec::with_capacity(inputs.len());
        for token in before {
            returned.push(Some(self.node.waiting.put(token, std::mem::take(&mut gradients))?));
        }
        for ((source, edge), gradient) in self.node.needing_sources().skip(self.begin).zip(edges).zip(mine) {
            returned.push(Some(match (source, gradient) {
                (GradTarget::FusedOp(node), Some(gradient)) => node.gradients.put(edge, gradient)?,
                (GradTarget::FusedOp(_), None) => edge.detach(),
                (_, Some(gradient)) => gradient,
                (_, None) => edge.zeros_like()?,
            }));
        }
        Ok(returned)
    }
}

/// From a layer's node to its output, which has been computed already.
struct OutputOp {
    output: Mutex<Option<Output>>,
    joined: Option<OutputNode>,
}

/// An output and its node.
struct OutputNode {
    id: Arc<OnceLock<TensorId>>,
    node: Arc<Node>,
    format: ImageLayout,
}

impl Drop for OutputNode {
    /// The output has been dropped.
    fn drop(&mut self) {
        let forgotten = self.id.get().and_then(|id| known().remove(id));
        // Without the lock: this may drop the output of the layer before, which takes the lock again.
        drop(forgotten);
    }
}

impl OutputOp {
    fn take(&self) -> Option<Output> {
        lock(&self.output).take()
    }
}

impl CustomOp1 for OutputOp {
    fn name(&self) -> &'static str {
        "reveal"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take() {
            Some((Storage::Cpu(storage), shape)) => Ok((storage, shape)),
            _ => candle_core::bail!("the output of a layer can be taken once, on its own device"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take() {
            Some((Storage::Cuda(storage), shape)) => Ok((storage, shape)),
            _ => candle_core::bail!("the output of a layer can be taken once, on its own device"),
        }
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(OutputNode { node, format, .. }) = &self.joined else { return Ok(None) };
        node.gradients.put(token, format.named(dy)?).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::nn::{add, relu};

    #[test]
    fn candle_is_not_needed_where_all_operations_are_fused() -> Result<()> {
        let w = Var::new(&[1f32, -2.], &Device::Cpu)?;
        let loss = add(&relu(&w)?, &w)?;
        assert!(backward_through_layers(&loss)?.is_some());
        assert!(backward_through_layers(&(&loss * 2.0)?)?.is_none(), "an operation of candle's behind");
        assert!(backward_through_layers(&relu(&(w.as_tensor() * 2.0)?)?)?.is_none(), "and before");
        assert!(backward_through_layers(&w)?.is_none(), "no layer");
        Ok(())
    }
}
