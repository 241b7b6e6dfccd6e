//! Activations, embeddings, rotary embeddings and elementwise losses: values of candle, and gradients of differences.

#![allow(clippy::cast_sign_loss, reason = "labels are made of numbers that are not negative")]
#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::RefCell;

use candle_core::{D, DType, Result, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use proptest::prelude::*;
use sam_runtime::nn::{self, Activation, loss, ops, rotary_emb};
use sam_runtime::{Sam, nn::Embedding};
use sam_tests::{bits, central_difference, device, is_for_the_cpu, numbers, tensor, values};

type Outcome = std::result::Result<(), TestCaseError>;

/// Relative to the largest of the numbers.
fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> Outcome {
    prop_assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let scale = b.iter().fold(1e-3_f64, |m, b| m.max(b.abs()));
    for (a, b) in a.iter().zip(&b) {
        prop_assert!((a - b).abs() <= tolerance * scale, "{} and {}, largest {}", a, b, scale);
    }
    Ok(())
}

/// The output of `f`, and the gradients of each input: zeros where it gets none.
fn run(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], seed: u64) -> (Tensor, Vec<Tensor>) {
    let (y, grads) = sam_tests::run(f, inputs, seed);
    let gradient = |(grad, input): (Option<Tensor>, &Tensor)| grad.unwrap_or_else(|| input.zeros_like().unwrap());
    (y, grads.into_iter().zip(inputs).map(gradient).collect())
}

/// Compares gradients of `f` in f64 with differences along a random direction of each input.
fn differences(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], seed: u64) -> Outcome {
    let (_, grads) = run(&f, inputs, seed);
    for (i, grad) in grads.iter().enumerate() {
        let u = tensor(inputs[i].dims(), DType::F64, seed + 10 + i as u64);
        let slope = values(&(grad * &u).unwrap().sum_all().unwrap())[0];
        let difference = central_difference(&f, inputs, seed, (i, &u), 1e-5);
        prop_assert!(
            (slope - difference).abs() < 1e-7 * (1.0 + slope.abs()),
            "input {}: {} and {}",
            i,
            slope,
            difference
        );
    }
    Ok(())
}

type Function = fn(&Tensor) -> Result<Tensor>;

/// Name, ours, candle's.
const FUNCTIONS: [(&str, Function, Function); 14] = [
    ("gelu", nn::gelu, Tensor::gelu),
    ("gelu_erf", nn::gelu_erf, Tensor::gelu_erf),
    ("silu", ops::silu, candle_nn::ops::silu),
    ("sigmoid", ops::sigmoid, candle_nn::ops::sigmoid),
    ("tanh", nn::tanh, Tensor::tanh),
    ("mish", ops::mish, candle_nn::ops::mish),
    ("relu2", nn::relu2, |x| x.relu()?.sqr()),
    ("relu6", nn::relu6, |x| x.clamp(0f32, 6f32)),
    ("hard_sigmoid", ops::hard_sigmoid, candle_nn::ops::hard_sigmoid),
    ("hard_swish", nn::hard_swish, |x| x * candle_nn::ops::hard_sigmoid(x)?),
    ("leaky_relu", |x| ops::leaky_relu(x, 0.1), |x| candle_nn::ops::leaky_relu(x, 0.1)),
    ("elu", |x| nn::elu(x, 1.5), |x| x.elu(1.5)),
    ("selu", |x| ops::selu(x, 1.5, 1.25), |x| x.elu(1.5)? * 1.25),
    ("swiglu", ops::swiglu, candle_nn::ops::swiglu),
];

/// A shape whose last dimension is even.
fn shape() -> impl Strategy<Value = Vec<usize>> {
    (prop::collection::vec(1usize..6, 0..4), 1usize..40).prop_map(|(mut shape, half)| {
        shape.push(2 * half);
        shape
    })
}

