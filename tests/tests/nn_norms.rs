//! Normalizations and softmax of `sam_runtime::nn`: their gradients compared with differences in f64, and with those of candle's operations that have one.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{D, DType, Result, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap, ops};
use proptest::prelude::*;
use rayon::ThreadPoolBuilder;
use sam_runtime::nn;
use sam_tests::{bits, central_difference, device, is_for_the_cpu, tensor, values};

/// Exact in f32 too: some functions of candle take it as f32, and the gradient of a row of two elements is proportional to it.
const EPS: f64 = 1.0 / 131_072.0;

/// What is under test, of an input and two weights of the size of its last dimension, or of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    LayerNorm,
    NoBias,
    RmsNorm,
    WithoutMean,
    OpsLayerNorm,
    OpsRmsNorm,
    GroupNorm(usize),
    Softmax(usize),
    LogSoftmax(usize),
    SoftmaxLastDim,
}

impl Op {
    fn ours(self, t: &[Tensor]) -> Result<Tensor> {
        let [x, weight, bias] = [&t[0], &t[1], &t[2]];
        match self {
            Self::LayerNorm => nn::LayerNorm::new(weight.clone(), bias.clone(), EPS).forward(x),
            Self::NoBias => nn::LayerNorm::new_no_bias(weight.clone(), EPS).forward(x),
            Self::RmsNorm => nn::RmsNorm::new(weight.clone(), EPS).forward(x),
            Self::WithoutMean => nn::LayerNorm::rms_norm(weight.clone(), EPS).forward(x),
            Self::OpsLayerNorm => nn::ops::layer_norm(x, weight, bias, EPS as f32),
            Self::OpsRmsNorm => nn::ops::rms_norm(x, weight, EPS as f32),
            Self::GroupNorm(groups) => {
                nn::GroupNorm::new(weight.clone(), bias.clone(), x.dim(1)?, groups, EPS)?.forward(x)
            }
            Self::Softmax(dim) => nn::ops::softmax(x, dim),
            Self::LogSoftmax(dim) => nn::ops::log_softmax(x, dim),
            Self::SoftmaxLastDim => nn::ops::softmax_last_dim(x),
        }
    }

    /// candle's operations that have a gradient.
    fn candle(self, t: &[Tensor]) -> Result<Tensor> {
        let [x, weight, bias] = [&t[0], &t[1], &t[2]];
        match self {
            Self::LayerNorm | Self::OpsLayerNorm => ops::layer_norm_slow(x, weight, bias, EPS as f32),
            Self::NoBias => candle_nn::LayerNorm::new_no_bias(weight.clone(), EPS).forward(x),
            Self::RmsNorm | Self::OpsRmsNorm | Self::WithoutMean => ops::rms_norm_slow(x, weight, EPS as f32),
            Self::GroupNorm(groups) => {
                candle_nn::GroupNorm::new(weight.clone(), bias.clone(), x.dim(1)?, groups, EPS)?.forward(x)
            }
            Self::Softmax(dim) => ops::softmax(x, dim),
            Self::LogSoftmax(dim) => ops::log_softmax(x, dim),
            Self::SoftmaxLastDim => ops::softmax(x, D::Minus1),
        }
    }

    /// How many of the three arguments it uses.
    fn arguments(self) -> usize {
        match self {
            Self::LayerNorm | Self::OpsLayerNorm | Self::GroupNorm(_) => 3,
            Self::NoBias | Self::RmsNorm | Self::WithoutMean | Self::OpsRmsNorm => 2,
            Self::Softmax(_) | Self::LogSoftmax(_) | Self::SoftmaxLastDim => 1,
        }
    }

    fn affine(self, shape: &[usize]) -> usize {
        if matches!(self, Self::GroupNorm(_)) { shape[1] } else { *shape.last().unwrap() }
    }
}

