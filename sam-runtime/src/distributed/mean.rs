//! The mean over the ranks of a list of tensors, in flat buckets.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};

use super::action::{Action, Contents};
use super::comm::Comm;
use super::digest::Digest;
use crate::core::dtype::wide;
use crate::core::identity::number_of;
use crate::core::var_list::Gradient;

/// As PyTorch's `DistributedDataParallel` has them: large enough for the bandwidth, small next to the model.
const BUCKET_BYTES: usize = 25 << 20;

impl Comm {
    /// Replaces the gradients of these variables by their means over the ranks, once after several backward passes whose
    /// gradients were added (accumulation): with one pass a step `#[sam(all_reduce = comm)]` does it.
    ///
    /// ```
    /// use candle_core::{DType, Device, Result, Var};
    /// use sam_runtime::distributed::Comm;
    ///
    /// # fn main() -> Result<()> {
    /// # let world = Comm::solo();
    /// let w = Var::ones(3, DType::F32, &Device::Cpu)?;
    /// let mut gradients = w.sqr()?.sum_all()?.backward()?;
    /// world.average_gradients(&mut gradients, [w])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the ranks have gradients of other variables; none has changed then.
    pub fn average_gradients(&self, gradients: &mut GradStore, vars: impl IntoIterator<Item = Var>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let vars = vars.into_iter().filter(|var| seen.insert(var.id()));
        let found: Gradient = vars.filter_map(|var| Some((var.clone(), gradients.get(&var)?.clone()))).collect();
        for (var, mean) in self.mean_of(Action::Gradients, found)? {
            gradients.insert(&var, mean);
        }
        Ok(())
    }

    /// The mean over the ranks of each of these tensors, in buffers of their own. The result has the order of the list; what is
    /// sent has that in which the variables were made, which is the same on all ranks of one program.
    ///
    /// Half precision is reduced in f32.
    pub(crate) fn mean_of(&self, action: Action, tensors: Gradient) -> Result<Gradient> {
        if self.size() == 1 {
            return Ok(tensors);
        }
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|index| number_of(tensors[*index].0.id()));
        let ordered: Vec<&Tensor> = order.iter().map(|index| &tensors[*index].1).collect();
        self.agree(action, contents(&ordered), 0)?;

        let mut means = Vec::with_capacity(ordered.len());
        let mut rest = &ordered[..];
        while !rest.is_empty() {
            let (bucket, others) = rest.split_at(bucket_len(rest));
            means.extend(self.mean_of_bucket(bucket)?);
            rest = others;
        }
        let mut means: Vec<_> = order.into_iter().zip(means).collect();
        means.sort_unstable_by_key(|(index, _)| *index);
        let vars = tensors.into_iter().map(|(var, _)| var);
        Ok(vars.zip(means).map(|(var, (_, mean))| (var, mean)).collect::<Vec<(Var, Tensor)>>())
    }

    fn mean_of_bucket(&self, bucket: &[&Tensor]) -> Result<Vec<Tensor>> {
        let Some(first) = bucket.first() else { return Ok(Vec::new()) };
        let flat = |tensor: &&Tensor| tensor.detach().flatten_all()?.to_dtype(wide(tensor.dtype()));
        let flat = Tensor::cat(&bucket.iter().map(flat).collect::<Result<Vec<_>>>()?, 0)?;
        let mean = if flat.elem_count() == 0 {
            flat
        } else {
            (self.collective().all_reduce_sum(&flat)? / self.size() as f64)?
        };
        if let [_] = bucket {
            return Ok(vec![mean.reshape(first.shape())?.to_dtype(first.dtype())?]);
        }
        let mut start = 0;
        let part = |tensor: &&Tensor| {
            let len = tensor.elem_count();
            let part = mean.narrow(0, start, len)?.force_contiguous()?.reshape(tensor.shape())?;
            start += len;
            part.to_dtype(tensor.dtype())
        };
        bucket.iter().map(part).collect()
    }
}

pub(super) fn contents(tensors: &[&Tensor]) -> Contents {
    let mut digest = Digest::default();
    // Of two GPUs each is connected with another one of each rank, and the CPU by other means.
    let mut devices: Vec<&Device> = Vec::new();
    for tensor in tensors {
        let device = devices.iter().position(|device| device.same_device(tensor.device())).unwrap_or_else(|| {
            devices.push(tensor.device());
            devices.len() - 1
        });
        digest.add(&[device as u8, tensor.device().is_cpu().into()]);
        digest.add(tensor.dtype().as_str().as_bytes());
        for dim in tensor.dims() {
            digest.add(&dim.to_le_bytes());
        }
        digest.add(b";");
    }
    let elements = tensors.iter().map(|tensor| tensor.elem_count() as u64).sum();
    Contents { tensors: tensors.len() as u64, elements, digest: digest.finish() }
}

/// How many of these tensors, at least one, the first bucket has: of one accumulation dtype and one device.
fn bucket_len(tensors: &[&Tensor]) -> usize {
    let Some(first) = tensors.first() else { return 0 };
    let bytes = |tensor: &Tensor| tensor.elem_count() * wide(tensor.dtype()).size_in_bytes();
    let mut sum = bytes(first);
    let fits = |tensor: &&&Tensor| {
        sum += bytes(tensor);
        sum <= BUCKET_BYTES
            && wide(tensor.dtype()) == wide(first.dtype())
            && tensor.device().same_device(first.device())
    };
    1 + tensors.iter().skip(1).take_while(fits).count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn buckets_have_one_dtype_and_25_mb() {
        let zeros = |len: usize, dtype| Tensor::zeros(len, dtype, &Device::Cpu).unwrap();
        let (small, half, double) = (zeros(8, DType::F32), zeros(8, DType::BF16), zeros(8, DType::F64));
        let large = zeros(BUCKET_BYTES / 4, DType::F32);
        assert_eq!(bucket_len(&[&small, &half, &double, &small]), 2);
        assert_eq!(bucket_len(&[&large, &small]), 1);
        assert_eq!(bucket_len(&[&small, &large]), 1);
        assert_eq!(bucket_len(&[]), 0);
    }

    #[test]
    fn contents_tell_shapes_and_dtypes_apart() {
        let zeros = |shape: (usize, usize), dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let [a, b, c] = [zeros((2, 3), DType::F32), zeros((3, 2), DType::F32), zeros((2, 3), DType::F64)];
        assert_ne!(contents(&[&a]), contents(&[&b]));
        assert_ne!(contents(&[&a]), contents(&[&c]));
        assert_ne!(contents(&[&a, &b]), contents(&[&b, &a]));
        assert_eq!(contents(&[&a, &b]), contents(&[&a.copy().unwrap(), &b]));
    }
}
