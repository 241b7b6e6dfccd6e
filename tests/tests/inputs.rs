//! The layers of `sam_runtime::nn` on inputs of all kinds: never a panic, and the values of candle's own layers.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Conv2dConfig, Module, ModuleT, VarBuilder, VarMap};
use sam_runtime::nn;
use sam_tests::{device, is_for_the_cpu, tensor, values};

type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// A layer and candle's, if it has one.
struct Pair {
    name: String,
    ours: Forward,
    stock: Option<Forward>,
}

fn pair(
    name: impl Into<String>,
    ours: impl Fn(&Tensor) -> Result<Tensor> + 'static,
    stock: impl Fn(&Tensor) -> Result<Tensor> + 'static,
) -> Pair {
    Pair { name: name.into(), ours: Box::new(ours), stock: Some(Box::new(stock)) }
}

fn alone(name: impl Into<String>, ours: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Pair {
    Pair { name: name.into(), ours: Box::new(ours), stock: None }
}

/// Weights are variables of f32 whose seeds are fixed, or of the type of the input.
fn var(shape: &[usize], dtype: DType) -> Tensor {
    let values = if shape.contains(&0) {
        Tensor::zeros(shape, dtype, device()).unwrap()
    } else {
        tensor(shape, DType::F32, 3).to_dtype(dtype).unwrap()
    };
    Var::from_tensor(&values).unwrap().as_tensor().clone()
}

fn layers(dtype: DType) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (i, o) in [(4, 3), (4, 0), (0, 3)] {
        let (w, b) = (var(&[o, i], dtype), var(&[o], dtype));
        let stock = candle_nn::Linear::new(w.clone(), Some(b.clone()));
        let ours = nn::Linear::from(stock.clone());
        pairs.push(pair(format!("linear {i} {o}"), move |x| ours.forward(x), move |x| stock.forward(x)));
        let stock = candle_nn::Linear::new(w, None);
        let ours = nn::Linear::from(stock.clone());
        pairs.push(pair(format!("linear {i} {o}, no bias"), move |x| ours.forward(x), move |x| stock.forward(x)));
    }
    for (groups, padding, bias) in [(1, 0, true), (1, 1, false), (3, 1, true)] {
        let config = Conv2dConfig { groups, padding, ..Default::default() };
        let bias = bias.then(|| var(&[6], dtype));
        let stock = candle_nn::Conv2d::new(var(&[6, 3 / groups, 2, 2], dtype), bias, config);
        let ours = nn::Conv2d::from(stock.clone());
        pairs.push(pair(format!("conv {groups} {padding}"), move |x| ours.forward(x), move |x| stock.forward(x)));
    }
    for train in [false, true] {
        let vars = [(); 2].map(|()| VarMap::new());
        let [ours, stock] = vars.each_ref().map(|vars| VarBuilder::from_varmap(vars, dtype, device()));
        if let (Ok(ours), Ok(stock)) = (nn::batch_norm(3, 1e-5, ours), candle_nn::batch_norm(3, 1e-5, stock)) {
            pairs.push(pair(
                format!("batch norm, train: {train}"),
                move |x| ours.forward_t(x, train),
                move |x| stock.forward_t(x, train),
            ));
        }
        pairs.push(alone(format!("dropout, train: {train}"), move |x| nn::Dropout::seeded(0.5, 1).forward(x, train)));
        pairs.push(alone(format!("shake, train: {train}"), move |x| {
            nn::ShakeShake::new(nn::RngStream::new(1)).forward(x, x, train)
        }));
        pairs.push(alone(format!("shake-drop, train: {train}"), move |x| {
            nn::ShakeDrop::new(0.5, nn::RngStream::new(1)).forward(x, train)
        }));
    }
    // candle's gradients of pools are others, also where windows do not overlap: `layers.rs` has the definitions.
    pairs.push(pair("max pool", |x| nn::max_pool2d(&x.detach(), 2, 2, 0), |x| x.detach().max_pool2d(2)));
    pairs.push(pair("avg pool", |x| nn::avg_pool2d(&x.detach(), 2, 2, 0), |x| x.detach().avg_pool2d(2)));
    pairs.push(alone("max pool, with its gradient", |x| nn::max_pool2d(x, 2, 2, 0)));
    pairs.push(alone("max pool, padded", |x| nn::max_pool2d(x, 3, 1, 1)));
    pairs.push(pair("global avg pool", nn::global_avg_pool2d, |x| x.mean((2, 3))));
    pairs.push(pair("relu", nn::relu, Tensor::relu));
    pairs.push(pair("add", |x| nn::add(x, x), |x| x + x));
    pairs.push(pair("to f64", |x| nn::to_dtype(x, DType::F64), |x| x.to_dtype(DType::F64)));
    pairs.push(pair("penalty", |x| nn::l2_penalty(x, 0.5), |x| x.sqr()?.sum_all()? * 0.25));
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let labels = move |x: &Tensor| {
            let shape: Vec<usize> = x.dims().iter().take(1).chain(x.dims().iter().skip(2)).copied().collect();
            Tensor::zeros(shape, dtype, device())
        };
        pairs.push(pair(
            format!("cross entropy, {dtype:?}"),
            move |x| nn::cross_entropy(x, &labels(x)?),
            move |x| candle_nn::loss::cross_entropy(x, &labels(x)?),
        ));
        pairs.push(alone(format!("ignoring, {dtype:?}"), move |x| nn::cross_entropy_ignoring(x, &labels(x)?, 0)));
        pairs.push(alone("smoothed", move |x| nn::cross_entropy_with_label_smoothing(x, &labels(x)?, 0.3)));
    }
    pairs.push(alone("soft", |x| nn::cross_entropy_with_probs(x, x)));
    pairs.push(alone("channels last", nn::channels_last));
    pairs
}

