//! What is particular about CUDA. The other files run there too, with `SAM_TEST_DEVICE=cuda`.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Conv2dConfig, Module, ModuleT, Optimizer, VarBuilder, VarMap};
use sam_runtime::nn::attention::{AttnMask, self_attention};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_runtime::{Sam, nn, skipped_step_count};
use sam_tests::{bits, copy, device, tensor, values};

/// The CUDA device that tests are to run on, if they are.
fn cuda() -> Option<&'static Device> {
    let cuda = Some(device()).filter(|device| device.is_cuda());
    if cuda.is_none() {
        eprintln!("skipped: SAM_TEST_DEVICE names no CUDA device that is there");
    }
    cuda
}

/// A layer of each kind.
struct Net {
    vars: VarMap,
    conv: nn::Conv2d,
    norm: nn::BatchNorm,
    strided: nn::Conv2d,
    head: nn::Linear,
}

impl Net {
    fn new(dtype: DType, device: &Device) -> Self {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, dtype, device);
        let config = Conv2dConfig { padding: 1, ..Default::default() };
        let net = Self {
            conv: nn::conv2d_no_bias(3, 8, 3, config, vb.pp("conv")).unwrap(),
            norm: nn::batch_norm(8, 1e-5, vb.pp("norm")).unwrap(),
            strided: nn::conv2d(8, 16, 3, Conv2dConfig { stride: 2, ..config }, vb.pp("strided")).unwrap(),
            head: nn::linear(16, 5, vb.pp("head")).unwrap(),
            vars,
        };
        for (i, (_, var)) in net.named().iter().filter(|(name, _)| !name.contains("running")).enumerate() {
            var.set(&tensor(var.dims(), dtype, i as u64).to_device(device).unwrap()).unwrap();
        }
        net
    }

    fn named(&self) -> Vec<(String, Var)> {
        let vars = self.vars.data().lock().unwrap();
        let mut named: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
        named.sort_by(|(a, _), (b, _)| a.cmp(b));
        named
    }

    fn loss(&self, x: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let y = self.norm.forward_relu(&self.conv.forward(x)?, true)?;
        let y = nn::add(&self.norm.forward_add_relu(&y, &y, true)?, &self.norm.forward_t(&y, true)?)?;
        let y = nn::max_pool2d(&self.strided.forward(&y)?, 3, 2, 1)?;
        let logits = self.head.forward(&nn::relu(&nn::global_avg_pool2d(&y)?)?)?;
        nn::cross_entropy_with_label_smoothing(&nn::to_dtype(&logits, self.norm.running_mean().dtype())?, labels, 0.1)
    }

    /// The loss of a SAM step, the gradients and the running statistics.
    fn step(&self, x: &Tensor, labels: &Tensor) -> Vec<Tensor> {
        let loss = Sam::new(0.1).loss(|| self.loss(x, labels)).unwrap();
        let grads = loss.backward().unwrap();
        let of = |(_, var): &(String, Var)| grads.get(var).map_or_else(|| var.as_detached_tensor(), Tensor::detach);
        std::iter::once(loss.detach()).chain(self.named().iter().map(of)).collect()
    }
}

#[test]
fn a_step_of_every_layer_agrees_with_the_cpu_in_f64() {
    let Some(cuda) = cuda() else { return };
    let x = tensor(&[12, 3, 14, 14], DType::F64, 9).to_device(&Device::Cpu).unwrap();
    let labels = Tensor::from_vec((0..12u32).map(|i| i % 5).collect::<Vec<_>>(), 12, &Device::Cpu).unwrap();
    let expected = Net::new(DType::F64, &Device::Cpu).step(&x, &labels);
    let there = labels.to_device(cuda).unwrap();
    // What the network computes in, the type of its weights, and the order of its images in memory.
    let types = [(DType::F64, DType::F64, 1e-9), (DType::F32, DType::F32, 1e-3), (DType::BF16, DType::F32, 0.2)];
    for ((inner, outer, tolerance), last) in types.into_iter().flat_map(|types| [(types, false), (types, true)]) {
        let net = Net::new(outer, cuda);
        let x = x.to_device(cuda).unwrap().to_dtype(inner).unwrap();
        let found = net.step(&if last { nn::channels_last(&x).unwrap() } else { x }, &there);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.dtype(), found.dims()), (outer, expected.dims()));
            let (a, b) = (values(found), values(expected));
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            let size = norm(&mut b.iter().copied());
            assert!(off <= tolerance * (size + 1e-3), "{inner:?}, {:?}: {off} of {size}", found.dims());
        }
    }
}

#[test]
fn the_same_bits_every_time() {
    let Some(cuda) = cuda() else { return };
    let x = tensor(&[12, 3, 14, 14], DType::F32, 9).to_device(cuda).unwrap();
    let labels = Tensor::zeros(12, DType::U32, cuda).unwrap();
    let step = || Net::new(DType::F32, cuda).step(&x, &labels).iter().map(bits).collect::<Vec<_>>();
    assert_eq!(step(), step());
}

