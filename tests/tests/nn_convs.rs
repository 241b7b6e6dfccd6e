//! Convolutions of all kinds, interpolation and recurrent layers of `sam_runtime::nn`: values of plain loops and of candle's own
//! operations, gradients of differences.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig, Module, VarBuilder, VarMap};
use proptest::prelude::*;
use sam_runtime::nn::{self, RNN};
use sam_tests::{bits, central_difference, device, is_for_the_cpu, tensor, values};

type Checked = std::result::Result<(), TestCaseError>;

/// Relative to the largest of the numbers.
fn close(a: &[f64], b: &[f64], tolerance: f64) -> Checked {
    prop_assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1e-3_f64, |m, b| m.max(b.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        prop_assert!((a - b).abs() <= tolerance * scale, "{} and {} at {}, largest {}", a, b, i, scale);
    }
    Ok(())
}

/// The output of `f`, and the gradients of all inputs.
fn run(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], seed: u64) -> (Tensor, Vec<Tensor>) {
    let (y, grads) = sam_tests::run(f, inputs, seed);
    (y, grads.into_iter().map(Option::unwrap).collect())
}

/// The gradients in f64 against central differences in a random direction of each input, and those in f32 against these.
fn check_gradients(f: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], step: f64, tolerance: f64) -> Checked {
    let (y, grads) = run(f, inputs, 77);
    for (i, grad) in grads.iter().enumerate() {
        let u = tensor(inputs[i].dims(), DType::F64, 100 + i as u64);
        let expected = central_difference(f, inputs, 77, (i, &u), step);
        let products: Vec<f64> = values(grad).iter().zip(values(&u)).map(|(g, u)| g * u).collect();
        let (found, scale) = (products.iter().sum::<f64>(), products.iter().map(|p| p.abs()).sum::<f64>() + 1e-3);
        prop_assert!((found - expected).abs() <= tolerance * scale, "argument {}: {} and {}", i, found, expected);
    }
    let narrow: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
    let (y32, grads32) = run(f, &narrow, 77);
    close(&values(&y32), &values(&y), 1e-5)?;
    for (narrow, wide) in grads32.iter().zip(&grads) {
        prop_assert_eq!(narrow.dims(), wide.dims());
        close(&values(narrow), &values(wide), 2e-5)?;
    }
    Ok(())
}

/// One side: input, kernel, stride, padding, dilation and output padding.
#[derive(Clone, Copy, Debug)]
struct Side {
    input: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    more: usize,
}

impl Side {
    const ONE: Self = Self { input: 1, kernel: 1, stride: 1, padding: 0, dilation: 1, more: 0 };

    fn output(self) -> usize {
        (self.input + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) / self.stride + 1
    }

    fn transposed(self) -> usize {
        (self.input - 1) * self.stride + self.dilation * (self.kernel - 1) + self.more + 1 - 2 * self.padding
    }

    /// The same, large enough for its kernel.
    fn fitting(self) -> Self {
        let least = (self.dilation * (self.kernel - 1) + 1).saturating_sub(2 * self.padding);
        Self { input: self.input.max(least).max(1), ..self }
    }

    /// The same, with so little padding that something is left of a transposed convolution.
    fn padded_less(self) -> Self {
        let padding = self.padding.min(usize::midpoint(self.dilation * (self.kernel - 1), self.more));
        Self { input: self.input.max(1), padding, ..self }
    }
}

fn side(most: usize) -> impl Strategy<Value = Side> {
    (1..=most, 1usize..6, 1usize..4, 0usize..4, 1usize..3, 0usize..3).prop_map(
        |(input, kernel, stride, padding, dilation, more)| Side { input, kernel, stride, padding, dilation, more },
    )
}

