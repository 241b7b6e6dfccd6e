//! The layers of `sam_runtime::nn`: values and gradients of plain loops and of candle's own operations.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{BatchNormConfig, Conv2dConfig, Module, ModuleT, VarBuilder, VarMap};
use proptest::prelude::*;
use sam_runtime::nn;
use sam_tests::{bits, device, is_for_the_cpu, tensor, values};

/// Relative to the largest of the numbers.
fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> std::result::Result<(), TestCaseError> {
    prop_assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let scale = b.iter().fold(1e-3_f64, |m, b| m.max(b.abs()));
    for (a, b) in a.iter().zip(&b) {
        prop_assert!((a - b).abs() <= tolerance * scale, "{} and {}, largest {}", a, b, scale);
    }
    Ok(())
}

/// The output of `f`, and the gradients of all inputs.
fn run(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], seed: u64) -> (Tensor, Vec<Tensor>) {
    let (y, grads) = sam_tests::run(f, inputs, seed);
    (y, grads.into_iter().map(Option::unwrap).collect())
}

#[derive(Clone, Debug)]
struct Case {
    x: [usize; 4],
    w: [usize; 4],
    config: Conv2dConfig,
    bias: bool,
}

fn case() -> impl Strategy<Value = Case> {
    prop_oneof![any_kernel(), of_many_channels()]
}

/// 3x3, stride 1, and channels enough for fewer multiplications.
fn of_many_channels() -> impl Strategy<Value = Case> {
    (1usize..9, 8usize..40, 8usize..40, 1usize..10, 1usize..10, 0usize..3, 1usize..3, any::<bool>()).prop_map(
        |(n, c, f, h, w, padding, groups, bias)| {
            let [h, w] = [h, w].map(|side| side.max(3_usize.saturating_sub(2 * padding)));
            Case {
                x: [n, c * groups, h, w],
                w: [f * groups, c, 3, 3],
                config: Conv2dConfig { padding, groups, ..Default::default() },
                bias,
            }
        },
    )
}

fn any_kernel() -> impl Strategy<Value = Case> {
    let config = (0usize..4, 1usize..4, 1usize..4, 1usize..4);
    let kernel = (1usize..5, 1usize..5);
    (1usize..40, 1usize..5, 1usize..20, 0usize..20, 0usize..20, kernel, config, any::<bool>()).prop_map(
        |(n, c, f, h, w, (kh, kw), (padding, stride, dilation, groups), bias)| {
            let least = |kernel: usize| (dilation * (kernel - 1) + 1).saturating_sub(2 * padding).max(1);
            Case {
                x: [n, c * groups, least(kh) + h, least(kw) + w],
                w: [f.div_ceil(groups) * groups, c, kh, kw],
                config: Conv2dConfig { padding, stride, dilation, groups, cudnn_fwd_algo: None },
                bias,
            }
        },
    )
}

