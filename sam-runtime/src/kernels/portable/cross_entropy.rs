//! Cross entropies.

use candle_core::{D, DType, Result, Tensor};

/// The mean over labels that are not ignored, of rows of logits.
pub(crate) fn of_labels(logits: &Tensor, target: &Tensor, smoothing: f64, ignored: Option<i64>) -> Result<Tensor> {
    let dtype = logits.dtype();
    let wide = if matches!(dtype, DType::BF16 | DType::F16) { DType::F32 } else { dtype };
    let log = candle_nn::ops::log_softmax(&logits.to_dtype(wide)?, D::Minus1)?;
    let counts = match ignored {
        Some(ignored) => target.to_dtype(DType::I64)?.ne(ignored)?,
        None => target.ones_like()?.to_dtype(DType::U8)?,
    };
    let labels = counts.where_cond(target, &target.zeros_like()?)?.to_dtype(DType::U32)?;
    let mut costs = log.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?;
    if smoothing > 0.0 {
        costs = ((costs * (1.0 - smoothing))? + (log.mean(1)? * smoothing)?)?;
    }
    let zeros = costs.zeros_like()?;
    let sum = counts.where_cond(&costs, &zeros)?.sum_all()?;
    (sum / counts.to_dtype(wide)?.sum_all()?)?.neg()?.to_dtype(dtype)
}

/// The mean over rows of logits and of probabilities.
pub(crate) fn of_probs(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let product = (candle_nn::ops::log_softmax(logits, 1)? * target)?;
    product.sum_all()? * (-1.0 / logits.dim(0)? as f64)
}

/// That of each row of logits.
pub(crate) fn of_each(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    let log = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    log.gather(&target.to_dtype(DType::U32)?.unsqueeze(1)?, 1)?.squeeze(1)?.neg()
}
