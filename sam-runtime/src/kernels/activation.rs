//! The activation functions, shared by all backends.

use candle_core::{Result, Tensor};

/// A function that is applied to each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    /// With tanh in place of erf.
    GeluTanh,
    GeluErf,
    Silu,
    Sigmoid,
    Tanh,
    Mish,
    Relu2,
    Relu6,
    HardSigmoid,
    HardSwish,
    /// The slope of negative numbers, which is not 0.
    LeakyRelu(f64),
    /// α
    Elu(f64),
    Selu {
        alpha: f64,
        gamma: f64,
    },
}

/// The halves of the last dimension: `function`, which is `Silu` or `Sigmoid`, of one of them, times the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub(crate) function: Function,
    /// Elements of a half.
    pub(crate) half: usize,
    /// Whether the function is applied to the second half.
    pub(crate) second: bool,
}

impl Function {
    /// By candle's operations, for devices without a kernel.
    pub(crate) fn by_candle(self, x: &Tensor) -> Result<Tensor> {
        use candle_nn::ops;
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