/// The definition, in f64.
fn loops(case: &Case, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Tensor {
    let ([n, c, h, width], [f, cg, kh, kw]) = (case.x, case.w);
    let Conv2dConfig { padding, stride, dilation, groups, .. } = case.config;
    let out = |input: usize, kernel: usize| (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
    let (oh, ow) = (out(h, kh), out(width, kw));
    let mut y = Vec::new();
    for (n, f_, oy, ox) in (0..n * f * oh * ow).map(|i| (i / (f * oh * ow), i / (oh * ow) % f, i / ow % oh, i % ow)) {
        let mut sum = bias.map_or(0., |b| b[f_]);
        for (c_, ky, kx) in (0..cg * kh * kw).map(|i| (i / (kh * kw), i / kw % kh, i % kw)) {
            let (iy, ix) = (oy * stride + ky * dilation, ox * stride + kx * dilation);
            if (padding..h + padding).contains(&iy) && (padding..width + padding).contains(&ix) {
                let channel = f_ / (f / groups) * cg + c_;
                let x = x[((n * c + channel) * h + iy - padding) * width + ix - padding];
                sum += x * w[((f_ * cg + c_) * kh + ky) * kw + kx];
            }
        }
        y.push(sum);
    }
    Tensor::from_vec(y, (n, f, oh, ow), device()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against the definition. The convolution is linear in each argument, so its gradients are exact differences.
    #[test]
    fn convolution(case in case(), double: bool, seed in 0u64..1000) {
        let dtype = if double { DType::F64 } else { DType::F32 };
        let tolerance = if double { 1e-12 } else { 1e-5 };
        let mut inputs = vec![tensor(&case.x, dtype, seed), tensor(&case.w, dtype, seed + 1)];
        if case.bias {
            inputs.push(tensor(&[case.w[0]], dtype, seed + 2));
        }
        let ours = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), t.get(2).cloned(), case.config).forward(&t[0]);
        let (y, grads) = run(ours, &inputs, seed + 3);
        let f64s: Vec<Vec<f64>> = inputs.iter().map(values).collect();
        let f = |i: &[Vec<f64>]| loops(&case, &i[0], &i[1], i.get(2).map(|b| &b[..]));
        close(&y, &f(&f64s), tolerance)?;
        // d/de of <dy, f(.. + e u ..)> in a random direction of each argument.
        let dy = values(&tensor(y.dims(), dtype, seed + 3));
        for (i, grad) in grads.iter().enumerate() {
            let u = values(&tensor(inputs[i].dims(), dtype, seed + 10 + i as u64));
            let moved = |sign: f64| {
                let mut moved = f64s.clone();
                moved[i].iter_mut().zip(&u).for_each(|(x, u)| *x += sign * u);
                values(&f(&moved)).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
            };
            let expected = (moved(1.) - moved(-1.)) / 2.;
            let g = values(grad);
            let found: f64 = g.iter().zip(&u).map(|(g, u)| g * u).sum();
            let scale: f64 = g.iter().zip(&u).map(|(g, u)| (g * u).abs()).sum::<f64>() + 1e-3;
            prop_assert!((found - expected).abs() <= 10. * tolerance * scale, "argument {}: {} and {}", i, found, expected);
        }
    }

    /// Against candle's own, where it has one: every element of every gradient.
    #[test]
    fn convolution_of_candle(case in case(), seed in 0u64..1000) {
        let Conv2dConfig { padding, stride, dilation, groups, .. } = case.config;
        let inputs = [tensor(&case.x, DType::F64, seed), tensor(&case.w, DType::F64, seed + 1)];
        let ours = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), None, case.config).forward(&t[0]);
        let (y, grads) = run(ours, &inputs, seed + 3);
        // candle's backward panics where the padding is wider than the rest, and refuses other shapes.
        let back = |o: usize, kernel: usize| (o - 1) * stride + dilation * (kernel - 1) + 1;
        prop_assume!((2..4).all(|i| back(y.dims()[i], case.w[i]) > 2 * padding));
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let stock = vars[0].conv2d(&vars[1], padding, stride, dilation, groups).unwrap();
        close(&y, &stock.detach(), 1e-12)?;
        let dy = tensor(y.dims(), DType::F64, seed + 3);
        if let Ok(stock) = (stock * dy).unwrap().sum_all().unwrap().backward() {
            for (var, grad) in vars.iter().zip(&grads) {
                close(grad, stock.get(var).unwrap(), 1e-12)?;
            }
        }
    }
}

#[test]
fn convolution_of_half_precision() {
    let config = Conv2dConfig { padding: 1, stride: 2, ..Default::default() };
    for dtype in [DType::BF16, DType::F16] {
        let narrow = [tensor(&[3, 4, 9, 9], dtype, 1), tensor(&[6, 4, 3, 3], dtype, 2), tensor(&[6], dtype, 3)];
        let wide = narrow.clone().map(|t| t.to_dtype(DType::F32).unwrap());
        let f = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), Some(t[2].clone()), config).forward(&t[0]);
        let ((y, grads), (wide_y, wide_grads)) = (run(f, &narrow, 4), run(f, &wide, 4));
        assert_eq!(y.dtype(), dtype);
        close(&y, &wide_y, 1e-2).unwrap();
        for (grad, wide) in grads.iter().zip(&wide_grads) {
            assert_eq!(grad.dtype(), dtype);
            close(grad, wide, 3e-2).unwrap();
        }
    }
}

/// Shapes that are shared out: many images, many filters, both.
fn digest() -> Vec<Vec<u64>> {
    let mut digest = Vec::new();
    for (x, w, groups, stride) in [
        ([33, 5, 16, 17], [19, 5, 3, 3], 1, 1),
        ([40, 36, 11, 10], [37, 36, 3, 3], 1, 1),
        ([70, 8, 9, 9], [24, 4, 3, 3], 2, 2),
        ([2, 150, 5, 5], [300, 150, 3, 3], 1, 1),
        ([64, 128, 4, 4], [260, 128, 3, 3], 1, 2),
    ] {
        let config = Conv2dConfig { padding: 1, stride, groups, ..Default::default() };
        let inputs = [tensor(&x, DType::F32, 1), tensor(&w, DType::F32, 2), tensor(&[w[0]], DType::F32, 3)];
        let f = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), Some(t[2].clone()), config).forward(&t[0]);
        let (y, grads) = run(f, &inputs, 4);
        digest.push(bits(&y));
        digest.extend(grads.iter().map(bits));
    }
    let (bn, _) = norms(40, BatchNormConfig::default(), DType::F32, 1);
    let x = tensor(&[20, 40, 33, 17], DType::F32, 2);
    digest.extend(through(|x, shortcut| bn.forward_add_relu(x, shortcut, true), &bn, &x, &x).iter().map(bits));
    digest.push(bits(bn.running_var()));
    let shapes = [(128, 784, 512), (500, 33, 10), (1, 3000, 1000), (3000, 10, 1), (7, 5000, 7), (300, 500, 2000)];
    for (rows, inputs, outputs) in shapes {
        let inputs = [
            tensor(&[rows, inputs], DType::F32, 1),
            tensor(&[outputs, inputs], DType::F32, 2),
            tensor(&[outputs], DType::F32, 3),
        ];
        let labels = Tensor::zeros(rows, DType::U8, device()).unwrap();
        let f = |t: &[Tensor]| {
            let y = nn::Linear::new(t[1].clone(), Some(t[2].clone())).forward(&t[0])?;
            nn::cross_entropy_with_label_smoothing(&nn::relu(&y)?, &labels, 0.1)
        };
        let (y, grads) = run(f, &inputs, 4);
        digest.push(bits(&y));
        digest.extend(grads.iter().map(bits));
    }
    digest
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    if is_for_the_cpu("the threads are the CPU's") {
        return;
    }
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(digest);
    let one = on(1);
    assert!(on(2) == one);
    assert!(on(7) == one);
}