/// The definition of a convolution of x (n, c, ..) and w (f, c / groups, ..).
fn convolution(x: &Tensor, w: &Tensor, groups: usize, [down, right]: [Side; 2]) -> Vec<f64> {
    let ((n, c), (f, cg)) = ((x.dims()[0], x.dims()[1]), (w.dims()[0], w.dims()[1]));
    let (x, w) = (values(x), values(w));
    let (oh, ow) = (down.output(), right.output());
    let mut y = vec![0.; n * f * oh * ow];
    for (i, y) in y.iter_mut().enumerate() {
        let (image, filter, row, column) = (i / (f * oh * ow), i / (oh * ow) % f, i / ow % oh, i % ow);
        for j in 0..cg * down.kernel * right.kernel {
            let (channel, dy, dx) =
                (j / (down.kernel * right.kernel), j / right.kernel % down.kernel, j % right.kernel);
            let (top, left) = (row * down.stride + dy * down.dilation, column * right.stride + dx * right.dilation);
            if top < down.padding || left < right.padding {
                continue;
            }
            let (top, left) = (top - down.padding, left - right.padding);
            if top < down.input && left < right.input {
                let channel = filter / (f / groups) * cg + channel;
                *y += w[filter * cg * down.kernel * right.kernel + j]
                    * x[((image * c + channel) * down.input + top) * right.input + left];
            }
        }
    }
    y
}

/// The definition of a transposed convolution of x (n, c, ..) and w (c, f / groups, ..).
fn transposed(x: &Tensor, w: &Tensor, groups: usize, [down, right]: [Side; 2]) -> Vec<f64> {
    let ((n, c), fg) = ((x.dims()[0], x.dims()[1]), w.dims()[1]);
    let (x, w) = (values(x), values(w));
    let (oh, ow, f) = (down.transposed(), right.transposed(), fg * groups);
    let mut y = vec![0.; n * f * oh * ow];
    for (i, x) in x.iter().enumerate() {
        let plane = down.input * right.input;
        let (image, channel, row, column) =
            (i / (c * plane), i / plane % c, i / right.input % down.input, i % right.input);
        for j in 0..fg * down.kernel * right.kernel {
            let (filter, dy, dx) = (j / (down.kernel * right.kernel), j / right.kernel % down.kernel, j % right.kernel);
            let (top, left) = (row * down.stride + dy * down.dilation, column * right.stride + dx * right.dilation);
            if top < down.padding || left < right.padding {
                continue;
            }
            let (top, left) = (top - down.padding, left - right.padding);
            if top < oh && left < ow {
                let filter = channel / (c / groups) * fg + filter;
                y[((image * f + filter) * oh + top) * ow + left] +=
                    x * w[channel * fg * down.kernel * right.kernel + j];
            }
        }
    }
    y
}

/// A filter's bias is added to its channel.
fn with_bias(y: Vec<f64>, bias: &Tensor, plane: usize) -> Vec<f64> {
    let bias = values(bias);
    y.into_iter().enumerate().map(|(i, y)| y + bias[i / plane % bias.len()]).collect()
}

fn of(shape: &[usize], seed: u64) -> Tensor {
    tensor(shape, DType::F64, seed)
}

fn check_transposed_of_images([n, c, f]: [usize; 3], side: Side, plain: bool, width: usize, bias: bool) -> Checked {
    let side = if plain { Side { kernel: 3, stride: 1, dilation: 1, ..side } } else { side };
    let side = side.padded_less();
    let right = Side { input: width, ..side };
    let Side { kernel, stride, padding, dilation, more, .. } = side;
    let config = ConvTranspose2dConfig { padding, output_padding: more, stride, dilation };
    let mut inputs = vec![of(&[n, c, side.input, right.input], 1), of(&[c, f, kernel, kernel], 2)];
    let mut expected = transposed(&inputs[0], &inputs[1], 1, [side, right]);
    if bias {
        inputs.push(of(&[f], 3));
        expected = with_bias(expected, &inputs[2], side.transposed() * right.transposed());
    }
    let f = |t: &[Tensor]| nn::ConvTranspose2d::new(t[1].clone(), t.get(2).cloned(), config).forward(&t[0]);
    close(&values(&f(&inputs).unwrap()), &expected, 1e-12)?;
    check_gradients(&f, &inputs, 1., 1e-11)
}

