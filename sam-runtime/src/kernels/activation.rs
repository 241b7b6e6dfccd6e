//! The activation functions, shared by all backends.

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