/// Some, also longer than a vector and than a run of sums.
fn case() -> impl Strategy<Value = (Op, Vec<usize>)> {
    let columns = prop_oneof![1usize..40, 250usize..300];
    let last = prop::sample::select(vec![
        Op::LayerNorm,
        Op::NoBias,
        Op::RmsNorm,
        Op::WithoutMean,
        Op::OpsLayerNorm,
        Op::OpsRmsNorm,
        Op::SoftmaxLastDim,
    ]);
    let of_last = (last, prop::collection::vec(1usize..6, 0..3), columns.clone())
        .prop_map(|(op, outer, columns)| (op, [outer, vec![columns]].concat()));
    let of_dim = (prop::collection::vec(1usize..5, 1..3), columns.clone(), 0usize..3, any::<bool>()).prop_map(
        |(outer, columns, dim, log)| {
            let mut shape = outer;
            let dim = dim % (shape.len() + 1);
            shape.push(columns);
            (if log { Op::LogSoftmax(dim) } else { Op::Softmax(dim) }, shape)
        },
    );
    let of_groups =
        (1usize..4, 1usize..4, 1usize..4, columns, any::<bool>()).prop_map(|(n, groups, of, plane, flat)| {
            let shape = if flat { vec![n, groups * of, plane] } else { vec![n, groups * of, plane.min(7), 3] };
            (Op::GroupNorm(groups), shape)
        });
    prop_oneof![of_last, of_dim, of_groups]
}

fn inputs(op: Op, shape: &[usize], dtype: DType, seed: u64) -> Vec<Tensor> {
    let n = op.affine(shape);
    let scaled = |shape: &[usize], seed: u64| {
        let size = (*shape.last().unwrap() as f64).sqrt();
        (tensor(shape, DType::F64, seed) * (2.0 * size)).unwrap().to_dtype(dtype).unwrap()
    };
    vec![scaled(shape, seed), scaled(&[n], seed + 1), scaled(&[n], seed + 2)]
}

/// The output of `f`, and the gradients of the inputs that it uses.
fn run(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], used: usize) -> (Tensor, Vec<Tensor>) {
    let (y, grads) = sam_tests::run(f, inputs, 99);
    (y, grads.into_iter().take(used).map(Option::unwrap).collect())
}

/// Relative to the largest of the numbers.
fn close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let (a, b) = (values(a), values(b));
    let scale = b.iter().fold(1e-3_f64, |m, b| m.max(b.abs()));
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= tolerance * scale, "{a} and {b}, largest {scale}: {what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn gradients_are_differences((op, shape) in case(), seed in 0u64..1000) {
        let inputs = inputs(op, &shape, DType::F64, seed);
        let (_, grads) = run(|t| op.ours(t), &inputs, op.arguments());
        for (i, grad) in grads.iter().enumerate() {
            let u = tensor(inputs[i].dims(), DType::F64, seed + 10 + i as u64);
            // Rows of one or two elements have next to no variance, and a third derivative to match.
            let expected = central_difference(|t| op.ours(t), &inputs, 99, (i, &u), 1e-5);
            let found = (grad * &u).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            let scale = values(grad).iter().map(|g| g.abs()).fold(1.0, f64::max);
            prop_assert!((found - expected).abs() < 2e-6 * scale, "{found} and {expected} of {i}: {op:?}, {shape:?}");
        }
    }

    /// In f64, and f32, bf16 and f16, of a transposed input too.
    #[test]
    fn as_candle((op, shape) in case(), kind in 0usize..4, transposed: bool, seed in 0u64..1000) {
        let dtype = [DType::F64, DType::F32, DType::BF16, DType::F16][kind];
        let tolerance = [1e-10, 2e-5, 6e-2, 1e-2][kind];
        // A variance of next to nothing magnifies the rounding of candle's.
        let least = if kind == 0 { 2 } else { 5 };
        let normalizes = !matches!(op, Op::Softmax(_) | Op::LogSoftmax(_) | Op::SoftmaxLastDim);
        let size = if let Op::GroupNorm(groups) = op { shape[1] / groups * shape[2..].iter().product::<usize>() } else { *shape.last().unwrap() };
        if normalizes && size < least {
            return Ok(());
        }
        let inputs = inputs(op, &shape, dtype, seed);
        let view = |t: &[Tensor]| -> Result<Vec<Tensor>> {
            let mut t = t.to_vec();
            if transposed && shape.len() > 1 {
                t[0] = t[0].transpose(0, shape.len() - 1)?.contiguous()?.transpose(0, shape.len() - 1)?;
            }
            Ok(t)
        };
        let (y, grads) = run(|t| op.ours(&view(t)?), &inputs, op.arguments());
        prop_assert_eq!(y.dtype(), dtype);
        prop_assert!(y.is_contiguous() || shape.len() == 4);
        // In f64, where all of this is exact.
        let exact: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
        let (theirs, expected) = {
            let vars: Vec<Var> = exact.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
            let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let theirs = op.candle(&tensors).unwrap();
            let dy = tensor(theirs.dims(), dtype, 99).to_dtype(DType::F64).unwrap();
            let grads = (&theirs * &dy).unwrap().sum_all().unwrap().backward().unwrap();
            (theirs.detach(), vars.iter().map(|var| grads.get(var).map(Tensor::detach)).collect::<Vec<_>>())
        };
        let what = format!("{op:?}, {shape:?}, {dtype:?}, transposed {transposed}");
        close(&y, &theirs, tolerance, &what);
        for (found, expected) in grads.iter().zip(expected) {
            prop_assert_eq!(found.dtype(), dtype);
            close(found, &expected.unwrap(), tolerance, &what);
        }
    }
}