/// Found by `transposed_of_images`: the input of a 3x3 convolution with output padding reaches beyond the last window, which the tiles
/// of Winograd's way leave out.
#[test]
fn transposed_of_images_with_output_padding() {
    let side = Side { more: 1, ..Side::ONE };
    check_transposed_of_images([1, 8, 8], side, true, 2, false).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// One channel a group, more groups than fit a vector, batches that are shared out in parts.
    #[test]
    fn depthwise(n in 1usize..40, groups in 2usize..20, multiple in 1usize..5, side in side(20), width in 1usize..30, bias: bool) {
        let down = side.fitting();
        let right = Side { input: width, ..side }.fitting();
        let Side { kernel, stride, padding, dilation, .. } = side;
        let config = Conv2dConfig { padding, stride, dilation, groups, cudnn_fwd_algo: None };
        let n = if down.input * right.input > 200 { n.min(5) } else { n };
        let mut inputs = vec![of(&[n, groups, down.input, right.input], 1), of(&[groups * multiple, 1, kernel, kernel], 2)];
        let mut expected = convolution(&inputs[0], &inputs[1], groups, [down, right]);
        if bias {
            inputs.push(of(&[groups * multiple], 3));
            expected = with_bias(expected, &inputs[2], down.output() * right.output());
        }
        let f = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), t.get(2).cloned(), config).forward(&t[0]);
        close(&values(&f(&inputs).unwrap()), &expected, 1e-12)?;
        check_gradients(&f, &inputs, 1., 1e-11)?;
    }

    /// 1x1 kernels: products of small images together and of large ones alone.
    #[test]
    fn pointwise(n in 1usize..40, c in 1usize..40, f in 1usize..40, height in 1usize..20, width in 1usize..30, bias: bool) {
        let n = if height * width > 200 { n.min(6) } else { n };
        let mut inputs = vec![of(&[n, c, height, width], 1), of(&[f, c, 1, 1], 2)];
        let side = |input| Side { input, ..Side::ONE };
        let mut expected = convolution(&inputs[0], &inputs[1], 1, [side(height), side(width)]);
        if bias {
            inputs.push(of(&[f], 3));
            expected = with_bias(expected, &inputs[2], height * width);
        }
        let f = |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), t.get(2).cloned(), Conv2dConfig::default()).forward(&t[0]);
        close(&values(&f(&inputs).unwrap()), &expected, 1e-12)?;
        check_gradients(&f, &inputs, 1., 1e-11)?;
    }

    #[test]
    fn of_sequences(n in 1usize..12, c in 1usize..6, f in 1usize..9, groups in 1usize..4, side in side(60), bias: bool) {
        let side = side.fitting();
        let Side { kernel, stride, padding, dilation, .. } = side;
        let config = Conv1dConfig { padding, stride, dilation, groups, cudnn_fwd_algo: None };
        let f = f * groups;
        let mut inputs = vec![of(&[n, c * groups, side.input], 1), of(&[f, c, kernel], 2)];
        let mut expected = convolution(&inputs[0], &inputs[1], groups, [Side::ONE, side]);
        if bias {
            inputs.push(of(&[f], 3));
            expected = with_bias(expected, &inputs[2], side.output());
        }
        let f = |t: &[Tensor]| nn::Conv1d::new(t[1].clone(), t.get(2).cloned(), config).forward(&t[0]);
        close(&values(&f(&inputs).unwrap()), &expected, 1e-12)?;
        check_gradients(&f, &inputs, 1., 1e-11)?;
    }

    #[test]
    fn transposed_of_sequences(n in 1usize..8, c in 1usize..5, f in 1usize..5, groups in 1usize..4, side in side(30), bias: bool) {
        let side = side.padded_less();
        let Side { kernel, stride, padding, dilation, more, .. } = side;
        let config = ConvTranspose1dConfig { padding, output_padding: more, stride, dilation, groups };
        let mut inputs = vec![of(&[n, c * groups, side.input], 1), of(&[c * groups, f, kernel], 2)];
        let mut expected = transposed(&inputs[0], &inputs[1], groups, [Side::ONE, side]);
        if bias {
            inputs.push(of(&[f * groups], 3));
            expected = with_bias(expected, &inputs[2], side.transposed());
        }
        let f = |t: &[Tensor]| nn::ConvTranspose1d::new(t[1].clone(), t.get(2).cloned(), config).forward(&t[0]);
        close(&values(&f(&inputs).unwrap()), &expected, 1e-12)?;
        check_gradients(&f, &inputs, 1., 1e-11)?;
    }

    /// With channels enough for the ways of a convolution of stride 1 and 3x3, too.
    #[test]
    fn transposed_of_images(n in 1usize..5, c in 1usize..20, f in 1usize..20, side in side(8), plain: bool, width in 1usize..9, bias: bool) {
        check_transposed_of_images([n, c, f], side, plain, width, bias)?;
    }

    #[test]
    fn interpolation(n in 1usize..4, c in 1usize..5, from in (1usize..9, 1usize..9), to in (1usize..20, 1usize..20), scale in (0.4f64..3., 0.4f64..3.)) {
        let x = of(&[n, c, from.0, from.1], 1);
        let (h, w) = to;
        let same = |ours: Result<Tensor>, candle: Result<Tensor>| close(&values(&ours.unwrap()), &values(&candle.unwrap()), 1e-14);
        // On CUDA candle has not all of these.
        let on_cpu = x.to_device(&Device::Cpu).unwrap();
        same(nn::upsample_nearest2d(&x, h, w), on_cpu.upsample_nearest2d(h, w))?;
        check_gradients(&|t| nn::upsample_nearest2d(&t[0], h, w), std::slice::from_ref(&x), 1., 1e-12)?;
        let line = of(&[n, c, from.0], 2);
        same(nn::upsample_nearest1d(&line, h), line.to_device(&Device::Cpu).unwrap().upsample_nearest1d(h))?;
        check_gradients(&|t| nn::upsample_nearest1d(&t[0], h), &[line], 1., 1e-12)?;
        let (down, right) = (scale.0.max(1. / from.0 as f64), scale.1.max(1. / from.1 as f64));
        for corners in [false, true] {
            same(nn::upsample_bilinear2d(&x, h, w, corners), on_cpu.upsample_bilinear2d(h, w, corners))?;
            check_gradients(&|t| nn::upsample_bilinear2d(&t[0], h, w, corners), std::slice::from_ref(&x), 1., 1e-12)?;
            let by_scale = |t: &Tensor| nn::upsample_bilinear2d_with_scale(t, down, right, corners);
            same(by_scale(&x), on_cpu.upsample_bilinear2d_with_scale(down, right, corners))?;
            check_gradients(&|t| by_scale(&t[0]), std::slice::from_ref(&x), 1., 1e-12)?;
        }
    }

    /// Against candle's layers with the same variables: all values and all gradients, whatever is used of the states.
    #[test]
    fn recurrent(batch in 1usize..10, steps in 1usize..12, inputs in 1usize..9, hidden in 1usize..20, bias: bool, is_gru: bool, what in 0usize..4) {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F64, device());
        let x = Var::from_tensor(&of(&[batch, steps, inputs], 1)).unwrap();
        let used = |h: Vec<Tensor>, c: Vec<Tensor>| match what {
            0 => Tensor::stack(&h, 1).unwrap(),
            1 => h[steps - 1].clone(),
            2 => Tensor::cat(&[&h[steps / 2], &c[steps - 1]], 1).unwrap(),
            _ => Tensor::cat(&h.into_iter().chain(c).collect::<Vec<_>>(), 1).unwrap(),
        };
        let gru_states = |states: Vec<candle_nn::rnn::GRUState>| {
            let h: Vec<Tensor> = states.into_iter().map(|s| s.h).collect();
            used(h.clone(), h)
        };
        let lstm_states = |states: Vec<candle_nn::rnn::LSTMState>| {
            let (h, c) = states.into_iter().map(|s| (s.h, s.c)).unzip();
            used(h, c)
        };
        let outputs = if is_gru {
            let config = if bias { nn::GRUConfig::default() } else { nn::GRUConfig::default_no_bias() };
            let stock = candle_nn::gru(inputs, hidden, config, vb.clone()).unwrap();
            let ours = nn::gru(inputs, hidden, config, vb.clone()).unwrap();
            set(&vars);
            [gru_states(ours.seq(&x).unwrap()), gru_states(stock.seq(&x).unwrap())]
        } else {
            let config = if bias { nn::LSTMConfig::default() } else { nn::LSTMConfig::default_no_bias() };
            let stock = candle_nn::lstm(inputs, hidden, config, vb.clone()).unwrap();
            let ours = nn::lstm(inputs, hidden, config, vb.clone()).unwrap();
            set(&vars);
            [lstm_states(ours.seq(&x).unwrap()), lstm_states(stock.seq(&x).unwrap())]
        };
        let [ours, stock] = outputs.map(|y| {
            let dy = tensor(y.dims(), DType::F64, 5);
            (values(&y), (&y * dy).unwrap().sum_all().unwrap().backward().unwrap())
        });
        close(&ours.0, &stock.0, 1e-12)?;
        for var in vars.all_vars().iter().chain([&x]) {
            close(&values(ours.1.get(var).unwrap()), &values(stock.1.get(var).unwrap()), 1e-11)?;
        }
    }
}