const SHAPES: [&[usize]; 26] = [
    &[],
    &[4],
    &[0],
    &[2, 4],
    &[0, 4],
    &[2, 0],
    &[0, 0],
    &[1, 3],
    &[2, 3],
    &[0, 3],
    &[2, 3, 4],
    &[2, 3, 0],
    &[0, 3, 4],
    &[2, 3, 5, 4],
    &[2, 3, 2, 4],
    &[1, 3, 1, 1],
    &[0, 3, 5, 4],
    &[2, 0, 5, 4],
    &[2, 3, 0, 4],
    &[2, 3, 5, 0],
    &[0, 0, 0, 0],
    &[2, 6, 5, 4],
    &[2, 3, 2, 3, 4],
    &[2, 3, 0, 3, 4],
    &[2, 3, 1, 2, 3, 4],
    &[0, 3, 1, 2, 3, 4],
];

/// Tensors of this shape: contiguous, with strides, with an offset, broadcast.
fn layouts(shape: &[usize], dtype: DType) -> Vec<Tensor> {
    let make = |shape: &[usize]| {
        if shape.is_empty() {
            return (Tensor::ones((), DType::F32, device()).unwrap() * 1.5).unwrap().to_dtype(dtype).unwrap();
        }
        let t = if shape.contains(&0) {
            Tensor::zeros(shape, DType::F32, device()).unwrap()
        } else {
            // Positive, as integers have to be.
            ((tensor(shape, DType::F32, 7) + 1.).unwrap() * 2.).unwrap()
        };
        t.to_dtype(dtype).unwrap()
    };
    let mut layouts = vec![make(shape)];
    if let [.., a, b] = *shape {
        let mut swapped = shape.to_vec();
        swapped[shape.len() - 2..].copy_from_slice(&[b, a]);
        layouts.push(make(&swapped).transpose(shape.len() - 2, shape.len() - 1).unwrap());
    }
    if let [a, rest @ ..] = shape {
        let longer: Vec<usize> = std::iter::once(a + 2).chain(rest.iter().copied()).collect();
        layouts.push(make(&longer).narrow(0, 1, *a).unwrap());
        let one: Vec<usize> = std::iter::once(1).chain(rest.iter().copied()).collect();
        layouts.push(make(&one).broadcast_as(shape).unwrap());
    }
    layouts
}