#[test]
fn an_input_that_needs_no_gradient_gets_none() {
    let x = tensor(&[2, 3, 5, 5], DType::F32, 1);
    let w = Var::from_tensor(&tensor(&[4, 3, 3, 3], DType::F32, 2)).unwrap();
    let conv = nn::Conv2d::new(w.as_tensor().clone(), None, Conv2dConfig::default());
    let grads = conv.forward(&x).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_none() && grads.get(&w).is_some());
}

#[test]
fn sizes_that_do_not_fit() {
    let refused = |x: &[usize], w: &[usize], config| {
        let conv = nn::Conv2d::new(tensor(w, DType::F32, 1), None, config);
        conv.forward(&Tensor::zeros(x, DType::F32, device()).unwrap()).unwrap_err().to_string()
    };
    let plain = Conv2dConfig::default();
    assert!(refused(&[1, 3, 5], &[4, 3, 3, 3], plain).contains("four dimensions"));
    assert!(refused(&[1, 2, 5, 5], &[4, 3, 3, 3], plain).contains("expected images of 3 channels"));
    assert!(refused(&[1, 3, 2, 5], &[4, 3, 3, 3], plain).contains("at least 3"));
    assert!(refused(&[1, 3, 5, 5], &[4, 3, 3, 3], Conv2dConfig { stride: 0, ..plain }).contains("at least 1"));
    assert!(refused(&[1, 3, 0, 5], &[4, 3, 3, 3], plain).contains("at least one channel"));
}

/// x, kernel, stride, padding.
type Pooling = fn(&Tensor, usize, usize, usize) -> Result<Tensor>;

/// Our layer and candle's, with the same random variables.
fn norms(channels: usize, config: BatchNormConfig, dtype: DType, seed: u64) -> (nn::BatchNorm, candle_nn::BatchNorm) {
    let vars = VarMap::new();
    let twin = VarMap::new();
    let ours = nn::batch_norm(channels, config, VarBuilder::from_varmap(&vars, dtype, device())).unwrap();
    let stock = candle_nn::batch_norm(channels, config, VarBuilder::from_varmap(&twin, dtype, device())).unwrap();
    for (i, name) in ["weight", "bias", "running_mean", "running_var"].into_iter().enumerate() {
        let values = (tensor(&[channels], dtype, seed + i as u64).abs().unwrap() + 0.3).unwrap();
        for vars in [&vars, &twin] {
            if let Some(var) = vars.data().lock().unwrap().get(name) {
                var.set(&values).unwrap();
            }
        }
    }
    (ours, stock)
}