/// Numbers of [-8, 8), none near a corner.
fn spread(shape: &[usize], seed: u64) -> Tensor {
    let away =
        |x: f64| [-3.0, 0.0, 3.0, 6.0].into_iter().fold(x, |x, c| if (x - c).abs() < 1e-3 { x + 3e-3 } else { x });
    let numbers = numbers(shape.iter().product(), seed).into_iter().map(|x| away(8.0 * x)).collect::<Vec<_>>();
    Tensor::from_vec(numbers, shape, device()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn activations(which in 0..FUNCTIONS.len(), shape in shape(), transposed: bool, seed in 0u64..1000) {
        let (_, ours, candle) = FUNCTIONS[which];
        let x = spread(&shape, seed);
        // In f64 the values are candle's.
        let (y, grads) = run(|t| ours(&t[0]), std::slice::from_ref(&x), seed + 1);
        close(&y, &candle(&x).unwrap(), 1e-12)?;
        differences(|t| ours(&t[0]), std::slice::from_ref(&x), seed + 1)?;
        // f32 is f64, rounded.
        let narrow = x.to_dtype(DType::F32).unwrap();
        let (y32, grads32) = run(|t| ours(&t[0]), std::slice::from_ref(&narrow), seed + 1);
        close(&y32, &y, 1e-6)?;
        close(&grads32[0], &grads[0], 1e-6)?;
        if device().is_cpu() {
            for dtype in [DType::BF16, DType::F16] {
                let x = x.to_dtype(dtype).unwrap();
                let expected = ours(&x.to_dtype(DType::F32).unwrap()).unwrap().to_dtype(dtype).unwrap();
                prop_assert_eq!(values(&ours(&x).unwrap()), values(&expected));
            }
        }
        if transposed && shape.len() > 1 {
            let last = shape.len() - 2;
            let view = x.transpose(D::Minus1, last).unwrap().contiguous().unwrap().transpose(D::Minus1, last).unwrap();
            close(&ours(&view).unwrap(), &y, 0.0)?;
        }
    }

    #[test]
    fn slopes_of_negative_numbers(shape in prop::collection::vec(1usize..6, 1..5), kind in 0usize..3, seed in 0u64..1000) {
        let weight = match kind {
            0 => vec![1],
            1 => shape.clone(),
            _ => vec![if shape.len() > 1 { shape[1] } else { shape[0] }],
        };
        let inputs = [spread(&shape, seed), tensor(&weight, DType::F64, seed + 1)];
        let ours = |t: &[Tensor]| nn::PReLU::new(t[1].clone(), kind == 0).forward(&t[0]);
        let theirs = |t: &[Tensor]| candle_nn::PReLU::new(t[1].clone(), kind == 0).forward(&t[0]);
        let ((y, grads), (expected, theirs)) = (run(ours, &inputs, seed + 2), run(theirs, &inputs, seed + 2));
        close(&y, &expected, 1e-14)?;
        for (found, expected) in grads.iter().zip(&theirs) {
            close(found, expected, 1e-12)?;
        }
        differences(ours, &inputs, seed + 2)?;
    }

    #[test]
    fn embeddings(rows in 1usize..30, columns in 1usize..140, shape in prop::collection::vec(1usize..7, 0..4), seed in 0u64..1000) {
        let count = shape.iter().product::<usize>();
        let ids: Vec<i64> = numbers(count, seed).iter().map(|x| ((x + 1.0) / 2.0 * rows as f64) as i64).collect();
        let ids = Tensor::from_vec(ids, &shape[..], device()).unwrap();
        let table = tensor(&[rows, columns], DType::F64, seed + 1);
        let candle = |t: &[Tensor]| {
            t[0].index_select(&ids.flatten_all()?, 0)?.reshape([&shape[..], &[columns]].concat())
        };
        let (expected, gradient) = run(candle, std::slice::from_ref(&table), seed + 2);
        for dtype in [DType::I64, DType::U32, DType::U8] {
            let ids = ids.to_dtype(dtype).unwrap();
            let ours = |t: &[Tensor]| Embedding::new(t[0].clone(), columns).forward(&ids);
            let (y, grads) = run(ours, std::slice::from_ref(&table), seed + 2);
            close(&y, &expected, 0.0)?;
            close(&grads[0], &gradient[0], 1e-13)?;
        }
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-2), (DType::F16, 1e-3)] {
            let table = table.to_dtype(dtype).unwrap();
            let ours = |t: &[Tensor]| Embedding::new(t[0].clone(), columns).forward(&ids);
            let (y, grads) = run(ours, std::slice::from_ref(&table), seed + 2);
            prop_assert_eq!((y.dtype(), grads[0].dtype()), (dtype, dtype));
            close(&grads[0], &gradient[0], tolerance)?;
        }
    }

    #[test]
    fn rotations(sizes in (1usize..4, 1usize..4, 1usize..8, 1usize..10), more in 0usize..3, kind in 0usize..3, each: bool, seed in 0u64..1000) {
        let (batch, heads, time, half) = sizes;
        let shape = if kind == 2 { [batch, time, heads, 2 * half] } else { [batch, heads, time, 2 * half] };
        let rope = [rotary_emb::rope, rotary_emb::rope_i, rotary_emb::rope_thd][kind];
        let angles = if each { vec![batch, time + more, half] } else { vec![time + more, half] };
        let [cos, sin] = [1, 2].map(|i| tensor(&angles, DType::F64, seed + i));
        let x = tensor(&shape, DType::F64, seed);
        // Of each example by itself, with candle's slow rotations.
        let slow = |t: &[Tensor]| {
            let mut examples = Vec::new();
            for i in 0..batch {
                let of = |angles: &Tensor| if each { angles.get(i) } else { Ok(angles.clone()) };
                let (x, cos, sin) = (t[0].narrow(0, i, 1)?, of(&cos)?.contiguous()?, of(&sin)?.contiguous()?);
                examples.push(match kind {
                    0 => rotary_emb::rope_slow(&x, &cos, &sin)?,
                    1 => rotary_emb::rope_i_slow(&x.contiguous()?, &cos, &sin)?,
                    _ => rotary_emb::rope_slow(&x.transpose(1, 2)?.contiguous()?, &cos, &sin)?.transpose(1, 2)?,
                });
            }
            Tensor::cat(&examples, 0)
        };
        let (expected, gradient) = run(slow, std::slice::from_ref(&x), seed + 3);
        let (y, grads) = run(|t| rope(&t[0], &cos, &sin), std::slice::from_ref(&x), seed + 3);
        close(&y, &expected, 1e-13)?;
        close(&grads[0], &gradient[0], 1e-13)?;
        // Angles that need gradients get them.
        let all = [x.clone(), cos.clone(), sin.clone()];
        close(&run(|t| rope(&t[0], &t[1], &t[2]), &all, seed + 3).0, &expected, 1e-13)?;
        differences(|t| rope(&t[0], &t[1], &t[2]), &all, seed + 3)?;
        // Other types, and strides that candle refuses.
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 2e-2), (DType::F16, 2e-3)] {
            let [x, cos, sin] = all.each_ref().map(|t| t.to_dtype(dtype).unwrap());
            close(&rope(&x, &cos, &sin).unwrap(), &expected, tolerance)?;
        }
        let view = x.transpose(1, 3).unwrap().contiguous().unwrap().transpose(1, 3).unwrap();
        close(&rope(&view, &cos, &sin).unwrap(), &expected, 1e-13)?;
    }

    #[test]
    fn losses(shape in prop::collection::vec(1usize..40, 0..4), which in 0..3, seed in 0u64..1000) {
        let ours = |t: &[Tensor]| match which {
            0 => loss::mse(&t[0], &t[1]),
            1 => loss::huber(&t[0], &t[1], 0.7),
            _ => loss::binary_cross_entropy_with_logit(&t[0], &t[1]),
        };
        let theirs = |t: &[Tensor]| match which {
            0 => candle_nn::loss::mse(&t[0], &t[1]),
            1 => candle_nn::loss::huber(&t[0], &t[1], 0.7),
            _ => candle_nn::loss::binary_cross_entropy_with_logit(&t[0], &t[1]),
        };
        let target = ((tensor(&[&shape[..], &[1]].concat(), DType::F64, seed + 1) + 1.0).unwrap() / 2.0).unwrap();
        let inputs = [spread(&shape, seed), target.reshape(&shape[..]).unwrap()];
        let ((y, grads), (expected, theirs)) = (run(ours, &inputs, seed), run(theirs, &inputs, seed));
        close(&y, &expected, 1e-12)?;
        for (found, expected) in grads.iter().zip(&theirs) {
            close(found, expected, 1e-11)?;
        }
        let narrow = inputs.each_ref().map(|t| t.to_dtype(DType::F32).unwrap());
        let (y32, grads32) = run(ours, &narrow, seed);
        close(&y32, &y, 1e-6)?;
        close(&grads32[0], &grads[0], 1e-6)?;
    }

    #[test]
    fn likelihoods(n in 1usize..20, classes in 1usize..30, seed in 0u64..1000) {
        let labels: Vec<u32> = numbers(n, seed).iter().map(|x| ((x + 1.0) / 2.0 * classes as f64) as u32).collect();
        let labels = Tensor::new(labels, device()).unwrap();
        let x = tensor(&[n, classes], DType::F64, seed + 1);
        let (y, grads) = run(|t| loss::nll(&t[0], &labels), std::slice::from_ref(&x), seed);
        let (expected, theirs) = run(|t| candle_nn::loss::nll(&t[0], &labels), std::slice::from_ref(&x), seed);
        close(&y, &expected, 1e-14)?;
        close(&grads[0], &theirs[0], 1e-14)?;
        let whole = loss::cross_entropy(&x, &labels).unwrap();
        close(&whole, &candle_nn::loss::cross_entropy(&x, &labels).unwrap(), 1e-12)?;
    }
}

