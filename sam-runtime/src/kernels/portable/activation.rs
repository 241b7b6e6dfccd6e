//! Activation functions.

use candle_core::{Result, Tensor};
use candle_nn::ops;

use crate::kernels::activation::Function;

impl Function {
    /// By candle's operations.
    pub(crate) fn by_candle(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluTanh => x.gelu(),
            Self::GeluErf => x.gelu_erf(),
            Self::Silu => x.silu(),
            Self::Sigmoid => ops::sigmoid(x),
            Self::Tanh => x.tanh(),
            Self::Mish => ops::mish(x),
            Self::Relu2 => x.relu()?.sqr(),
            Self::Relu6 => x.clamp(0f32, 6f32),
            Self::HardSigmoid => ops::hard_sigmoid(x),
            Self::HardSwish => x * ops::hard_sigmoid(x)?,
            Self::LeakyRelu(slope) => ops::leaky_relu(x, slope),
            Self::Elu(alpha) => x.elu(alpha),
            Self::Selu { alpha, gamma } => ops::selu(x, alpha as f32, gamma as f32),
        }
    }
}
