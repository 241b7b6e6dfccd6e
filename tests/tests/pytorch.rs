//! Twenty steps of SAM over SGD end where PyTorch's do.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{Result, Tensor, Var};
use candle_nn::Optimizer;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::sam;
use sam_tests::{Net, device, values};

#[sam(rho = 0.2)]
fn loss(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

/// Numbers that take no generator.
fn wave(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let wave = (0..n).map(|i| (i as f64 * 0.7 + shape.len() as f64).sin() * 0.5);
    Tensor::from_vec(wave.collect::<Vec<_>>(), shape, device()).unwrap()
}

/// Losses of torch 2.15:
///
/// ```python
/// torch.set_default_dtype(torch.float64)
/// def wave(*shape):
///     return torch.sin(torch.arange(torch.tensor(shape).prod().item()) * 0.7 + len(shape)).reshape(shape) * 0.5
/// ps = [wave(8, 6), wave(8), wave(3, 8), wave(3)]
/// for p in ps: p.requires_grad_()
/// x, y = wave(12, 6), torch.arange(12) % 3
/// def loss(): return F.cross_entropy(F.linear(torch.tanh(F.linear(x, ps[0], ps[1])), ps[2], ps[3]), y)
/// opt = torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
/// for _ in range(20):
///     l = loss(); l.backward()
///     norm = torch.stack([p.grad.norm() for p in ps]).norm()
///     with torch.no_grad():
///         old = [p.clone() for p in ps]
///         for p in ps: p.add_(p.grad * (0.2 / norm))
///     opt.zero_grad(); loss().backward()
///     with torch.no_grad():
///         for p, o in zip(ps, old): p.copy_(o)
///     opt.step(); opt.zero_grad()
/// ```
#[test]
fn equals_pytorch() {
    let shapes: [&[usize]; 4] = [&[8, 6], &[8], &[3, 8], &[3]];
    let net = Net { vars: shapes.map(|shape| Var::from_tensor(&wave(shape)).unwrap()) };
    let labels: Vec<u32> = (0..12).map(|i| i % 3).collect();
    let (x, y) = (wave(&[12, 6]), Tensor::from_vec(labels, 12, device()).unwrap());
    let params = ParamsSgd { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 5e-4 };
    let mut sgd = Sgd::new(net.vars.to_vec(), params).unwrap();
    let mut losses = Vec::new();
    for _ in 0..20 {
        let loss = loss(&net, &x, &y).unwrap();
        sgd.backward_step(&loss).unwrap();
        losses.push(values(&loss)[0]);
    }
    for (step, expected) in [
        (0, 1.027_221_708_469_269_2),
        (1, 0.923_705_739_363_119_2),
        (9, 0.130_768_527_583_151_4),
        (19, 0.008_965_451_015_885_752),
    ] {
        assert!((losses[step] - expected).abs() < 1e-12, "step {step}: {} and {expected}", losses[step]);
    }
}