/// Large and infinite numbers give limits, also of gradients, and NaN stays NaN.
#[test]
fn limits() {
    let x = [f32::NEG_INFINITY, f32::MIN, -1e4, 1e4, f32::MAX, f32::INFINITY];
    for (name, ours, _) in &FUNCTIONS[..13] {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::new(&x, device()).unwrap().to_dtype(dtype).unwrap();
            let (y, grads) = run(|t| ours(&t[0])?.clamp(-1e30, 1e30), std::slice::from_ref(&x), 1);
            // The derivative of a square is ∞ too.
            let slopes = if *name == "relu2" { Vec::new() } else { values(&grads[0]) };
            assert!(values(&y).iter().chain(&slopes).all(|x| !x.is_nan()), "{name}: {y} {}", grads[0]);
            let nan = Tensor::new(&[f32::NAN], device()).unwrap().to_dtype(dtype).unwrap();
            assert!(values(&ours(&nan).unwrap())[0].is_nan(), "{name}");
        }
    }
}

#[test]
fn certain_logits_have_a_finite_loss() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let x = Tensor::new(&[-1000f32, 1000., -1000., 1000., 0.], device()).unwrap().to_dtype(dtype).unwrap();
        let labels = Tensor::new(&[0u32, 1, 1, 0, 1], device()).unwrap();
        let (y, grads) = run(|t| loss::binary_cross_entropy_with_logit(&t[0], &labels), std::slice::from_ref(&x), 1);
        assert!((values(&y)[0] - 400.1).abs() < 2.0, "{y}");
        let expected = [0.0, 0.0, -0.2, 0.2, -0.1];
        for (found, expected) in values(&grads[0]).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3, "{}", grads[0]);
        }
    }
    if device().is_cpu() {
        let x = Tensor::new(&[f32::NEG_INFINITY, f32::INFINITY], device()).unwrap();
        let labels = Tensor::new(&[0f32, 1.], device()).unwrap();
        assert_eq!(values(&loss::binary_cross_entropy_with_logit(&x, &labels).unwrap()), [0.0]);
    }
}

