//! How a batch is cut into parts, and how much each part counts in the loss of the whole.

use candle_core::{DType, Device, Result, Tensor};

use crate::core::error::Error;

/// One non-negative number per sample: how much the sample counts in the loss of a batch.
///
/// Implemented for slices, vectors and arrays of `f32`, `f64`, `u32` and `usize`, for tensors of rank 1 of any numeric
/// dtype, which are copied to the host, and for references to all of these.
///
/// A loss that is a mean over something other than samples takes the number of these things in each sample. For a
/// language model whose loss is the mean over all tokens of the batch that is the number of tokens:
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor, Var};
/// use sam_runtime::Sam;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[1f64, 2.], &Device::Cpu)?;
/// // Three sequences; 0 pads them.
/// let mask = Tensor::new(&[[1f64, 1.], [1., 0.], [1., 1.]], &Device::Cpu)?;
/// let mean_of_tokens = |mask: &Tensor| -> Result<Tensor> {
///     mask.broadcast_mul(&w.sqr()?)?.sum_all()?.div(&mask.sum_all()?)
/// };
///
/// let sam = Sam::new(0.05);
/// let selection = sam.micro_batches(2)?.split(&mask)?.weights(&mask.sum(1)?)?;
/// let mut part = |_| mean_of_tokens(&selection.of(&mask)?);
/// let loss: Tensor = selection.ascend(&mut part)?.perturb()?.descend(&mut part)?.restore::<candle_core::Error>()?;
/// assert_eq!(loss.to_scalar::<f64>()?, mean_of_tokens(&mask)?.to_scalar::<f64>()?);
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not hold the weights of samples",
    label = "expected a tensor of rank 1, or a slice, vector or array of `f64`, `f32`, `usize` or `u32`"
)]
pub trait Weights {
    /// The weight of each sample, in the order of the batch.
    ///
    /// # Errors
    /// If this is a tensor of another rank than 1, or cannot be read.
    fn to_weights(&self) -> Result<Vec<f64>>;
}

impl Weights for Tensor {
    fn to_weights(&self) -> Result<Vec<f64>> {
        if self.rank() != 1 {
            candle_core::bail!("expected one weight for each sample, found a tensor of shape {:?}", self.shape())
        }
        self.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
    }
}

macro_rules! weights {
    ($($number:ty, $to:expr;)*) => {$(
        impl Weights for [$number] {
            fn to_weights(&self) -> Result<Vec<f64>> {
                Ok(self.iter().map($to).collect())
            }
        }
    )*};
}

weights! {
    f64, |weight| *weight;
    f32, |weight| f64::from(*weight);
    u32, |weight| f64::from(*weight);
    usize, |weight| *weight as f64;
}

impl<T> Weights for Vec<T>
where
    [T]: Weights,
{
    fn to_weights(&self) -> Result<Vec<f64>> {
        self.as_slice().to_weights()
    }
}

impl<T, const N: usize> Weights for [T; N]
where
    [T]: Weights,
{
    fn to_weights(&self) -> Result<Vec<f64>> {
        self.as_slice().to_weights()
    }
}

impl<T: Weights + ?Sized> Weights for &T {
    fn to_weights(&self) -> Result<Vec<f64>> {
        T::to_weights(self)
    }
}

/// How the losses of the parts of a batch make the loss of the whole.
#[derive(Clone, Debug, Default)]
pub(crate) enum Shares {
    /// A mean over samples.
    #[default]
    Samples,
    /// A sum over samples.
    Sum,
    /// A mean with these weights, relative to the largest of them.
    Weights(Vec<f64>),
}

/// The samples of a batch that is cut into parts, and how these count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Division {
    /// The number of samples, once an argument or weights were named.
    pub(crate) rows: Option<usize>,
    pub(crate) shares: Shares,
}

impl Division {
    /// Names an argument with so many rows.
    pub(crate) fn add_rows(&mut self, found: usize) -> Result<()> {
        if found == 0 || self.rows.is_some_and(|known| known != found) {
            Err(Error::Rows(self.rows.unwrap_or(found), found))?;
        }
        self.rows = Some(found);
        Ok(())
    }

    pub(crate) fn set_weights(&mut self, weights: &(impl Weights + ?Sized)) -> Result<()> {
        let weights = relative(weights)?;
        self.add_rows(weights.len())?;
        self.shares = Shares::Weights(weights);
        Ok(())
    }

    /// The parts of a batch, of `size` samples each; one part without a size.
    pub(crate) fn parts(&self, size: Option<usize>) -> Vec<Part> {
        let rows = self.rows.unwrap_or(1);
        self.shares.cut(rows, size.unwrap_or(rows))
    }
}

