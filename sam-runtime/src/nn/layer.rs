//! How layers hand gradients to each other.
//!
//! candle adds every gradient to zeros: for each edge of the graph, memory of the activation's size is cleared, read and
//! written once more. Between two of our layers that is saved. The output of a layer has a node beside it, a tensor of one
//! element, and in the graph that candle walks nodes depend on nodes and variables. A layer's backward pass puts the
//! gradient of an input into the input's node, where the layer before finds it; candle adds up zeros of one element, and
//! sees to the order. An output that candle's own operations use is joined to its node by an operation too, [`Reveal`].
//! Where there are none of candle's at all, [`backward_through_layers`] goes from node to node without candle.
//!
//! What a backward pass has left when an error broke it off stays in the nodes: such a graph is to be dropped.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, TensorId,
};

use super::add;
use crate::gradient::hand_over;
use crate::kernels::cuda_mark;
use crate::kernels::format::Format;

/// One operation on contiguous tensors, with its own backward pass: on the CPU and, where there is one, on a CUDA device.
/// There the first argument may be images that are channels last: then an output of four dimensions is too, and what is
/// like it.
pub(super) trait Layer: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of those arguments that are wanted; None stands for zeros.
    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>>;

    /// For those that are applied to tensors of a CUDA device.
    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, _: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("there is no {} on CUDA", self.name())
    }

    /// As [`backward`](Self::backward).
    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &[Tensor], _: &[bool], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        candle_core::bail!("there is no {} on CUDA", self.name())
    }
}

/// What a layer returns: the elements of a tensor of this shape.
type Output = (Storage, Shape);

fn forward(layer: &impl Layer, args: &[Tensor]) -> Result<Output> {
    #[cfg(feature = "cuda")]
    if args[0].device().is_cuda() {
        return layer.cuda_forward(args).map(|(storage, shape)| (Storage::Cuda(storage), shape));
    }
    layer.forward(args).map(|(storage, shape)| (Storage::Cpu(storage), shape))
}

fn backward(
    layer: &dyn Layer,
    args: &[Tensor],
    wanted: &[bool],
    y: &Tensor,
    dy: &Tensor,
) -> Result<Vec<Option<Tensor>>> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() {
        return layer.cuda_backward(args, wanted, y, dy);
    }
    layer.backward(args, wanted, y, dy)
}

/// The output of a layer, as a part of the graph.
pub(super) fn apply(layer: impl Layer, args: &[&Tensor]) -> Result<Tensor> {
    let values: Vec<Tensor> = args.iter().map(|arg| arg.detach()).collect();
    let (storage, shape) = forward(&layer, &values)?;
    let format = if shape.rank() == 4 { Format::of(&values[0]) } else { Format::Planes };
    let output = Mutex::new(Some((storage, format.shape_in_memory(&shape)?)));
    let (mut edges, mut sources) = (Vec::new(), Vec::new());
    for arg in args {
        sources.push(match node_of(arg) {
            _ if !arg.track_op() => Source::Constant,
            Some((tensor, node)) => {
                edges.push(tensor);
                Source::Layer(node)
            }
            None => {
                edges.push((*arg).clone());
                if arg.is_variable() { Source::Variable((*arg).clone()) } else { Source::Other }
            }
        });
    }
    if edges.is_empty() {
        return format.named(&values[0].apply_op1_no_bwd(&Reveal { output, joined: None })?);
    }
    let node = Node {
        layer: Box::new(layer),
        values,
        sources,
        output: OnceLock::new(),
        gradients: Mutex::default(),
        waiting: Mutex::default(),
    };
    let node = Arc::new(node);
    let tensor = join(&node, &edges)?;
    let joined = Joined { id: Arc::default(), node: Arc::clone(&node), format };
    let id = Arc::clone(&joined.id);
    let y = format.named(&tensor.apply_op1(Reveal { output, joined: Some(joined) })?)?;
    node.output.get_or_init(|| y.detach());
    known().insert(*id.get_or_init(|| y.id()), (tensor, node));
    Ok(y)
}