/// A table that is an embedding and the weight of the last layer.
#[test]
fn tied_weights_get_both_gradients() {
    let ids = Tensor::new(&[3u32, 0, 3, 1], device()).unwrap();
    let f = |t: &[Tensor]| {
        let x = nn::gelu(&Embedding::new(t[0].clone(), 6).forward(&ids)?)?;
        loss::cross_entropy(&nn::Linear::new(t[0].clone(), None).forward(&x)?, &ids)
    };
    differences(f, &[tensor(&[5, 6], DType::F64, 1)], 2).unwrap();
}

#[test]
fn the_largest_id_is_a_row_of_zeros_and_others_are_errors() {
    let table = Var::from_tensor(&tensor(&[4, 3], DType::F32, 1)).unwrap();
    let layer = Embedding::new(table.as_tensor().clone(), 3);
    let y = layer.forward(&Tensor::new(&[u32::MAX, 2], device()).unwrap()).unwrap();
    assert_eq!(values(&y)[..3], [0.0; 3]);
    let gradient = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(gradient.get(&table).unwrap()), [0., 0., 0., 0., 0., 0., 1., 1., 1., 0., 0., 0.]);
    if is_for_the_cpu("ids are not checked") {
        return;
    }
    for (ids, id) in
        [(Tensor::new(&[[0u32, 1], [4, 2]], device()), "4"), (Tensor::new(&[[0i64, 1], [-1, 2]], device()), "-1")]
    {
        let error = layer.forward(&ids.unwrap()).unwrap_err().to_string();
        assert!(error.contains(&format!("expected indices in 0..4, found {id} at index 2")), "{error}");
    }
}