/// The output, the gradient of x, of the shortcut, of weight and bias.
fn through(
    f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    bn: &candle_nn::BatchNorm,
    x: &Tensor,
    shortcut: &Tensor,
) -> Vec<Tensor> {
    let (x, shortcut) = (Var::from_tensor(x).unwrap(), Var::from_tensor(shortcut).unwrap());
    let y = f(&x, &shortcut).unwrap();
    let dy = tensor(y.dims(), y.dtype(), 77);
    let grads = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    let mut found = vec![y.detach(), grads.get(&x).unwrap().detach()];
    found.extend(grads.get(&shortcut).map(Tensor::detach));
    if let Some((weight, bias)) = bn.weight_and_bias() {
        found.extend([weight, bias].map(|var| grads.get(var).unwrap().detach()));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn normalization(
        n in 2usize..9, channels in 1usize..9, space in prop::collection::vec(1usize..9, 0..3), train: bool, double: bool,
        affine: bool, remove_mean: bool, which in 0..3, seed in 0u64..1000,
    ) {
        let dtype = if double { DType::F64 } else { DType::F32 };
        let config = BatchNormConfig { eps: 1e-3, momentum: 0.3, affine, remove_mean };
        let (ours, stock) = norms(channels, config, dtype, seed);
        let mut shape = vec![n, channels];
        shape.extend(space);
        let x = (tensor(&shape, dtype, seed + 5) + 0.7).unwrap();
        let shortcut = tensor(&shape, dtype, seed + 6);
        let found = through(|x, shortcut| match which {
            0 => ours.forward_t(x, train),
            1 => ours.forward_relu(x, train),
            _ => ours.forward_add_relu(x, shortcut, train),
        }, &ours, &x, &shortcut);
        let expected = through(|x, shortcut| {
            let y = stock.forward_t(x, train)?;
            match which {
                0 => Ok(y),
                1 => y.relu(),
                _ => (y + shortcut)?.relu(),
            }
        }, &stock, &x, &shortcut);
        prop_assert_eq!(found.len(), expected.len());
        // With few values the gradient of x is a small rest of large numbers.
        let tolerance = if double { 1e-9 } else { 2e-3 };
        for (found, expected) in found.iter().zip(&expected) {
            close(found, expected, tolerance)?;
        }
        close(ours.running_mean(), stock.running_mean(), 1e-6)?;
        close(ours.running_var(), stock.running_var(), 1e-5)?;
    }

    #[test]
    fn linear_layers(rows in prop::collection::vec(1usize..20, 0..3), i in 1usize..40, o in 1usize..40, bias: bool, seed in 0u64..1000) {
        let mut shape = rows;
        shape.push(i);
        let mut inputs = vec![tensor(&shape, DType::F64, seed), tensor(&[o, i], DType::F64, seed + 1)];
        if bias {
            inputs.push(tensor(&[o], DType::F64, seed + 2));
        }
        let (y, grads) = run(|t| nn::Linear::new(t[1].clone(), t.get(2).cloned()).forward(&t[0]), &inputs, seed + 3);
        let stock = |t: &[Tensor]| {
            let y = t[0].reshape(((), i))?.matmul(&t[1].t()?)?;
            let y = if let Some(bias) = t.get(2) { y.broadcast_add(bias)? } else { y };
            let mut shape = t[0].dims().to_vec();
            *shape.last_mut().unwrap() = o;
            y.reshape(shape)
        };
        let (stock, stock_grads) = run(stock, &inputs, seed + 3);
        close(&y, &stock, 1e-12)?;
        for (grad, stock) in grads.iter().zip(&stock_grads) {
            close(grad, stock, 1e-12)?;
        }
    }

    #[test]
    fn cross_entropies(n in 1usize..20, classes in 1usize..12, smoothing in 0.0..1.0f64, scale in 0.1..30f64, seed in 0u64..1000) {
        let logits = [(tensor(&[n, classes], DType::F64, seed) * scale).unwrap()];
        let labels: Vec<u32> = (0..n).map(|i| ((i as u64 * 7 + seed) % classes as u64) as u32).collect();
        let labels = Tensor::from_vec(labels, n, device()).unwrap();
        let log = |t: &[Tensor]| candle_nn::ops::log_softmax(&t[0], 1);
        let soft = candle_nn::ops::softmax(&tensor(&[n, classes], DType::F64, seed + 1), 1).unwrap();
        let pairs: [(Tensor, Tensor); 3] = [
            (run(|t| nn::cross_entropy(&t[0], &labels), &logits, 1), run(|t| candle_nn::loss::cross_entropy(&t[0], &labels), &logits, 1)),
            (
                run(|t| nn::cross_entropy_with_label_smoothing(&t[0], &labels, smoothing), &logits, 1),
                run(|t| (candle_nn::loss::nll(&log(t)?, &labels)? * (1. - smoothing))? - (log(t)?.mean_all()? * smoothing)?, &logits, 1),
            ),
            (
                run(|t| nn::cross_entropy_with_probs(&t[0], &soft), &logits, 1),
                run(|t| (log(t)? * &soft)?.sum_all()? * (-1. / n as f64), &logits, 1),
            ),
        ].map(|((y, grads), (stock, stock_grads))| {
            let join = |y: &Tensor, grad: &Tensor| Tensor::cat(&[&y.reshape(1).unwrap(), &grad.flatten_all().unwrap()], 0).unwrap();
            (join(&y, &grads[0]), join(&stock, &stock_grads[0]))
        });
        for (found, expected) in &pairs {
            close(found, expected, 1e-12)?;
        }
        for dtype in [DType::U8, DType::I64] {
            let loss = |labels: &Tensor| nn::cross_entropy(&logits[0], labels).unwrap();
            prop_assert_eq!(bits(&loss(&labels.to_dtype(dtype).unwrap())), bits(&loss(&labels)));
        }
    }

    /// Against the definition, with numbers of which many are equal.
    #[test]
    fn pooling(h in 1usize..9, w in 1usize..9, kernel in 1usize..5, stride in 1usize..4, padding in 0usize..3, seed in 0u64..1000) {
        prop_assume!(2 * padding <= kernel && h.min(w) + 2 * padding >= kernel);
        let x = ((tensor(&[2, 3, h, w], DType::F64, seed) * 3.).unwrap().round().unwrap() - 5.).unwrap();
        let (oh, ow) = ((h + 2 * padding - kernel) / stride + 1, (w + 2 * padding - kernel) / stride + 1);
        let dy = tensor(&[2, 3, oh, ow], DType::F64, seed + 1);
        let (xs, dys) = (values(&x), values(&dy));
        let (mut max, mut mean) = ((vec![], vec![0.; xs.len()]), (vec![], vec![0.; xs.len()]));
        for (i, dy) in dys.iter().enumerate() {
            let (plane, oy, ox) = (i / (oh * ow), i / ow % oh, i % ow);
            let (mut best, mut sum): (Option<usize>, f64) = (None, 0.);
            for (ky, kx) in (0..kernel * kernel).map(|k| (k / kernel, k % kernel)) {
                let (y, x) = (oy * stride + ky, ox * stride + kx);
                if (padding..h + padding).contains(&y) && (padding..w + padding).contains(&x) {
                    let place = (plane * h + y - padding) * w + x - padding;
                    sum += xs[place];
                    mean.1[place] += dy / (kernel * kernel) as f64;
                    if best.is_none_or(|best| xs[place] > xs[best]) {
                        best = Some(place);
                    }
                }
            }
            max.0.push(xs[best.unwrap()]);
            max.1[best.unwrap()] += dy;
            mean.0.push(sum / (kernel * kernel) as f64);
        }
        for (f, (y, dx)) in [(nn::max_pool2d as Pooling, max), (nn::avg_pool2d as Pooling, mean)] {
            let (found, grads) = run(|t| f(&t[0], kernel, stride, padding), std::slice::from_ref(&x), seed + 1);
            close(&found, &Tensor::from_vec(y, (2, 3, oh, ow), device()).unwrap(), 1e-14)?;
            close(&grads[0], &Tensor::from_vec(dx, (2, 3, h, w), device()).unwrap(), 1e-14)?;
        }
        let (found, grads) = run(|t| nn::global_avg_pool2d(&t[0]), std::slice::from_ref(&x), seed + 1);
        let (stock, stock_grads) = run(|t| t[0].mean((2, 3)), &[x], seed + 1);
        close(&found, &stock, 1e-14)?;
        close(&grads[0], &stock_grads[0], 1e-14)?;
    }
}

/// -log softmax at the label, and the gradient of the mean over the labels that count: from the definition, in f64.
fn cross_entropy_in_f64(logits: &[f64], labels: &[Option<usize>]) -> (f64, Vec<f64>) {
    let (classes, count) = (logits.len() / labels.len(), labels.iter().flatten().count() as f64);
    let (mut loss, mut gradient) = (0., vec![0.; logits.len()]);
    for ((row, label), gradient) in logits.chunks(classes).zip(labels).zip(gradient.chunks_mut(classes)) {
        let Some(label) = *label else { continue };
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        loss += (sum.ln() - (row[label] - max)) / count;
        for (class, (gradient, x)) in gradient.iter_mut().zip(row).enumerate() {
            *gradient = ((x - max).exp() / sum - f64::from(u8::from(class == label))) / count;
        }
    }
    (loss, gradient)
}

/// Large differences, masked classes, rows of every length.
#[test]
fn cross_entropies_of_extreme_logits() {
    for (classes, scale) in [(1, 1.), (2, 1e4), (10, 30.), (257, 1e4), (1000, 1.), (3000, 100.)] {
        for dtype in [DType::F32, DType::F64] {
            let n = 7;
            let mut logits: Vec<f64> = sam_tests::numbers(n * classes, 5).iter().map(|x| x * scale).collect();
            let labels: Vec<Option<usize>> = (0..n).map(|i| Some(i * 31 % classes)).collect();
            for (row, label) in logits.chunks_mut(classes).zip(&labels) {
                for (class, x) in row.iter_mut().enumerate() {
                    if class % 5 == 1 && Some(class) != *label {
                        *x = f64::NEG_INFINITY;
                    }
                }
            }
            let logits = Tensor::from_vec(logits, (n, classes), device()).unwrap().to_dtype(dtype).unwrap();
            let (loss, gradient) = cross_entropy_in_f64(&values(&logits), &labels);
            let targets: Vec<u32> = labels.iter().flatten().map(|label| *label as u32).collect();
            let targets = Tensor::from_vec(targets, n, device()).unwrap();
            let hot = candle_nn::encoding::one_hot(targets.clone(), classes, 1f64, 0f64).unwrap();
            let tolerance = if dtype == DType::F64 { 1e-12 } else { 3e-7 };
            let check = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
                let (y, grads) = run(f, std::slice::from_ref(&logits), 1);
                let y = values(&y)[0];
                assert!(
                    (y - loss).abs() <= tolerance * (1. + loss.abs()),
                    "{classes} {scale} {dtype:?}: {y} and {loss}"
                );
                for (found, expected) in values(&grads[0]).iter().zip(&gradient) {
                    assert!(
                        (found - expected).abs() <= tolerance / n as f64,
                        "{classes} {dtype:?}: {found}, {expected}"
                    );
                }
            };
            check(&|t| nn::cross_entropy(&t[0], &targets));
            check(&|t| nn::cross_entropy_with_probs(&t[0], &hot));
        }
    }
}