/// Variables other than the initial ones, which are 0 for biases.
fn set(vars: &VarMap) {
    let data = vars.data().lock().unwrap();
    for (name, var) in &*data {
        var.set(&tensor(var.dims(), var.dtype(), name.len() as u64)).unwrap();
    }
}

fn lstm(dtype: DType, inputs: usize, hidden: usize) -> (VarMap, nn::LSTM) {
    let vars = VarMap::new();
    let lstm =
        nn::lstm(inputs, hidden, nn::LSTMConfig::default(), VarBuilder::from_varmap(&vars, dtype, device())).unwrap();
    set(&vars);
    (vars, lstm)
}

#[test]
fn gradients_of_the_first_state_and_single_steps() {
    let (vars, lstm) = lstm(DType::F64, 5, 7);
    let state = |t: &[Tensor]| candle_nn::rnn::LSTMState { h: t[1].clone(), c: t[2].clone() };
    let whole = |t: &[Tensor]| {
        let states = lstm.seq_init(&t[0], &state(t))?;
        lstm.states_to_tensor(&states)
    };
    let steps = |t: &[Tensor]| {
        let (mut state, mut h) = (state(t), Vec::new());
        for step in 0..t[0].dim(1)? {
            state = lstm.step(&t[0].i((.., step, ..))?, &state)?;
            h.push(state.h.clone());
        }
        Tensor::stack(&h, 1)
    };
    let inputs = [of(&[3, 6, 5], 1), of(&[3, 7], 2), of(&[3, 7], 3)];
    check_gradients(&whole, &inputs, 1e-5, 1e-7).unwrap();
    let ((y, grads), (y_steps, grads_steps)) = (run(whole, &inputs, 4), run(steps, &inputs, 4));
    close(&values(&y), &values(&y_steps), 1e-13).unwrap();
    grads.iter().zip(&grads_steps).for_each(|(a, b)| close(&values(a), &values(b), 1e-12).unwrap());
    assert_eq!(vars.all_vars().len(), 4);
}