#[test]
fn layers_of_a_var_builder_are_candles() {
    let (ours, theirs) = (VarMap::new(), VarMap::new());
    let vb = |vars: &VarMap| VarBuilder::from_varmap(vars, DType::F32, device());
    let (embedding, prelu) =
        (nn::embedding(5, 4, vb(&ours).pp("e")).unwrap(), nn::prelu(Some(3), vb(&ours).pp("p")).unwrap());
    candle_nn::embedding(5, 4, vb(&theirs).pp("e")).unwrap();
    candle_nn::prelu(Some(3), vb(&theirs).pp("p")).unwrap();
    let names = |vars: &VarMap| {
        let vars = vars.data().lock().unwrap();
        let mut names: Vec<_> = vars.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs));
    assert_eq!((embedding.hidden_size(), embedding.embeddings().dims()), (4, &[5, 4][..]));
    assert_eq!((values(prelu.weight()), prelu.is_scalar()), (vec![0.25; 3], false));
}

#[test]
fn the_enumeration_has_candles_functions() {
    let x = spread(&[6, 10], 1);
    let all = [
        Activation::Gelu,
        Activation::NewGelu,
        Activation::Relu,
        Activation::Relu2,
        Activation::Relu6,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::HardSigmoid,
        Activation::Swiglu,
        Activation::Swish,
        Activation::Mish,
        Activation::HardSwish,
        Activation::Elu(0.7),
        Activation::LeakyRelu(0.2),
        Activation::LeakyRelu(0.0),
        Activation::GeluPytorchTanh,
    ];
    for activation in all {
        let stock = candle_nn::Activation::from(activation);
        assert_eq!(Activation::from(stock), activation);
        close(&activation.forward(&x).unwrap(), &stock.forward(&x).unwrap(), 1e-12).unwrap();
    }
    assert_eq!(Activation::default(), candle_nn::Activation::default().into());
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    if is_for_the_cpu("it has no threads") {
        return;
    }
    let (x, ids) = (
        tensor(&[9, 301, 40], DType::F32, 1),
        Tensor::new(numbers(2709, 2).iter().map(|x| ((x + 1.0) * 3.0) as u32).collect::<Vec<_>>(), device()).unwrap(),
    );
    let table = tensor(&[6, 97], DType::F32, 3);
    let angles = tensor(&[301, 10], DType::F32, 4);
    let digest = || {
        let mut all = Vec::new();
        let mut push = |(y, grads): (Tensor, Vec<Tensor>)| {
            all.push(bits(&y));
            all.extend(grads.iter().map(bits));
        };
        for (_, ours, _) in FUNCTIONS {
            push(run(|t| ours(&t[0]), std::slice::from_ref(&x), 5));
        }
        push(run(|t| Embedding::new(t[0].clone(), 97).forward(&ids), std::slice::from_ref(&table), 6));
        let heads = x.reshape((9, 301, 2, 20)).unwrap();
        push(run(|t| rotary_emb::rope_thd(&t[0], &angles, &angles), std::slice::from_ref(&heads), 7));
        let pair = [x.clone(), (&x * 0.3).unwrap()];
        push(run(|t| loss::mse(&t[0], &t[1]), &pair, 8));
        push(run(|t| loss::huber(&t[0], &t[1], 0.1), &pair, 8));
        push(run(|t| loss::binary_cross_entropy_with_logit(&t[0], &t[1]), &pair, 8));
        push(run(
            |t| nn::PReLU::new(t[1].clone(), false).forward(&t[0]),
            &[x.clone(), tensor(&[301], DType::F32, 9)],
            10,
        ));
        push(run(|t| nn::PReLU::new(t[1].clone(), true).forward(&t[0]), &[x.clone(), tensor(&[1], DType::F32, 9)], 10));
        all
    };
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(digest);
    let one = on(1);
    assert!(on(2) == one);
    assert!(on(5) == one);
}