/// As in PyTorch: `torch.nn.functional.cross_entropy` with `ignore_index`, and with classes in dimension 1 of more.
#[test]
fn cross_entropies_of_tokens_and_pixels() {
    let logits = tensor(&[2, 5, 3, 2], DType::F64, 1);
    let labels = [0i64, 4, -100, 2, 2, 1, 3, -100, -100, 0, 1, 4];
    let of = |dims: &[usize]| Tensor::from_slice(&labels, dims, device()).unwrap();
    let rows = logits.permute([0, 2, 3, 1]).unwrap().contiguous().unwrap().reshape((12, 5)).unwrap();
    let counted: Vec<_> = labels.iter().map(|label| usize::try_from(*label).ok()).collect();
    let (loss, gradient) = cross_entropy_in_f64(&values(&rows), &counted);
    let gradient = Tensor::from_vec(gradient, (2, 3, 2, 5), device()).unwrap().permute([0, 3, 1, 2]).unwrap();
    let (y, grads) =
        run(|t| nn::cross_entropy_ignoring(&t[0], &of(&[2, 3, 2]), -100), std::slice::from_ref(&logits), 1);
    assert!((values(&y)[0] - loss).abs() < 1e-14);
    close(&grads[0], &gradient, 1e-13).unwrap();
    let flat = nn::cross_entropy_ignoring(&rows, &of(&[12]), -100).unwrap();
    assert_eq!(bits(&flat), bits(&y));
    // In an unsigned type, and without a label to ignore.
    let whole: Vec<u8> = labels.iter().map(|label| u8::try_from(*label).unwrap_or(255)).collect();
    let whole = Tensor::from_vec(whole, (2, 3, 2), device()).unwrap();
    assert_eq!(bits(&nn::cross_entropy_ignoring(&logits, &whole, 255).unwrap()), bits(&y));
    let all = whole.zeros_like().unwrap();
    let (loss, _) = cross_entropy_in_f64(&values(&rows), &[Some(0); 12]);
    assert!((values(&nn::cross_entropy(&logits, &all).unwrap())[0] - loss).abs() < 1e-14);
    let smooth = nn::cross_entropy_with_label_smoothing(&logits, &all, 0.3).unwrap();
    assert_eq!(
        bits(&smooth),
        bits(&nn::cross_entropy_with_label_smoothing(&rows, &all.flatten_all().unwrap(), 0.3).unwrap())
    );
    if is_for_the_cpu("labels are not checked on other devices") {
        return;
    }
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let error = message(nn::cross_entropy(&rows, &of(&[12])));
    assert!(error.contains("0..5, found -100 at index 2") && error.contains("cross_entropy_ignoring"), "{error}");
    let error = message(nn::cross_entropy_ignoring(&logits, &(all.ones_like().unwrap()), 1));
    assert!(error.contains("12 labels that are all ignored"), "{error}");
    let error = message(nn::cross_entropy(&logits, &of(&[12])));
    assert!(error.contains("[2, 3, 2] for logits [2, 5, 3, 2]"), "{error}");
}

