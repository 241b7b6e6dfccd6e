//! Embeddings: rows of a table, chosen by numbers.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use candle_nn::{Module, VarBuilder};

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::indices::indices;

/// `candle_nn::Embedding`, whose gradient costs what the tokens cost, and one clearing of the table.
///
/// The gradient adds up the rows of each id in the order of the tokens, in f64. A table may be the weight of a
/// [`Linear`](super::Linear) as well (tied embeddings): its variable gets the sum of both gradients.
///
/// As in candle, the largest number of the ids' type is a row of zeros, unless the table has a row of that number.
///
/// ```
/// use candle_core::{Device, Module, Result, Tensor, Var};
/// use sam_runtime::nn::Embedding;
///
/// # fn main() -> Result<()> {
/// let table = Var::new(&[[0f32, 1.], [2., 3.], [4., 5.]], &Device::Cpu)?;
/// let layer = Embedding::new(table.as_tensor().clone(), 2);
/// let y = layer.forward(&Tensor::new(&[2u32, 0, 2], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[4., 5.], [0., 1.], [4., 5.]]);
/// let gradient = y.sum_all()?.backward()?;
/// assert_eq!(gradient.get(&table).unwrap().to_vec2::<f32>()?, [[1., 1.], [0., 0.], [2., 2.]]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Embedding {
    embeddings: Tensor,
    hidden_size: usize,
}

impl Embedding {
    /// With a table of (vocabulary, `hidden_size`).
    #[must_use]
    pub fn new(embeddings: Tensor, hidden_size: usize) -> Self {
        Self { embeddings, hidden_size }
    }

    /// The table.
    #[must_use]
    pub fn embeddings(&self) -> &Tensor {
        &self.embeddings
    }

    /// The length of a row.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}

impl From<candle_nn::Embedding> for Embedding {
    fn from(stock: candle_nn::Embedding) -> Self {
        Self::new(stock.embeddings().clone(), stock.hidden_size())
    }
}

impl Module for Embedding {
    /// The rows that `ids` (..) name, as (.., `hidden_size`). An id that is no row of the table is an error on the CPU; on other devices it
    /// is not checked.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (table, hidden_size) = (&self.embeddings, self.hidden_size);
        if !has_fused_kernels(table.device()) || !table.dtype().is_float() {
            return candle_nn::Embedding::new(table.clone(), hidden_size).forward(ids);
        }
        let &[rows, ref row @ ..] = table.dims() else {
            candle_core::bail!("expected a table (vocabulary, {hidden_size}), found {:?}", table.dims())
        };
        if row.iter().product::<usize>() != hidden_size {
            candle_core::bail!("expected a table (vocabulary, {hidden_size}), found {:?}", table.dims())
        }
        let shape = [ids.dims(), &[hidden_size]].concat();
        let table = table.contiguous()?;
        let table = if table.rank() == 2 { table } else { table.reshape((rows, hidden_size))? };
        #[cfg(feature = "cuda")]
        if table.device().is_cuda() {
            let ids = Ids::Cuda(ids.to_device(table.device())?.flatten_all()?.contiguous()?);
            return apply(Rows { ids, shape }, &[&table]);
        }
        let ids = Ids::Cpu(indices(ids, rows)?);
        apply(Rows { ids, shape }, &[&table])
    }
}

/// An [`Embedding`] with its variable `weight` of (`in_size`, `out_size`) from `vb`, drawn from the normal distribution.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder<'_>) -> Result<Embedding> {
    candle_nn::embedding(in_size, out_size, vb).map(Embedding::from)
}

enum Ids {
    Cpu(Vec<u32>),
    /// Of one dimension, where the table is.
    #[cfg(feature = "cuda")]
    Cuda(Tensor),
}

struct Rows {
    ids: Ids,
    /// Of the output.
    shape: Vec<usize>,
}

impl Rows {
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "on CUDA there are other ids"))]
    fn on_cpu(&self) -> Result<&[u32]> {
        match &self.ids {
            Ids::Cpu(ids) => Ok(ids),
            #[cfg(feature = "cuda")]
            Ids::Cuda(_) => candle_core::bail!("expected ids on the CPU"),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self) -> Result<&Tensor> {
        match &self.ids {
            Ids::Cuda(ids) => Ok(ids),
            Ids::Cpu(_) => candle_core::bail!("expected ids on the device of the table"),
        }
    }
}

impl FusedOp for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        cpu::embedding::embedding(&args[0], self.on_cpu()?, &self.shape)
    }

    fn backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cpu::embedding::embedding_back(&args[0], self.on_cpu()?, dy)?)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::embedding(&args[0], self.on_cuda()?, &self.shape)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], _: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(cuda::embedding_back(&args[0], self.on_cuda()?, dy)?)])
    }
}