/// A mean of 10000 times the deviation, which sums in f32 would lose.
#[test]
fn rows_far_from_zero() -> Result<()> {
    let noise = tensor(&[6, 300], DType::F64, 1);
    let x = ((noise * 300f64.sqrt())? + 1e4)?.to_dtype(DType::F32)?;
    let exact = x.to_dtype(DType::F64)?;
    let [weight, bias] = [2, 3].map(|seed| tensor(&[300], DType::F32, seed));
    let wide = [&weight, &bias].map(|affine| affine.to_dtype(DType::F64).unwrap());
    let y = nn::LayerNorm::new(weight, bias, EPS).forward(&x)?;
    close(&y, &ops::layer_norm_slow(&exact, &wide[0], &wide[1], EPS as f32)?, 1e-6, "layer norm");
    let [weight, bias] = [2, 3].map(|seed| tensor(&[6], DType::F32, seed));
    let wide = [&weight, &bias].map(|affine| affine.to_dtype(DType::F64).unwrap());
    let y = nn::GroupNorm::new(weight, bias, 6, 3, EPS)?.forward(&x.unsqueeze(0)?)?;
    let [weight, bias] = wide;
    let theirs = candle_nn::GroupNorm::new(weight, bias, 6, 3, EPS)?.forward(&exact.unsqueeze(0)?)?;
    close(&y, &theirs, 1e-6, "group norm");
    Ok(())
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    if is_for_the_cpu("rayon's threads") {
        return;
    }
    for (op, shape) in [
        (Op::LayerNorm, vec![700, 96]),
        (Op::RmsNorm, vec![40, 3000]),
        (Op::GroupNorm(4), vec![8, 16, 30, 30]),
        (Op::SoftmaxLastDim, vec![300, 129]),
        (Op::Softmax(1), vec![4, 50, 200]),
        (Op::LogSoftmax(0), vec![300, 300]),
    ] {
        let inputs = inputs(op, &shape, DType::F32, 5);
        let with = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (y, grads) = pool.install(|| run(|t| op.ours(t), &inputs, op.arguments()));
            std::iter::once(&y).chain(&grads).flat_map(bits).collect::<Vec<_>>()
        };
        assert_eq!(with(1), with(3), "{op:?}");
    }
}

/// As in PyTorch.
#[test]
fn infinity_and_nan() -> Result<()> {
    const INF: f32 = f32::INFINITY;
    let rows = [[0f32, -INF, 0.], [-INF; 3], [INF, 0., 1.], [f32::NAN, 0., 1.], [88., -88., 3e38]];
    for dim in [0, 1] {
        let x = Tensor::new(&rows, device())?;
        let x = Var::from_tensor(&if dim == 0 { x.t()?.contiguous()? } else { x })?;
        let rows = |y: &Tensor| if dim == 0 { y.t()?.to_vec2::<f32>() } else { y.to_vec2() };
        let dy = Tensor::new(&[[1f32, 2., 3.]; 5], device())?;
        let dy = if dim == 0 { dy.t()?.contiguous()? } else { dy };
        let (y, log) = (nn::ops::softmax(&x, dim)?, nn::ops::log_softmax(&x, dim)?);
        let dx = rows((y.clone() * &dy)?.sum_all()?.backward()?.get(&x).unwrap())?;
        assert_eq!(dx[0], [-0.5, 0., 0.5], "what is masked has no gradient");
        let (y, log) = (rows(&y)?, rows(&log)?);
        assert_eq!(y[0], [0.5, 0., 0.5]);
        assert_eq!((log[0][0], log[0][1]), (-2f32.ln(), -INF));
        for row in 1..4 {
            assert!(
                y[row].iter().chain(&log[row]).chain(&dx[row]).all(|y| y.is_nan()),
                "{row}: {y:?}, {log:?}, {dx:?}"
            );
        }
        assert_eq!(y[4], [0., 0., 1.]);
    }
    let weight = Tensor::ones(3, DType::F32, device())?;
    for bad in [[f32::NAN, 1., 2.], [INF, 1., 2.]] {
        let x = Tensor::new(&[bad, [1., 2., 3.]], device())?;
        let y = nn::LayerNorm::new_no_bias(weight.clone(), EPS).forward(&x)?.to_vec2::<f32>()?;
        assert!(y[0].iter().all(|y| y.is_nan()) && y[1].iter().all(|y| y.is_finite()), "{y:?}");
    }
    Ok(())
}