#[test]
fn a_masked_label_costs_infinity() {
    let logits = Tensor::new(&[[f32::NEG_INFINITY, 1.], [0., 0.]], device()).unwrap();
    let loss = nn::cross_entropy(&logits, &Tensor::new(&[0u32, 0], device()).unwrap()).unwrap();
    assert_eq!(values(&loss), [f64::INFINITY]);
}

#[test]
fn not_a_number_stays_one() {
    let x = Tensor::new(&[[[[f32::NAN, 1.], [-1., 2.]]]], device()).unwrap();
    assert!(values(&nn::relu(&x).unwrap())[0].is_nan());
    assert!(values(&nn::max_pool2d(&x, 2, 2, 0).unwrap())[0].is_nan());
    let logits = Tensor::new(&[[f32::NAN, 1.]], device()).unwrap();
    let label = Tensor::new(&[1u32], device()).unwrap();
    assert!(nn::cross_entropy(&logits, &label).unwrap().to_scalar::<f32>().unwrap().is_nan());
}

#[test]
fn half_precision_comes_back_as_it_went() {
    for dtype in [DType::BF16, DType::F16] {
        let x = tensor(&[4, 3, 6, 6], dtype, 1);
        let [(bn, _), (wide_bn, _)] = [dtype, DType::F32].map(|dtype| norms(3, BatchNormConfig::default(), dtype, 2));
        let wide_x = x.to_dtype(DType::F32).unwrap();
        let wide = through(|x, _| wide_bn.forward_relu(x, true), &wide_bn, &wide_x, &wide_x);
        for (found, expected) in through(|x, _| bn.forward_relu(x, true), &bn, &x, &x).iter().zip(&wide) {
            assert_eq!(found.dtype(), dtype);
            close(found, expected, 5e-2).unwrap();
        }
        let narrow = [tensor(&[5, 7], dtype, 1), tensor(&[4, 7], dtype, 2), tensor(&[4], dtype, 3)];
        let wide = narrow.clone().map(|t| t.to_dtype(DType::F32).unwrap());
        let labels = Tensor::new(&[0u8, 1, 2, 3, 1], device()).unwrap();
        let f = |t: &[Tensor]| {
            nn::cross_entropy(&nn::relu(&nn::Linear::new(t[1].clone(), Some(t[2].clone())).forward(&t[0])?)?, &labels)
        };
        let ((y, grads), (wide_y, wide_grads)) = (run(f, &narrow, 4), run(f, &wide, 4));
        close(&y, &wide_y, 1e-2).unwrap();
        for (grad, wide) in grads.iter().zip(&wide_grads) {
            assert_eq!(grad.dtype(), dtype);
            close(grad, wide, 3e-2).unwrap();
        }
        for y in [nn::max_pool2d(&x, 3, 2, 1), nn::avg_pool2d(&x, 3, 2, 1), nn::global_avg_pool2d(&x)] {
            assert_eq!(y.unwrap().dtype(), dtype);
        }
    }
}

