//! Embeddings on tensors.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{DType, Result, Storage, Tensor};

use super::buffers::{Output, UninitTensor, address_of, device, device_ptr};
use super::context::with_context;
use super::launch::dtype_code;
use super::launch::embedding::Table;
use crate::core::image_layout::ImageLayout;

/// The rows `ids` of a table, by candle.
pub(crate) fn embedding(table: &Tensor, ids: &Tensor, shape: &[usize]) -> Result<Output> {
    let ((from, layout), (ids, ids_layout)) = (table.storage_and_layout(), ids.storage_and_layout());
    match (&*from, &*ids) {
        (Storage::Cuda(from), Storage::Cuda(ids)) => Ok((from.index_select(ids, layout, ids_layout, 0)?, shape.into())),
        _ => candle_core::bail!("expected tensors on a CUDA device"),
    }
}

/// The gradient of the table.
pub(crate) fn embedding_back(table: &Tensor, ids: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (rows, columns) = table.dims2()?;
    let (ids, here) = (ids.to_dtype(DType::I64)?, device(table)?);
    let storage = here.zeros_impl(table.shape(), table.dtype())?;
    let dx = UninitTensor { storage, shape: table.shape().clone(), format: ImageLayout::Nchw };
    let sizes = Table { dtype: dtype_code(table.dtype())?, rows, columns, tokens: ids.elem_count() };
    let addresses = [address_of(&ids)?, device_ptr(dy)?.address, dx.address()?];
    with_context(here, |context| sizes.backward(context, addresses))?;
    dx.tensor()
}