#[test]
fn what_layers_accept() {
    let (_vars, lstm) = lstm(DType::F32, 5, 7);
    let x = tensor(&[3, 6, 5], DType::F32, 1);
    let whole = |x: &Tensor| values(&lstm.states_to_tensor(&lstm.seq(x).unwrap()).unwrap());
    // Not contiguous, and without a step.
    let turned = x.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
    assert_eq!(whole(&x), whole(&turned));
    assert!(lstm.seq(&x.narrow(1, 0, 0).unwrap()).unwrap().is_empty());
    assert!(lstm.seq(&tensor(&[3, 6, 4], DType::F32, 1)).is_err());
    let images = tensor(&[2, 4, 6, 5], DType::F32, 1);
    let last = nn::channels_last(&images).unwrap();
    let depthwise =
        nn::Conv2d::new(tensor(&[4, 1, 3, 3], DType::F32, 2), None, Conv2dConfig { groups: 4, ..Default::default() });
    assert_eq!(values(&depthwise.forward(&images).unwrap()), values(&depthwise.forward(&last).unwrap()));
    for dtype in [DType::BF16, DType::F16] {
        let images = images.to_dtype(dtype).unwrap();
        let y = nn::upsample_bilinear2d(&images, 9, 9, false).unwrap();
        assert_eq!((y.dtype(), y.dims()), (dtype, &[2, 4, 9, 9][..]));
        assert_eq!(depthwise.forward(&images).unwrap().dtype(), dtype);
        let up = nn::ConvTranspose2d::new(tensor(&[4, 3, 2, 2], DType::F32, 3), None, ConvTranspose2dConfig::default());
        assert_eq!(up.forward(&images).unwrap().dtype(), dtype);
    }
    // Another infinity or NaN is not drawn in by the nearest pixel.
    let odd = Tensor::new(&[[[[f32::INFINITY, f32::NAN, 1.]]]], device()).unwrap();
    let y = values(&nn::upsample_nearest2d(&odd, 1, 6).unwrap());
    assert!(y[0].is_infinite() && y[1].is_infinite() && y[2].is_nan() && y[3].is_nan() && y[4..] == [1., 1.]);
    let empty = Tensor::zeros((0, 4, 6, 5), DType::F32, device()).unwrap();
    assert_eq!(depthwise.forward(&empty).unwrap().dims(), [0, 4, 4, 3]);
    assert_eq!(nn::upsample_nearest2d(&empty, 3, 3).unwrap().dims(), [0, 4, 3, 3]);
}