/// A view of a tensor is as good as a tensor.
#[test]
fn views() {
    type Layer<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;
    let x = tensor(&[6, 5, 4, 3], DType::F32, 1).permute([3, 2, 1, 0]).unwrap();
    let copy = x.contiguous().unwrap();
    let conv =
        nn::Conv2d::new(tensor(&[3, 3, 2, 4], DType::F32, 2).transpose(2, 3).unwrap(), None, Conv2dConfig::default());
    let (bn, _) = norms(4, BatchNormConfig::default(), DType::F32, 3);
    let layers: [Layer<'_>; 5] = [
        &|x| conv.forward(&x.narrow(1, 0, 3)?),
        &|x| bn.forward_add_relu(x, x, false),
        &|x| nn::relu(x),
        &|x| nn::max_pool2d(x, 3, 1, 1),
        &|x| nn::linear_no_bias(6, 2, VarBuilder::zeros(DType::F32, device()))?.forward(x),
    ];
    for layer in layers {
        assert_eq!(bits(&layer(&x).unwrap()), bits(&layer(&copy).unwrap()));
    }
}

/// A network of all layers, whose images are channels last: on the CPU and without cuDNN they are copied, with it kept.
fn all_layers(x: &Tensor, vars: &[Tensor], bn: &nn::BatchNorm) -> Result<Tensor> {
    let config = |stride, groups| Conv2dConfig { padding: 1, stride, groups, ..Default::default() };
    let conv = |x: &Tensor, w: usize, bias: Option<usize>, config| {
        nn::Conv2d::new(vars[w].clone(), bias.map(|bias| vars[bias].clone()), config).forward(x)
    };
    let a = bn.forward_relu(&conv(x, 0, Some(1), config(1, 1))?, true)?;
    let b = conv(&a, 2, None, config(1, 2))?;
    let shortcut = conv(&a, 3, None, Conv2dConfig::default())?;
    let c = bn.forward_add_relu(&b, &shortcut, true)?;
    let draws = nn::RngStream::new(5);
    let c = nn::ShakeDrop::new(0.5, draws.clone()).forward(&nn::ShakeShake::new(draws).forward(&c, &b, true)?, true)?;
    let dropped = nn::Dropout::seeded(0.3, 5).forward(&nn::add(&c, &a)?, true)?;
    let d = nn::max_pool2d(&nn::relu(&bn.forward_train(&dropped)?)?, 3, 2, 1)?;
    // Some of candle's between, which knows nothing of formats.
    let d = (nn::avg_pool2d(&d, 2, 1, 0)? + 0.5)?;
    let d = nn::add(&conv(&d, 2, None, config(1, 2))?, &d)?;
    nn::global_avg_pool2d(&d)
}

#[test]
fn images_that_are_channels_last() {
    let shapes: [&[usize]; 4] = [&[8, 3, 3, 3], &[8], &[8, 4, 3, 3], &[8, 8, 1, 1]];
    let inputs: Vec<Tensor> = std::iter::once(tensor(&[4, 3, 9, 7], DType::F64, 1))
        .chain(shapes.iter().zip(2..).map(|(shape, seed)| tensor(shape, DType::F64, seed)))
        .collect();
    let through = |last: bool| {
        let (bn, _) = norms(8, BatchNormConfig::default(), DType::F64, 9);
        let (y, mut grads) =
            run(|t| all_layers(&if last { nn::channels_last(&t[0])? } else { t[0].clone() }, &t[1..], &bn), &inputs, 7);
        grads.extend([y, bn.running_mean().clone(), bn.running_var().clone()]);
        grads
    };
    for (found, expected) in through(true).iter().zip(&through(false)) {
        assert_eq!(found.dims(), expected.dims());
        close(found, expected, 1e-11).unwrap();
    }
    assert!(nn::channels_last(&inputs[2]).is_err(), "no images");
}