/// Consecutive samples of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// What its loss is multiplied by in the loss of the whole.
    pub(crate) weight: f64,
}

impl Shares {
    /// Parts of `size` samples, the last one of what remains. Two remainders join a neighbor instead: a single sample,
    /// which a batch normalization cannot normalize, and samples without weight, whose mean loss would be 0 / 0.
    fn cut(&self, rows: usize, size: usize) -> Vec<Part> {
        let mut ranges: Vec<(usize, usize)> = Vec::with_capacity(rows.div_ceil(size));
        for start in (0..rows).step_by(size) {
            let len = size.min(rows - start);
            match ranges.last_mut() {
                Some((before, joined))
                    if (len == 1 && size > 1)
                        || self.is_weightless(start, len)
                        || self.is_weightless(*before, *joined) =>
                {
                    *joined += len;
                }
                _ => ranges.push((start, len)),
            }
        }
        ranges.into_iter().map(|(start, len)| Part { start, len, weight: self.weight(start, len, rows) }).collect()
    }

    fn is_weightless(&self, start: usize, len: usize) -> bool {
        match self {
            Self::Weights(weights) => weights[start..start + len].iter().all(|weight| *weight == 0.0),
            Self::Samples | Self::Sum => false,
        }
    }

    fn weight(&self, start: usize, len: usize, rows: usize) -> f64 {
        match self {
            Self::Samples => len as f64 / rows as f64,
            Self::Sum => 1.0,
            Self::Weights(weights) => weights[start..start + len].iter().sum::<f64>() / weights.iter().sum::<f64>(),
        }
    }
}

/// Weights relative to the largest of them, whose sum does not overflow.
fn relative(weights: &(impl Weights + ?Sized)) -> Result<Vec<f64>> {
    let weights = weights.to_weights()?;
    let expected = "finite numbers, 0 or more";
    if let Some(&value) = weights.iter().find(|weight| !(weight.is_finite() && **weight >= 0.0)) {
        Err(Error::Setting { what: "weights", value, expected })?;
    }
    let largest = weights.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        Err(Error::Settings { what: "weights", why: "at least one of them has to be above 0" })?;
    }
    Ok(weights.into_iter().map(|weight| weight / largest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(shares: &Shares, rows: usize, size: usize) -> Vec<(usize, usize, f64)> {
        shares.cut(rows, size).into_iter().map(|part| (part.start, part.len, part.weight)).collect()
    }

    #[test]
    fn remainders() {
        assert_eq!(cut(&Shares::Samples, 10, 4), [(0, 4, 0.4), (4, 4, 0.4), (8, 2, 0.2)]);
        assert_eq!(cut(&Shares::Samples, 9, 4), [(0, 4, 4. / 9.), (4, 5, 5. / 9.)]);
        assert_eq!(cut(&Shares::Samples, 3, 2), [(0, 3, 1.)]);
        assert_eq!(cut(&Shares::Samples, 2, 1), [(0, 1, 0.5), (1, 1, 0.5)]);
        assert_eq!(cut(&Shares::Samples, 1, 4), [(0, 1, 1.)]);
        assert_eq!(cut(&Shares::Sum, 9, 4), [(0, 4, 1.), (4, 5, 1.)]);
    }

    #[test]
    fn weights() {
        let weights = Shares::Weights(relative(&[3usize, 1, 0, 0, 4, 0]).unwrap());
        assert_eq!(cut(&weights, 6, 2), [(0, 4, 0.5), (4, 2, 0.5)]);
        let late = Shares::Weights(relative(&vec![0f64, 0., 0., 0., 1., 3.]).unwrap());
        assert_eq!(cut(&late, 6, 2), [(0, 6, 1.)]);
        let large = Shares::Weights(relative(&[f64::MAX; 4]).unwrap());
        assert_eq!(cut(&large, 4, 2), [(0, 2, 0.5), (2, 2, 0.5)]);
        for bad in [vec![1., f64::NAN], vec![-1., 2.], vec![f64::INFINITY], vec![0., 0.], vec![]] {
            assert!(relative(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn all_arguments_have_as_many_rows() {
        let mut division = Division::default();
        assert_eq!(division.parts(Some(4)).len(), 1);
        division.add_rows(6).unwrap();
        division.add_rows(6).unwrap();
        assert!(division.add_rows(5).is_err() && division.set_weights(&[1f64; 5]).is_err());
        assert!(matches!((division.rows, &division.shares), (Some(6), Shares::Samples)));
        division.set_weights(&[1f64; 6]).unwrap();
        assert_eq!((division.parts(Some(2)).len(), division.parts(None).len()), (3, 1));
        assert!(Division::default().add_rows(0).is_err());
    }
}