#[test]
fn sizes_that_do_not_fit() {
    let says = |result: Result<Tensor>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let (x, w) = (tensor(&[2, 4, 9], DType::F32, 1), tensor(&[4, 3, 3], DType::F32, 2));
    let conv = |config| nn::Conv1d::new(w.clone(), None, config);
    says(conv(Conv1dConfig::default()).forward(&x), "expected sequences of 3 channels");
    says(conv(Conv1dConfig { stride: 0, ..Default::default() }).forward(&x), "a stride, dilation, groups and kernel");
    says(conv(Conv1dConfig::default()).forward(&x.unsqueeze(0).unwrap()), "three dimensions");
    let up = |config| nn::ConvTranspose1d::new(w.clone(), None, config);
    says(up(ConvTranspose1dConfig { padding: 20, ..Default::default() }).forward(&x), "expected a padding");
    says(up(ConvTranspose1dConfig { groups: 3, ..Default::default() }).forward(&x), "3 equal groups");
    let bias = nn::ConvTranspose1d::new(w.clone(), Some(tensor(&[2], DType::F32, 1)), ConvTranspose1dConfig::default());
    says(bias.forward(&x), "expected a bias of 3 channels");
    let images = Tensor::zeros((1, 1, 0, 3), DType::F32, device()).unwrap();
    says(nn::upsample_nearest2d(&images, 3, 3), "something to interpolate");
    says(
        nn::upsample_bilinear2d_with_scale(&tensor(&[1, 1, 2, 2], DType::F32, 1), f64::NAN, 1., false),
        "positive factors",
    );
}