/// In a network that consists of layers only, gradients are propagated without candle: bitwise the same, also where variables are shared.
#[test]
fn the_backward_pass_without_candle_is_bitwise_the_same() {
    let (bn, stock) = norms(8, BatchNormConfig::default(), DType::F32, 9);
    drop(stock);
    let shapes: [&[usize]; 5] = [&[8, 3, 3, 3], &[8], &[8, 8, 3, 3], &[5, 8], &[5]];
    let vars: Vec<Var> = shapes
        .iter()
        .zip(2..)
        .map(|(shape, seed)| Var::from_tensor(&tensor(shape, DType::F32, seed)).unwrap())
        .collect();
    let x = tensor(&[4, 3, 6, 6], DType::F32, 1);
    let labels = Tensor::new(&[0u8, 4, 2, 1], device()).unwrap();
    let loss = |scaled: bool| -> Result<Tensor> {
        let config = Conv2dConfig { padding: 1, ..Default::default() };
        let conv = |x: &Tensor, w: usize, b: Option<usize>| {
            nn::Conv2d::new(vars[w].as_tensor().clone(), b.map(|b| vars[b].as_tensor().clone()), config).forward(x)
        };
        let mut x = bn.forward_relu(&conv(&x, 0, Some(1))?, true)?;
        for _ in 0..3 {
            x = nn::add(&nn::relu(&conv(&x, 2, Some(1))?)?, &x)?;
        }
        // More inputs than an operation of candle's can have, which share the layer before.
        x = bn.forward_add_relu(&x, &x, true)?;
        let features = nn::global_avg_pool2d(&nn::add(&nn::add(&x, &x)?, &x)?)?;
        let head = nn::Linear::new(vars[3].as_tensor().clone(), Some(vars[4].as_tensor().clone()));
        let logits = nn::to_dtype(&head.forward(&features)?, DType::F64)?;
        let mut loss = nn::to_dtype(&nn::cross_entropy(&logits, &labels)?, DType::F32)?;
        for var in &vars {
            loss = nn::add(&loss, &nn::l2_penalty(var, 0.01)?)?;
        }
        if scaled { loss * 1.0 } else { Ok(loss) }
    };
    let (ours, candle) = (nn::backward(&loss(false).unwrap()).unwrap(), loss(false).unwrap().backward().unwrap());
    let partly = nn::backward(&loss(true).unwrap()).unwrap();
    let (weight, bias) = bn.weight_and_bias().unwrap();
    for var in vars.iter().map(Var::as_tensor).chain([weight, bias]) {
        let expected = bits(candle.get(var).unwrap());
        assert_eq!(bits(ours.get(var).unwrap()), expected, "{:?}", var.dims());
        assert_eq!(bits(partly.get(var).unwrap()), expected, "{:?}", var.dims());
    }
}

#[test]
fn a_penalty_is_half_a_square() {
    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
        let w = tensor(&[40, 1000], dtype, 1);
        let (y, grads) = run(|t| nn::l2_penalty(&t[0], 0.3), std::slice::from_ref(&w), 2);
        let expected = 0.15 * values(&w).iter().map(|w| w * w).sum::<f64>();
        assert!((values(&y)[0] - expected).abs() <= tolerance * expected, "{y} and {expected}");
        close(&grads[0], &(&w * 0.3).unwrap(), tolerance).unwrap();
    }
}

/// The variables of both crates have the same names and shapes.
#[test]
fn checkpoints_go_both_ways() {
    let names = |build: &dyn Fn(VarBuilder<'_>) -> Result<()>| {
        let vars = VarMap::new();
        build(VarBuilder::from_varmap(&vars, DType::F32, device())).unwrap();
        let mut names: Vec<(String, Vec<usize>)> =
            vars.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
        names.sort();
        names
    };
    let config = Conv2dConfig { groups: 2, ..Default::default() };
    let ours = names(&|vb| {
        nn::conv2d(4, 6, 3, config, vb.pp("a"))?;
        nn::conv2d_no_bias(4, 6, 3, config, vb.pp("b"))?;
        nn::linear(4, 6, vb.pp("c"))?;
        nn::linear_no_bias(4, 6, vb.pp("d"))?;
        nn::batch_norm(4, 1e-5, vb.pp("e")).map(drop)
    });
    let stock = names(&|vb| {
        candle_nn::conv2d(4, 6, 3, config, vb.pp("a"))?;
        candle_nn::conv2d_no_bias(4, 6, 3, config, vb.pp("b"))?;
        candle_nn::linear(4, 6, vb.pp("c"))?;
        candle_nn::linear_no_bias(4, 6, vb.pp("d"))?;
        candle_nn::batch_norm(4, 1e-5, vb.pp("e")).map(drop)
    });
    assert_eq!(ours, stock);
}