/// The output of a layer and the gradient of its input, an error, or a panic.
fn run(f: &Forward, x: &Tensor) -> std::result::Result<Result<(Tensor, Option<Tensor>)>, ()> {
    let run = || {
        // A variable whose view is the input, so that it keeps its layout.
        let y = f(x)?;
        let var = Var::from_tensor(&x.contiguous()?)?;
        let gradient = if x.dtype().is_float() {
            let y = f(var.as_tensor())?;
            let loss = y.to_dtype(DType::F64)?.sqr()?.sum_all()?;
            loss.backward()?.get(&var).cloned()
        } else {
            None
        };
        Ok((y, gradient))
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(drop)
}

/// Inputs that candle accepts, or does not find wrong, and these layers refuse.
fn is_refused(name: &str, x: &Tensor) -> bool {
    if !x.dtype().is_float() {
        return true;
    }
    let pixels: usize = x.dims().iter().skip(2).product();
    if name.starts_with("batch norm, train: true") {
        return x.elem_count() <= 3;
    }
    if name.starts_with("conv") {
        // candle computes with a height of 1 - 2 + 1, in unsigned numbers.
        return pixels <= 1;
    }
    name == "global avg pool" && (pixels == 0 || x.rank() != 4)
}

/// What is wrong with a layer's result, if anything.
fn difference(pair: &Pair, x: &Tensor) -> Option<String> {
    // candle's product of strided batches with a broadcast weight is wrong: it gets a copy.
    let stock = pair.stock.as_ref().map(|stock| run(stock, &x.contiguous().unwrap()));
    match (run(&pair.ours, x), stock) {
        (Err(()), _) => Some("a panic".to_owned()),
        (Ok(Err(error)), Some(Ok(Ok((y, _))))) if !is_refused(&pair.name, x) => {
            Some(format!("{error}, but candle has {:?} of {:?}", y.dims(), y.dtype()))
        }
        (Ok(Ok((y, gradient))), Some(Ok(Ok((expected, expected_gradient))))) => {
            let scale = if x.dtype().size_in_bytes() < 4 { 0.05 } else { 1e-4 };
            let is_close = |a: &Tensor, b: &Tensor| {
                let close = |(a, b): (&f64, &f64)| (a - b).abs() <= scale * (1. + b.abs()) || a.is_nan() && b.is_nan();
                a.dims() == b.dims() && values(a).iter().zip(&values(b)).all(close)
            };
            if y.dtype() != expected.dtype() || !is_close(&y, &expected) {
                return Some(format!("{:?}, but candle has {:?}", values(&y), values(&expected)));
            }
            let (a, b) = gradient.zip(expected_gradient)?;
            (!is_close(&a, &b)).then(|| format!("the gradient is {:?}, but candle's is {:?}", values(&a), values(&b)))
        }
        _ => None,
    }
}

#[test]
fn any_input() {
    if is_for_the_cpu("candle's panics would take the context with them") {
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut wrong = Vec::new();
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16, DType::U8, DType::U32, DType::I64] {
        let mut weights = vec![DType::F32, dtype];
        weights.dedup();
        for weights in weights {
            for pair in layers(weights) {
                for x in SHAPES.iter().flat_map(|shape| layouts(shape, dtype)) {
                    if let Some(difference) = difference(&pair, &x) {
                        let (name, shape, stride) = (&pair.name, x.dims(), x.stride());
                        wrong.push(format!(
                            "{name} in {weights:?} of {dtype:?} {shape:?} {stride:?}: {difference:.300}"
                        ));
                    }
                }
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n")
    );
}