/// bf16 activations with weights in f32, which candle refuses; and the other way around.
#[test]
fn weights_of_another_type() -> Result<()> {
    for (x_type, weight_type) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16), (DType::F64, DType::F16)] {
        let x = Var::from_tensor(&tensor(&[4, 6, 10], x_type, 1))?;
        let [weight, bias] = [2, 3].map(|seed| Var::from_tensor(&tensor(&[10], weight_type, seed)).unwrap());
        let [w, b] = [&weight, &bias].map(|var| var.as_tensor().clone());
        let [channel_weight, channel_bias] = [&w, &b].map(|affine| affine.narrow(0, 0, 6).unwrap());
        for y in [
            nn::LayerNorm::new(w.clone(), b.clone(), EPS).forward(&x)?,
            nn::RmsNorm::new(w, EPS).forward(&x)?,
            nn::GroupNorm::new(channel_weight, channel_bias, 6, 2, EPS)?.forward(&x)?,
        ] {
            assert_eq!(y.dtype(), x_type);
            let grads = y.sum_all()?.backward()?;
            let found = [x.as_tensor(), weight.as_tensor()].map(|var| grads.get(var).unwrap().dtype());
            assert_eq!(found, [x_type, weight_type]);
        }
    }
    Ok(())
}

#[test]
fn variables_are_those_of_candle() -> Result<()> {
    let names = |vars: &VarMap| {
        let data = vars.data().lock().unwrap();
        let mut names: Vec<_> = data.iter().map(|(name, var)| (name.clone(), values(var))).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        names
    };
    let (ours, theirs) = (VarMap::new(), VarMap::new());
    let [a, b] = [&ours, &theirs].map(|vars| VarBuilder::from_varmap(vars, DType::F32, device()));
    nn::layer_norm(4, 1e-6, a.pp("norm"))?;
    candle_nn::layer_norm(4, 1e-6, b.pp("norm"))?;
    nn::layer_norm_no_bias(4, 1e-6, a.pp("no_bias"))?;
    candle_nn::layer_norm_no_bias(4, 1e-6, b.pp("no_bias"))?;
    nn::rms_norm(4, 1e-6, a.pp("rms"))?;
    candle_nn::rms_norm(4, 1e-6, b.pp("rms"))?;
    nn::group_norm(2, 4, 1e-6, a.pp("group"))?;
    candle_nn::group_norm(2, 4, 1e-6, b.pp("group"))?;
    assert_eq!(names(&ours), names(&theirs));

    let old =
        [("gamma", 2f32), ("beta", 3f32)].map(|(name, x)| (name.to_owned(), Tensor::full(x, 4, device()).unwrap()));
    let old = VarBuilder::from_tensors(old.into_iter().collect(), DType::F32, device());
    let layer = nn::layer_norm(4, nn::LayerNormConfig { eps: 1e-3, remove_mean: false, affine: true }, old)?;
    assert_eq!((values(layer.weight()), values(layer.bias().unwrap())), (vec![2.; 4], vec![3.; 4]));
    assert_eq!((layer.eps(), layer.remove_mean()), (1e-3, false));
    let y = values(&layer.forward(&Tensor::ones((1, 4), DType::F32, device())?)?);
    assert!(y.iter().all(|y| (y - (3. + 2. / 1.001f64.sqrt())).abs() < 1e-6), "{y:?}");

    let stock = candle_nn::RmsNorm::new(layer.weight().clone(), 0.5);
    let inner = nn::RmsNorm::from(stock).into_inner();
    assert_eq!((inner.eps(), inner.remove_mean(), inner.bias().is_none()), (0.5, false, true));
    Ok(())
}

