//! The gradient of a batch from the gradients of its parts.

use std::collections::HashMap;

use candle_core::{Result, TensorId};

use super::dispatch::{mix_all, number};
use crate::core::dtype::wide;
use crate::core::var_list::Gradient;

/// A weighted sum of gradients, added up in place. f16 and bf16 are added up in f32: eight shards in bf16 would leave five
/// significant bits.
#[derive(Debug, Default)]
pub(crate) struct WeightedMean {
    sums: Gradient,
    indices: HashMap<TensorId, usize>,
}

impl WeightedMean {
    pub(crate) fn add(&mut self, weight: f64, gradient: Gradient) -> Result<()> {
        let mut later = Vec::with_capacity(gradient.len());
        for (var, grad) in gradient {
            let grad = grad.to_dtype(wide(grad.dtype()))?;
            if let Some(index) = self.indices.get(&var.id()) {
                later.push((*index, grad));
            } else {
                self.indices.insert(var.id(), self.sums.len());
                self.sums.push((var, (grad * weight)?));
            }
        }
        let pairs: Vec<_> = later.iter().map(|(index, grad)| (&self.sums[*index].1, grad)).collect();
        let Some((like, _)) = pairs.first() else { return Ok(()) };
        mix_all(&pairs, &number(like, 1.0)?, &number(like, weight)?)
    }

    /// The sum, in the dtypes of the variables.
    pub(crate) fn finish(self) -> Result<Gradient> {
        self.sums.into_iter().map(|(var, grad)| Ok((var.clone(), grad.to_dtype(var.dtype())?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use super::*;

    #[test]
    fn of_parts_with_different_variables() {
        let var = |dtype| Var::zeros(2, dtype, &Device::Cpu).unwrap();
        let (a, b, c) = (var(DType::F64), var(DType::BF16), var(DType::F32));
        let of = |var: &Var, x: f64| {
            let grad = Tensor::new(&[x, -x], &Device::Cpu).unwrap().to_dtype(var.dtype()).unwrap();
            (var.clone(), grad)
        };
        let mut mean = WeightedMean::default();
        mean.add(0.5, vec![of(&a, 1.), of(&b, 2.)]).unwrap();
        mean.add(0.25, vec![of(&c, 3.), of(&b, 4.), of(&a, 5.)]).unwrap();
        mean.add(0.25, vec![of(&b, 8.)]).unwrap();
        let found = mean.finish().unwrap();
        let ids: Vec<_> = found.iter().map(|(var, _)| var.id()).collect();
        assert_eq!(ids, [a.id(), b.id(), c.id()], "in the order in which they came");
        for ((var, grad), expected) in found.iter().zip([1.75, 4., 0.75]) {
            assert_eq!(grad.dtype(), var.dtype());
            assert_eq!(grad.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), [expected, -expected]);
        }
    }

    /// 1024 parts: the eight bits of bf16 would stop early.
    #[test]
    fn half_precision_is_added_up_in_f32() {
        let var = Var::zeros(1, DType::BF16, &Device::Cpu).unwrap();
        let one = Tensor::ones(1, DType::BF16, &Device::Cpu).unwrap();
        let mut mean = WeightedMean::default();
        for _ in 0..1024 {
            mean.add(1. / 1024., vec![(var.clone(), one.clone())]).unwrap();
        }
        let (_, grad) = &mean.finish().unwrap()[0];
        assert_eq!(grad.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), [1.]);
    }
}