#[test]
fn dropout_draws_the_masks_of_the_cpu() {
    let Some(cuda) = cuda() else { return };
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let x = tensor(&[1000], dtype, 1).to_device(&Device::Cpu).unwrap();
        let [here, there] = [&Device::Cpu, cuda].map(|device| {
            let (dropout, x) = (nn::Dropout::seeded(0.3, 7), x.to_device(device).unwrap());
            (0..3).map(|_| bits(&dropout.forward(&x, true).unwrap())).collect::<Vec<_>>()
        });
        assert_eq!(here, there, "{dtype:?}");
    }
}

/// Nothing turns them back on the way.
#[test]
fn layers_keep_channels_last() {
    let Some(cuda) = cuda() else { return };
    let (net, draws) = (Net::new(DType::F32, cuda), nn::RngStream::new(1));
    let x = nn::channels_last(&tensor(&[4, 3, 8, 8], DType::F32, 1)).unwrap();
    let a = net.conv.forward(&x).unwrap();
    let b = net.norm.forward_add_relu(&a, &a.contiguous().unwrap(), true).unwrap();
    let c = nn::Dropout::seeded(0.3, 7).forward(&nn::relu(&nn::add(&b, &a).unwrap()).unwrap(), true).unwrap();
    let d = nn::ShakeShake::new(draws.clone()).forward(&c, &b, true).unwrap();
    let e = nn::ShakeDrop::new(0.5, draws).forward(&d, true).unwrap();
    for y in [&a, &b, &c, &d, &e] {
        assert_eq!((y.dims(), y.stride()), (&[4, 8, 8, 8][..], &[512, 1, 64, 8][..]));
    }
    let pooled = nn::max_pool2d(&e, 2, 2, 0).unwrap();
    assert_eq!((pooled.dims(), pooled.stride()), (&[4, 8, 4, 4][..], &[128, 1, 32, 8][..]));
}

/// On the stub driver, which writes what a step asks of the device to a file.
#[test]
fn a_step_does_not_synchronize() {
    let (Some(cuda), Some(trace)) = (cuda(), std::env::var_os("EMULATED_TRACE")) else {
        eprintln!("skipped: only a driver that writes down what it is asked for can tell");
        return;
    };
    let net = Net::new(DType::F32, cuda);
    let vars = net.named().into_iter().filter(|(name, _)| !name.contains("running")).map(|(_, var)| var).collect();
    let (sam, mut sgd) = (Sam::new(0.1), Sgd::new(vars, ParamsSgd { momentum: 0.9, ..Default::default() }).unwrap());
    for dtype in [DType::F32, DType::BF16] {
        let x = nn::channels_last(&tensor(&[6, 3, 8, 8], DType::F32, 1).to_dtype(dtype).unwrap()).unwrap();
        let labels = Tensor::zeros(6, DType::I64, cuda).unwrap();
        let mut step = || sgd.backward_step(&sam.loss(|| net.loss(&x, &labels)).unwrap()).unwrap();
        // cuDNN's plans are timed, and what stays is allocated.
        step();
        let before = std::fs::read_to_string(&trace).unwrap().lines().count();
        step();
        let step = std::fs::read_to_string(&trace).unwrap();
        let step: Vec<_> = step.lines().skip(before).collect();
        assert!(step.iter().any(|line| line.starts_with("perturb_linear on")), "{step:?}");
        let by_cudnn = step.iter().filter(|line| line.starts_with("convolution")).count();
        assert_eq!(by_cudnn, if std::env::var_os("EMULATED_CUDNN").is_some() { 10 } else { 0 });
        // Neither waits, nor words to and from the host, nor candle's sums with zeros. In each of the two passes there is
        // one constant, the loss's own gradient, and the norm's two variables are used three times.
        for (other, most) in [("wait", 0), ("to the", 0), ("const_set", 2), ("badd", 8)] {
            let found: Vec<_> = step.iter().filter(|line| line.starts_with(other)).collect();
            assert!(found.len() <= most, "{dtype:?}: {found:?}");
        }
    }
}

