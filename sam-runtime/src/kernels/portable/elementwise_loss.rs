//! Losses of each element.

use candle_core::{Result, Tensor};

use crate::kernels::elementwise_loss::Loss;

impl Loss {
    /// The mean, by candle's operations.
    pub(crate) fn by_candle(self, x: &Tensor, target: &Tensor) -> Result<Tensor> {
        match self {
            Self::Square => candle_nn::loss::mse(x, target),
            Self::Huber(delta) => candle_nn::loss::huber(x, target, delta),
            // ln(1 + eˣ) = (x + |x|) / 2 + ln(1 + exp(-|x|)): also the gradient is right at 0, where |x| has none in candle.
            Self::LogitEntropy => {
                let size = x.abs()?;
                let log = (size.neg()?.exp()? + 1.0)?.log()?;
                let line = (((x + size)? * 0.5)? - (x * target)?)?;
                (log + line)?.mean_all()
            }
        }
    }
}