/// A tensor that depends on all edges, however many: an operation of candle's has three inputs at most, so that further
/// ones join what has come of those before.
fn join(node: &Arc<Node>, edges: &[Tensor]) -> Result<Tensor> {
    let mut joined: Option<Tensor> = None;
    for Range { start: begin, end } in groups(edges.len()) {
        let op = Backward { node: Arc::clone(node), begin, chained: joined.is_some(), last: end == edges.len() };
        let inputs: Vec<&Tensor> = joined.iter().chain(&edges[begin..end]).collect();
        joined = Some(match inputs[..] {
            [a] => a.apply_op1(op)?,
            [a, b] => a.apply_op2(b, op)?,
            [a, b, c] => a.apply_op3(b, c, op)?,
            _ => candle_core::bail!("expected one to three inputs, found {}", inputs.len()),
        });
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
    layer: Box<dyn Layer>,
    values: Vec<Tensor>,
    sources: Vec<Source>,
    output: OnceLock<Tensor>,
    /// The sum so far of the output's gradients, for each thread that is going backward.
    gradients: Mutex<HashMap<ThreadId, Tensor>>,
    /// The gradients of edges whose operation has not come yet, which goes from the last edge to the first.
    waiting: Mutex<HashMap<ThreadId, Vec<Option<Tensor>>>>,
}

/// Where an argument comes from, and its gradient goes.
enum Source {
    Constant,
    Layer(Arc<Node>),
    Variable(Tensor),
    /// An operation of candle's.
    Other,
}

/// The outputs of layers, with their nodes.
type Known = HashMap<TensorId, (Tensor, Arc<Node>)>;

fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn node_of(y: &Tensor) -> Option<(Tensor, Arc<Node>)> {
    known().get(&y.id()).cloned()
}

impl Node {
    fn add(&self, dy: Tensor) -> Result<()> {
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = match gradients.remove(&thread::current().id()) {
            Some(sum) => add(&sum, &dy)?,
            None => dy,
        };
        gradients.insert(thread::current().id(), sum);
        Ok(())
    }

    /// Puts the nodes that this one depends on, and then itself, behind those that are there. Whether they are all.
    fn find(self: &Arc<Self>, seen: &mut HashSet<*const Self>, order: &mut Vec<Arc<Self>>) -> bool {
        if !seen.insert(Arc::as_ptr(self)) {
            return true;
        }
        let known = self.sources.iter().all(|source| match source {
            Source::Layer(node) => node.find(seen, order),
            Source::Constant | Source::Variable(_) => true,
            Source::Other => false,
        });
        order.push(Arc::clone(self));
        known
    }

    /// The gradients of all edges.
    fn backward(&self) -> Result<Vec<Option<Tensor>>> {
        let Some(y) = self.output.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of {}", self.layer.name())
        };
        let sum = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).remove(&thread::current().id());
        let wanted: Vec<bool> = self.sources.iter().map(Source::needs_gradient).collect();
        let gradients = match sum {
            Some(dy) => backward(&*self.layer, &self.values, &wanted, y, &Format::of(y).arrange(&dy)?)?,
            None => vec![None; wanted.len()],
        };
        Ok(gradients.into_iter().zip(wanted).filter_map(|(gradient, wanted)| wanted.then_some(gradient)).collect())
    }
}