#[test]
fn both_passes_drop_the_same_elements() {
    let x = Var::ones(200, DType::F32, device()).unwrap();
    let masks = RefCell::new(Vec::new());
    let draw = || -> Result<Tensor> {
        let y = ops::dropout(&x, 0.5)?;
        masks.borrow_mut().push(bits(&y).iter().map(|y| *y != 0).collect::<Vec<_>>());
        y.sum_all()
    };
    let sam = Sam::new(0.1);
    for _ in 0..2 {
        sam.loss(draw).unwrap();
    }
    let masks = masks.take();
    assert!(masks[0] == masks[1] && masks[2] == masks[3] && masks[0] != masks[2]);
}

/// Every error says what was expected.
#[test]
fn what_does_not_fit_is_refused() {
    let x = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device()).unwrap();
    let angles = x(&[5, 4]);
    let labels = Tensor::new(&[0u32, 9], device()).unwrap();
    let results = [
        ops::swiglu(&x(&[2, 3])),
        ops::swiglu(&x(&[])),
        nn::glu(&x(&[2, 3])),
        rotary_emb::rope(&x(&[1, 2, 6, 8]), &angles, &angles),
        rotary_emb::rope_i(&x(&[1, 2, 5, 6]), &angles, &angles),
        rotary_emb::rope_thd(&x(&[2, 5, 2, 8]), &x(&[1, 5, 4]), &angles),
        loss::mse(&x(&[2, 3]), &x(&[3])),
        loss::huber(&x(&[0]), &x(&[0]), 1.0),
        loss::nll(&x(&[3, 4]), &labels),
        nn::PReLU::new(x(&[3]), false).forward(&x(&[2, 4])),
        nn::PReLU::new(x(&[3]), false).forward(&x(&[4])),
        Embedding::new(x(&[5, 4]), 3).forward(&labels),
    ];
    for (i, result) in results.into_iter().enumerate() {
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("expected "), "{i}: {error}");
    }
}
