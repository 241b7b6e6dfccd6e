//! Numbers of rows, or of classes, as a tensor of integers has them.

use candle_core::{DType, Device, Result, Tensor};

/// Stands for no row at all.
pub(crate) const NONE: u32 = u32::MAX;

/// The elements of `ids`, each of which is below `size`. Where it is not, the largest number of the type is [`NONE`], as in candle.
pub(crate) fn indices(ids: &Tensor, size: usize) -> Result<Vec<u32>> {
    let largest = match ids.dtype() {
        DType::U8 => u8::MAX.into(),
        DType::U32 => u32::MAX.into(),
        DType::I16 => i16::MAX.into(),
        DType::I32 => i32::MAX.into(),
        DType::I64 => i64::MAX,
        dtype => candle_core::bail!("expected indices of an integer type, found {dtype:?}"),
    };
    if u32::try_from(size).is_err() {
        candle_core::bail!("expected at most 2^32 - 1 rows to choose from, found {size}")
    }
    let ids: Vec<i64> = ids.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec1()?;
    let index = |(at, id): (usize, &i64)| match u32::try_from(*id) {
        Ok(id) if (id as usize) < size => Ok(id),
        _ if *id == largest => Ok(NONE),
        _ => candle_core::bail!("expected indices in 0..{size}, found {id} at index {at}"),
    };
    ids.iter().enumerate().map(index).collect()
}