/// Sends the gradient of a loss back to the variables, if there is nothing of candle's between: in the order that candle
/// would take, without its tensors of zeros, each of which is a word to the device. Whether that was so.
pub(crate) fn backward_through_layers(loss: &Tensor) -> Result<bool> {
    let Some((_, last)) = node_of(loss) else { return Ok(false) };
    let mut order = Vec::new();
    if !last.find(&mut HashSet::new(), &mut order) {
        return Ok(false);
    }
    last.add(loss.ones_like()?)?;
    for node in order.iter().rev() {
        let sources: Vec<_> = node.sources.iter().filter(|source| source.needs_gradient()).collect();
        let mut gradients = node.backward()?;
        for edge in groups(sources.len()).into_iter().rev().flatten() {
            match (sources[edge], gradients[edge].take()) {
                (Source::Layer(node), Some(gradient)) => node.add(gradient)?,
                (Source::Variable(var), gradient) => {
                    hand_over(var, gradient.map_or_else(|| var.zeros_like(), Ok)?)?;
                }
                _ => {}
            }
        }
    }
    Ok(true)
}

impl Source {
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

impl Backward {
    /// Hands gradients on. Those that candle has to add up are returned, one for each input.
    fn hand_on(&self, inputs: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        let thread = thread::current().id();
        let waiting = || self.node.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gradients =
            if self.last { self.node.backward()? } else { waiting().remove(&thread).unwrap_or_default() };
        let mine = gradients.split_off(self.begin.min(gradients.len()));
        if !gradients.is_empty() {
            waiting().insert(thread, gradients);
        }
        let sources = self.node.sources.iter().filter(|source| source.needs_gradient()).skip(self.begin);
        let (before, edges) = inputs.split_at(usize::from(self.chained));
        let mut returned: Vec<_> = before.iter().map(|mark| Some(mark.detach())).collect();
        for ((source, edge), gradient) in sources.zip(edges).zip(mine) {
            returned.push(match (source, gradient) {
                (Source::Layer(node), gradient) => {
                    gradient.map(|gradient| node.add(gradient)).transpose()?;
                    Some(edge.detach())
                }
                (_, Some(gradient)) => hand_over(edge, gradient)?,
                (_, None) => Some(edge.zeros_like()?),
            });
        }
        Ok(returned)
    }
}

/// A node's tensor, which is its gradient as well.
fn mark() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

impl CustomOp1 for Backward {
    fn name(&self) -> &'static str {
        self.node.layer.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(mark())
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda_mark(a, &Shape::from(1), DType::F32)
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.hand_on(&[a])?.pop().flatten())
    }
}

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        self.node.layer.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(mark())
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda_mark(a, &Shape::from(1), DType::F32)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.hand_on(&[a, b])?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        self.node.layer.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(mark())
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda_mark(a, &Shape::from(1), DType::F32)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.hand_on(&[a, b, c])?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

/// From a layer's node to its output, which has been computed already.
struct Reveal {
    output: Mutex<Option<Output>>,
    joined: Option<Joined>,
}

/// An output and its node.
struct Joined {
    id: Arc<OnceLock<TensorId>>,
    node: Arc<Node>,
    format: Format,
}

impl Drop for Joined {
    /// Nobody has the output any more.
    fn drop(&mut self) {
        let forgotten = self.id.get().and_then(|id| known().remove(id));
        // Without the lock: with this node the output of the layer before may go.
        drop(forgotten);
    }
}

impl Reveal {
    fn take(&self) -> Option<Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl CustomOp1 for Reveal {
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

    fn bwd(&self, node: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if let Some(joined) = &self.joined {
            joined.node.add(joined.format.named(dy)?)?;
        }
        Ok(Some(node.detach()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::nn::relu;

    #[test]
    fn the_way_back_is_ours_where_all_is_of_layers() -> Result<()> {
        let w = Var::new(&[1f32, -2.], &Device::Cpu)?;
        let loss = add(&relu(&w)?, &w)?;
        assert!(backward_through_layers(&loss)?);
        assert!(!backward_through_layers(&(&loss * 2.0)?)?, "an operation of candle's behind");
        assert!(!backward_through_layers(&relu(&(w.as_tensor() * 2.0)?)?)?, "and before");
        assert!(!backward_through_layers(&w)?, "no layer");
        Ok(())
    }
}