/// candle broadcasts the weights of an input that is not contiguous.
#[test]
fn broadcast_weights_and_inputs_of_nothing() -> Result<()> {
    let x = Var::from_tensor(&tensor(&[3, 4], DType::F32, 1))?;
    for shape in [vec![1], vec![1, 4], vec![3, 1]] {
        let weight = Var::from_tensor(&tensor(&shape, DType::F32, 2))?;
        let y = nn::LayerNorm::new_no_bias(weight.as_tensor().clone(), EPS).forward(&x)?;
        let theirs = candle_nn::LayerNorm::new_no_bias(weight.as_tensor().clone(), EPS).forward(&x)?;
        close(&y, &theirs, 1e-6, &format!("{shape:?}"));
        assert_eq!(y.sum_all()?.backward()?.get(&weight).unwrap().dims(), shape);
    }
    let weight = Var::ones(4, DType::F32, device())?;
    let none = Var::zeros((0, 4), DType::F32, device())?;
    let y = nn::RmsNorm::new(weight.as_tensor().clone(), EPS).forward(&none)?;
    assert_eq!(y.dims(), [0, 4]);
    for shape in [vec![0, 4], vec![3, 0], vec![3, 0, 2], vec![0, 3, 2]] {
        let none = Tensor::zeros(shape.clone(), DType::F32, device())?;
        for dim in 0..shape.len() {
            assert_eq!(nn::ops::softmax(&none, dim)?.dims(), shape);
            assert_eq!(nn::ops::log_softmax(&none, dim)?.dims(), shape);
        }
    }
    let empty = Tensor::zeros(0, DType::F32, device())?;
    assert_eq!(nn::RmsNorm::new(empty, EPS).forward(&Tensor::zeros((3, 0), DType::F32, device())?)?.dims(), [3, 0]);
    let images = Tensor::zeros((2, 4, 0), DType::F32, device())?;
    let [weight, bias] = [weight.as_tensor().clone(), weight.as_tensor().clone()];
    assert_eq!(nn::GroupNorm::new(weight, bias, 4, 2, EPS)?.forward(&images)?.dims(), [2, 4, 0]);
    Ok(())
}

#[test]
fn errors_say_what_was_expected() -> Result<()> {
    let (x, four) = (Tensor::zeros((2, 3, 5), DType::F32, device())?, Tensor::zeros(4, DType::F32, device())?);
    let group = |channels, groups| nn::GroupNorm::new(four.clone(), four.clone(), channels, groups, EPS);
    let labels = Tensor::new(&[0u32, 7], device())?;
    for (found, expected) in [
        (nn::LayerNorm::new_no_bias(four.clone(), EPS).forward(&x), "expected a weight and a bias of 5"),
        (nn::ops::layer_norm(&x, &four, &four, EPS as f32), "found [4]"),
        (nn::ops::rms_norm(&x.to_dtype(DType::U32)?, &Tensor::zeros(5, DType::F32, device())?, EPS as f32), "U32"),
        (group(4, 3).map(|_| x.clone()), "divides the 4 channels"),
        (group(4, 2)?.forward(&x), "expected images of 4 channels"),
        (group(4, 2)?.forward(&four.unsqueeze(0)?), "at least three dimensions"),
        (group(3, 1)?.forward(&x), "expected a weight and a bias of 3"),
        (nn::ops::softmax(&x, 3), "out of range"),
        (nn::ops::softmax_last_dim(&Tensor::new(1f32, device())?), "out of range"),
        (
            nn::cross_entropy_per_example(&Tensor::zeros((2, 5), DType::F32, device())?, &labels),
            "labels in 0..5, found 7",
        ),
    ] {
        if device().is_cpu() {
            let error = found.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// One operation, beside candle's log-softmax and gather.
    #[test]
    fn cross_entropy_of_each((n, classes) in (1usize..8, 1usize..300), double: bool, seed in 0u64..1000) {
        let (dtype, tolerance) = if double { (DType::F64, 1e-12) } else { (DType::F32, 1e-5) };
        let logits = (tensor(&[n, classes], dtype, seed) * 20.0).unwrap();
        let labels: Vec<u32> = (0..n).map(|i| ((seed as usize + 7 * i) % classes) as u32).collect();
        let labels = Tensor::from_vec(labels, n, device()).unwrap();
        let (y, grads) = run(|t| nn::cross_entropy_per_example(&t[0], &labels), std::slice::from_ref(&logits), 1);
        let plain = |t: &[Tensor]| {
            let log = ops::log_softmax(&t[0], 1)?;
            log.gather(&labels.unsqueeze(1)?, 1)?.squeeze(1)?.neg()
        };
        let (theirs, expected) = run(plain, &[logits], 1);
        close(&y, &theirs, tolerance, "losses");
        close(&grads[0], &expected[0], tolerance, "gradient");
    }
}
