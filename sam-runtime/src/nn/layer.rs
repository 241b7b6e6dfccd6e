//! How layers hand gradients to each other.
//!
//! candle adds every gradient to zeros: for each edge of the graph, memory of the activation's size is cleared, read and
//! written once more. Between two of our layers that is saved. The output of a layer has a node beside it, a tensor of one
//! element, and in the graph that candle walks nodes depend on nodes and variables. A layer's backward pass puts the
//! gradient of an input into the input's node, where the layer before finds it; candle adds up zeros of one element, and
//! sees to the order. An output that candle's own operations use is joined to its node by an operation too, [`Reveal`].
//!
//! What a backward pass has left when an error broke it off stays in the nodes: such a graph is to be dropped.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, TensorId};

use super::add;
use crate::gradient::hand_over;

/// One operation on contiguous tensors on the CPU, with its own backward pass.
pub(super) trait Layer: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// The gradients of those arguments that are wanted; None stands for zeros.
    fn backward(&self, args: &[Tensor], wanted: &[bool], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// The output of a layer, as a part of the graph. At most three of the arguments may need gradients.
pub(super) fn apply(layer: impl Layer, args: &[&Tensor]) -> Result<Tensor> {
    let values: Vec<Tensor> = args.iter().map(|arg| arg.detach()).collect();
    let output = Mutex::new(Some(layer.forward(&values)?));
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
                Source::Other
            }
        });
    }
    if edges.is_empty() {
        return values[0].apply_op1_no_bwd(&Reveal { output, joined: None });
    }
    let node = Node { layer: Box::new(layer), values, sources, output: OnceLock::new(), gradients: Mutex::default() };
    let node = Arc::new(node);
    let op = Backward(Arc::clone(&node));
    let tensor = match &edges[..] {
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        _ => candle_core::bail!("expected at most three inputs that need gradients, found {}", edges.len()),
    };
    let joined = Joined { id: Arc::default(), node: Arc::clone(&node) };
    let id = Arc::clone(&joined.id);
    let y = tensor.apply_op1(Reveal { output, joined: Some(joined) })?;
    node.output.get_or_init(|| y.detach());
    known().insert(*id.get_or_init(|| y.id()), (tensor, node));
    Ok(y)
}

/// A layer's part in the graph.
struct Node {
    layer: Box<dyn Layer>,
    values: Vec<Tensor>,
    sources: Vec<Source>,
    output: OnceLock<Tensor>,
    /// The sum so far of the output's gradients, for each thread that is going backward.
    gradients: Mutex<HashMap<ThreadId, Tensor>>,
}

/// Where an argument comes from, and its gradient goes.
enum Source {
    Constant,
    Layer(Arc<Node>),
    /// A variable, or an operation of candle's.
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

    /// Hands gradients on. Those that candle has to add up are returned, one for each edge.
    fn backward(&self, edges: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
        let Some(y) = self.output.get() else {
            candle_core::bail!("expected a forward pass before the backward pass of {}", self.layer.name())
        };
        let sum = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).remove(&thread::current().id());
        let wanted: Vec<bool> = self.sources.iter().map(|source| !matches!(source, Source::Constant)).collect();
        let gradients = match sum {
            Some(dy) => self.layer.backward(&self.values, &wanted, y, &dy.contiguous()?)?,
            None => vec![None; wanted.len()],
        };
        let mut edges = edges.iter();
        let mut returned = Vec::new();
        for (source, gradient) in self.sources.iter().zip(gradients) {
            let Some(edge) = (if let Source::Constant = source { None } else { edges.next() }) else { continue };
            returned.push(match (source, gradient) {
                (Source::Layer(node), gradient) => {
                    gradient.map(|gradient| node.add(gradient)).transpose()?;
                    Some(edge.zeros_like()?)
                }
                (_, Some(gradient)) => hand_over(edge, gradient)?,
                (_, None) => Some(edge.zeros_like()?),
            });
        }
        Ok(returned)
    }
}

/// From the nodes and variables that a layer depends on to its own node.
struct Backward(Arc<Node>);

fn mark() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

impl CustomOp1 for Backward {
    fn name(&self) -> &'static str {
        self.0.layer.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(mark())
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward(&[a])?.swap_remove(0))
    }
}

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        self.0.layer.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(mark())
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, _: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.0.backward(&[a, b])?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        self.0.layer.name()
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

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.0.backward(&[a, b, c])?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

/// From a layer's node to its output, which has been computed already.
struct Reveal {
    output: Mutex<Option<(CpuStorage, Shape)>>,
    joined: Option<Joined>,
}

/// An output and its node.
struct Joined {
    id: Arc<OnceLock<TensorId>>,
    node: Arc<Node>,
}

impl Drop for Joined {
    /// Nobody has the output any more.
    fn drop(&mut self) {
        let forgotten = self.id.get().and_then(|id| known().remove(id));
        // Without the lock: with this node the output of the layer before may go.
        drop(forgotten);
    }
}

impl CustomOp1 for Reveal {
    fn name(&self) -> &'static str {
        "reveal"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.output.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(output) => Ok(output),
            None => candle_core::bail!("the output of a layer can be taken once"),
        }
    }

    fn bwd(&self, node: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if let Some(joined) = &self.joined {
            joined.node.add(dy.clone())?;
        }
        node.zeros_like().map(Some)
    }
}