/// On the stub driver: what is left to cuDNN, and what is not.
#[test]
fn attention_is_cudnns() {
    let (Some(cuda), Some(trace)) = (cuda(), std::env::var_os("EMULATED_TRACE")) else {
        eprintln!("skipped: only a driver that writes down what it is asked for can tell");
        return;
    };
    let by_cudnn = |tokens: usize, dim: usize, mask: &AttnMask, dropout: Option<&nn::Dropout>, dtype: DType| {
        let qkv = copy(&tensor(&[2, tokens, 3 * 2 * dim], dtype, 1));
        let before = std::fs::read_to_string(&trace).unwrap().lines().count();
        let y = self_attention(&qkv, 2, mask, dropout, None).unwrap();
        nn::backward(&y.to_dtype(DType::F32).unwrap().sum_all().unwrap()).unwrap();
        let calls = std::fs::read_to_string(&trace).unwrap();
        let calls: Vec<_> = calls.lines().skip(before).filter(|line| line.starts_with("attention")).collect();
        let graphs = calls.iter().filter(|line| line.ends_with(" operations")).count();
        // Each plan replaces all kernels of its pass.
        assert_eq!((graphs, calls.len()), if graphs > 0 { (2, 2) } else { (0, 4) }, "{calls:?}");
        graphs > 0
    };
    let (none, causal) = (AttnMask::None, AttnMask::causal());
    let is_on = std::env::var_os("EMULATED_CUDNN").is_some();
    for dtype in [DType::BF16, DType::F16] {
        for mask in [&none, &causal, &AttnMask::causal_with_offset(3)] {
            assert_eq!(by_cudnn(40, 16, mask, None, dtype), is_on);
        }
    }
    let (dropout, all) = (nn::Dropout::seeded(0.3, 7), Tensor::ones((40, 40), DType::U8, cuda).unwrap());
    assert!(!by_cudnn(40, 16, &none, None, DType::F32), "a type that it has no kernels for");
    assert!(!by_cudnn(40, 16, &none, Some(&dropout), DType::BF16), "random numbers of ours");
    assert!(!by_cudnn(40, 16, &AttnMask::Mask(all), None, DType::BF16), "a mask, which may hide all keys");
    assert!(!by_cudnn(40, 12, &none, None, DType::BF16), "rows that are not aligned");
    assert!(!by_cudnn(8, 16, &none, None, DType::BF16), "a text that grows");
}

/// Outputs of one pixel or of one channel lie both ways at once, and what is behind them may not be taken for planes.
#[test]
fn outputs_that_do_not_tell_their_format() {
    let Some(_) = cuda() else { return };
    let config = |stride| Conv2dConfig { padding: 1, stride, ..Default::default() };
    for (shape, filters, stride) in [([3, 8, 2, 2], 5, 2), ([3, 8, 6, 6], 1, 1), ([2, 1, 6, 6], 4, 1)] {
        let w = copy(&tensor(&[filters, shape[1], 3, 3], DType::F32, 2));
        let x = copy(&tensor(&shape, DType::F32, 1));
        let gradients = |last: bool| {
            let images = if last { nn::channels_last(&x).unwrap() } else { x.as_tensor().clone() };
            // Through a layer, so that the gradient comes from one.
            let y = nn::Conv2d::new(w.as_tensor().clone(), None, config(stride)).forward(&nn::relu(&images).unwrap());
            let loss = nn::relu(&y.unwrap()).unwrap().sqr().unwrap().sum_all().unwrap();
            let grads = nn::backward(&loss).unwrap();
            [&x, &w].map(|var| values(grads.get(var).unwrap()))
        };
        for (found, expected) in gradients(true).iter().zip(&gradients(false)) {
            assert!(expected.iter().any(|g| *g != 0.0));
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{shape:?}");
        }
    }
}

/// Memory that begins anywhere, which cuDNN's plans are not made for.
#[test]
fn images_that_begin_anywhere() {
    let Some(cuda) = cuda() else { return };
    let net = Net::new(DType::F32, cuda);
    let x = tensor(&[5 * 3 * 7 * 9 + 1], DType::F32, 1).narrow(0, 1, 5 * 3 * 7 * 9).unwrap();
    let x = x.reshape((5, 3, 7, 9)).unwrap();
    let odd = x.narrow(0, 1, 4).unwrap();
    let odd_last = nn::channels_last(&x).unwrap().narrow(0, 1, 4).unwrap();
    let expected = values(&net.conv.forward(&odd.copy().unwrap().force_contiguous().unwrap()).unwrap());
    for x in [&odd, &odd_last] {
        let found = values(&net.conv.forward(x).unwrap());
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

/// Values are not checked: the gradient is the plain one, the weights stay, and the device keeps count.
#[test]
fn a_gradient_that_is_not_finite_is_counted() {
    let Some(cuda) = cuda() else { return };
    let (w, zero) = (copy(&tensor(&[4], DType::F32, 1)), Var::zeros(3, DType::F32, cuda).unwrap());
    let (before, count) = (bits(&w), skipped_step_count(cuda).unwrap());
    let loss = || -> Result<Tensor> { w.sqr()?.sum_all()? + zero.sqrt()?.sum_all()? };
    let grads = Sam::new(0.1).loss(loss).unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&w).unwrap()), values(&(w.as_detached_tensor() * 2.0).unwrap()));
    assert_eq!((bits(&w), skipped_step_count(cuda).unwrap()), (before, count + 1));
}
