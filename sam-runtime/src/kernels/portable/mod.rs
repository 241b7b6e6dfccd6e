//! Operations in candle's own, which run on any device and have gradients: what is computed where there are no kernels.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod elementwise_loss;
pub(crate) mod layer_norm;
pub(crate) mod params;
pub(crate) mod rnn;
pub(crate) mod rotary_emb;
pub(crate) mod upsample;