/// candle's own, which have gradients.
#[test]
fn rearranged_images() {
    let x = of(&[2, 8, 4, 6], 1);
    let check = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        check_gradients(f, std::slice::from_ref(&x), 1., 1e-12).unwrap();
    };
    check(&|t| nn::ops::pixel_shuffle(&t[0], 2));
    check(&|t| nn::ops::pixel_unshuffle(&t[0], 2));
    check(&|t| nn::ops::replication_pad2d(&t[0], 1));
}

/// Makes a layer with its variables.
type Build<'a> = &'a dyn Fn(VarBuilder<'_>);

#[test]
fn variables_are_those_of_candle() {
    let names = |build: &dyn Fn(VarBuilder<'_>)| {
        let vars = VarMap::new();
        build(VarBuilder::from_varmap(&vars, DType::F32, device()));
        let data = vars.data().lock().unwrap();
        let mut names: Vec<_> = data.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
        names.sort();
        names
    };
    let config = nn::LSTMConfig { layer_idx: 2, direction: candle_nn::rnn::Direction::Backward, ..Default::default() };
    let pairs: [[Build<'_>; 2]; 5] = [
        [&|vb| drop(nn::lstm(3, 4, config, vb).unwrap()), &|vb| drop(candle_nn::lstm(3, 4, config, vb).unwrap())],
        [&|vb| drop(nn::gru(3, 4, nn::GRUConfig::default(), vb).unwrap()), &|vb| {
            drop(candle_nn::gru(3, 4, nn::GRUConfig::default(), vb).unwrap());
        }],
        [&|vb| drop(nn::conv1d(3, 4, 5, Conv1dConfig::default(), vb).unwrap()), &|vb| {
            drop(candle_nn::conv1d(3, 4, 5, Conv1dConfig::default(), vb).unwrap());
        }],
        [&|vb| drop(nn::conv_transpose1d(3, 4, 5, ConvTranspose1dConfig::default(), vb).unwrap()), &|vb| {
            drop(candle_nn::conv_transpose1d(3, 4, 5, ConvTranspose1dConfig::default(), vb).unwrap());
        }],
        [&|vb| drop(nn::conv_transpose2d(3, 4, 5, ConvTranspose2dConfig::default(), vb).unwrap()), &|vb| {
            drop(candle_nn::conv_transpose2d(3, 4, 5, ConvTranspose2dConfig::default(), vb).unwrap());
        }],
    ];
    for [ours, stock] in pairs {
        assert_eq!(names(ours), names(stock));
    }
}

fn digest() -> Vec<Vec<u64>> {
    let mut digest = Vec::new();
    let mut add = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]| {
        let inputs: Vec<Tensor> =
            shapes.iter().enumerate().map(|(i, shape)| tensor(shape, DType::F32, i as u64)).collect();
        let (y, grads) = run(f, &inputs, 9);
        digest.push(bits(&y));
        digest.extend(grads.iter().map(bits));
    };
    let conv = |config: Conv2dConfig| {
        move |t: &[Tensor]| nn::Conv2d::new(t[1].clone(), Some(t[2].clone()), config).forward(&t[0])
    };
    let depthwise = Conv2dConfig { padding: 2, stride: 2, groups: 24, ..Default::default() };
    add(&conv(depthwise), &[&[20, 24, 19, 17], &[24, 1, 5, 5], &[24]]);
    add(&conv(depthwise), &[&[2, 24, 19, 17], &[24, 1, 5, 5], &[24]]);
    add(&conv(Conv2dConfig::default()), &[&[20, 24, 5, 5], &[40, 24, 1, 1], &[40]]);
    add(&conv(Conv2dConfig::default()), &[&[3, 24, 40, 40], &[16, 24, 1, 1], &[16]]);
    add(&|t| nn::upsample_bilinear2d(&t[0], 30, 11, false), &[&[2, 3, 9, 20]]);
    let (_vars, lstm) = lstm(DType::F32, 32, 256);
    add(&|t| lstm.states_to_tensor(&lstm.seq(&t[0])?), &[&[16, 5, 32]]);
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
    assert!(on(5) == one);
}
