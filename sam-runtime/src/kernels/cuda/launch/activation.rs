//! Launches of `activation.cu`.

use candle_core::Result;

use super::shared::{
    ELEMENTS_PER_BLOCK, ELU, GELU_ERF, GELU_TANH, HARD_SIGMOID, HARD_SWISH, LEAKY_RELU, MISH, RELU2, RELU6, SIGMOID,
    SILU, TANH,
};
use super::{KernelArg, Launcher};
use crate::kernels::activation::{Function, Gate};

/// The code of a function in the kernels, and its parameters.
fn code(function: Function) -> (u32, [f64; 2]) {
    match function {
        Function::GeluTanh => (GELU_TANH, [0.0; 2]),
        Function::GeluErf => (GELU_ERF, [0.0; 2]),
        Function::Silu => (SILU, [0.0; 2]),
        Function::Sigmoid => (SIGMOID, [0.0; 2]),
        Function::Tanh => (TANH, [0.0; 2]),
        Function::Mish => (MISH, [0.0; 2]),
        Function::Relu2 => (RELU2, [0.0; 2]),
        Function::Relu6 => (RELU6, [0.0; 2]),
        Function::HardSigmoid => (HARD_SIGMOID, [0.0; 2]),
        Function::HardSwish => (HARD_SWISH, [0.0; 2]),
        Function::LeakyRelu(slope) => (LEAKY_RELU, [slope, 0.0]),
        Function::Elu(alpha) => (ELU, [alpha, 1.0]),
        Function::Selu { alpha, gamma } => (ELU, [alpha, gamma]),
    }
}

fn args(function: Function, dtype: u32, addresses: &[u64], n: usize) -> Vec<KernelArg<'static>> {
    let (code, [a, b]) = code(function);
    let mut args = vec![KernelArg::U32(dtype), KernelArg::U32(code), KernelArg::F64(a), KernelArg::F64(b)];
    args.extend(addresses.iter().map(|address| KernelArg::U64(*address)));
    args.push(KernelArg::U64(n as u64));
    args
}

/// y = f(x), of n elements.
pub(crate) fn activation(
    launcher: &mut impl Launcher,
    function: Function,
    dtype: u32,
    [x, y]: [u64; 2],
    n: usize,
) -> Result<()> {
    launcher.launch("activation", n.div_ceil(ELEMENTS_PER_BLOCK), &args(function, dtype, &[x, y], n))
}

/// dx = f'(x) dy
pub(crate) fn activation_back(
    launcher: &mut impl Launcher,
    function: Function,
    dtype: u32,
    [x, dy, dx]: [u64; 3],
    n: usize,
) -> Result<()> {
    launcher.launch("activation_backward", n.div_ceil(ELEMENTS_PER_BLOCK), &args(function, dtype, &[x, dy, dx], n))
}

/// y, of n elements, from the halves of rows of x.
pub(crate) fn gate(launcher: &mut impl Launcher, gate: Gate, dtype: u32, [x, y]: [u64; 2], n: usize) -> Result<()> {
    gated(launcher, "gate", gate, args(gate.function, dtype, &[x, y], n), n)
}

/// dx, from dy of n elements.
pub(crate) fn gate_back(
    launcher: &mut impl Launcher,
    gate: Gate,
    dtype: u32,
    [x, dy, dx]: [u64; 3],
    n: usize,
) -> Result<()> {
    gated(launcher, "gate_backward", gate, args(gate.function, dtype, &[x, dy, dx], n), n)
}

fn gated(
    launcher: &mut impl Launcher,
    kernel: &'static str,
    gate: Gate,
    mut args: Vec<KernelArg<'static>>,
    n: usize,
) -> Result<()> {
    args.extend([KernelArg::U64(gate.half as u64), KernelArg::U32(gate.second.into())]);
    launcher.launch(kernel, n.div_ceil(ELEMENTS_PER_BLOCK), &args)
}
