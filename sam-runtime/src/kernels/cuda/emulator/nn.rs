//! The kernels of `nn.cu`, against the CPU's layers in f64.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Tensor, Var};

use super::super::launch::code;
use super::super::launch::nn::{
    self, Channels, CrossEntropy, Dropout, Mean, Norm, Patches, Running, STATISTICS, Target, Weight,
};
use super::{Buffer, Emulated, FLOATS, assert_close, machines, numbers, tolerance};
use crate::core::dtype::wide;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu;
use crate::kernels::cpu::batch_norm::{self as norm, Statistics};
use crate::kernels::cpu::conv::{self, Conv, Side};
use crate::kernels::cpu::cross_entropy::Targets;
use crate::kernels::cpu::dropout::DropoutMask;
use crate::kernels::shapes::PoolShape;

/// Runs this in both orders of threads and checks that what it returns has the same bits.
fn in_both_orders(run: impl Fn(&mut Emulated) -> Result<Vec<Buffer>>) -> Option<Vec<Vec<f64>>> {
    let results = machines().into_iter().map(|mut machine| run(&mut machine).unwrap());
    let mut results = results.map(|buffers| buffers.iter().map(Buffer::values).collect::<Vec<_>>());
    let (first, second) = (results.next()?, results.next()?);
    let bits = |x: &[Vec<f64>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first), bits(&second), "the order of threads shows: a barrier is missing");
    Some(first)
}

const FORMATS: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// (images, channels, plane) as it lies in memory in this format.
fn laid(values: &[f64], [_, channels, plane]: [usize; 3], format: ImageLayout) -> Vec<f64> {
    match format {
        ImageLayout::Nchw => values.to_vec(),
        ImageLayout::Nhwc => values.chunks(channels * plane).flat_map(|x| transposed(x, plane)).collect(),
    }
}

/// The way back.
fn in_planes(values: &[f64], [images, channels, plane]: [usize; 3], format: ImageLayout) -> Vec<f64> {
    laid(values, [images, plane, channels], format)
}

/// Rows of so many columns, column by column.
fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| x.iter().skip(column).step_by(columns).copied()).collect()
}

#[test]
fn elementwise_operations() {
    for (dtype, before) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 0), (dtype, 1)]) {
        let (n, type_code) = (4096 + 37, code(dtype).unwrap());
        let [mut a, mut b] = [1, 2].map(|seed| numbers(n, seed));
        (a[5], b[5]) = (0.0, 1.0);
        let [a, b] = [a, b].map(|values| Buffer::shifted(dtype, &values, before));
        let Some(found) = in_both_orders(|machine| {
            let [relu, back, sum, dropped] = [(); 4].map(|()| Buffer::empty(dtype, n));
            nn::relu(machine, type_code, [a.address(), relu.address()], n)?;
            nn::relu_back(machine, type_code, [relu.address(), b.address(), back.address()], n)?;
            nn::add(machine, type_code, [a.address(), b.address(), sum.address()], n)?;
            let mask = Dropout { seed: 77, drop: 0.3, scale: 1.0 / (1.0 - 0.3), plane: 1, step: 1 };
            mask.of(machine, type_code, [a.address(), dropped.address()], n)?;
            Ok(vec![relu, back, sum, dropped])
        }) else {
            return;
        };
        let (a, b) = (a.values(), b.values());
        let pairs = || a.iter().zip(&b);
        let what = format!("{dtype:?}");
        assert_eq!(found[0], a.iter().map(|a| a.max(0.0)).collect::<Vec<_>>(), "{what}");
        assert_eq!(found[1], pairs().map(|(a, b)| if *a > 0.0 { *b } else { 0.0 }).collect::<Vec<_>>(), "{what}");
        assert_close(&found[2], &pairs().map(|(a, b)| a + b).collect::<Vec<_>>(), tolerance(dtype), &what);
        let x = Tensor::new(a.clone(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let dropped = on_cpu(&DropoutMask { drop_p: 0.3, seed: 77 }.apply(&x).unwrap());
        assert_eq!(found[3], dropped, "the mask of the CPU, bitwise, {what}");
    }
    for mut machine in machines() {
        let (nan, relu) = (Buffer::new(DType::F32, &[f64::NAN]), Buffer::empty(DType::F32, 1));
        nn::relu(&mut machine, 0, [nan.address(), relu.address()], 1).unwrap();
        assert!(relu.values()[0].is_nan());
    }
}

#[test]
fn mixtures_of_examples() {
    for (dtype, [examples, example]) in FLOATS.into_iter().flat_map(|dtype| [[5, 1600], [7, 33]].map(|s| (dtype, s))) {
        let n = examples * example;
        let [a, b] = [1, 2].map(|seed| Buffer::new(dtype, &numbers(n, seed)));
        let [f, g] = [3, 4].map(|seed| Buffer::new(wide(dtype), &numbers(examples, seed)));
        let Some(found) = in_both_orders(|machine| {
            let (both, one) = (Buffer::empty(dtype, n), Buffer::empty(dtype, n));
            let (type_code, factors) = (code(dtype)?, [f.address(), g.address()]);
            let [two, single] = [[a.address(), b.address(), both.address()], [a.address(), 0, one.address()]];
            nn::mixture(machine, type_code, two, [n, example], factors)?;
            nn::mixture(machine, type_code, single, [n, example], [factors[0], 0])?;
            Ok(vec![both, one])
        }) else {
            return;
        };
        let (a, b, f, g) = (a.values(), b.values(), f.values(), g.values());
        let scaled = |x: &[f64], f: &[f64]| x.iter().enumerate().map(|(i, x)| x * f[i / example]).collect::<Vec<_>>();
        let (fa, gb) = (scaled(&a, &f), scaled(&b, &g));
        let sum: Vec<_> = fa.iter().zip(&gb).map(|(a, b)| a + b).collect();
        assert_close(&found[0], &sum, tolerance(dtype), &format!("{dtype:?}"));
        assert_close(&found[1], &fa, tolerance(dtype), &format!("{dtype:?}"));
    }
}

#[test]
fn dropout_of_images_that_are_channels_last() {
    let sizes @ [images, channels, plane] = [3, 7, 11];
    let [n, step] = [images * channels * plane, channels];
    let values = numbers(n, 1);
    let x = Buffer::new(DType::F32, &laid(&values, sizes, ImageLayout::Nhwc));
    let Some(found) = in_both_orders(|machine| {
        let y = Buffer::empty(DType::F32, n);
        let mask = Dropout { seed: 77, drop: 0.3, scale: 1.0 / (1.0 - 0.3), plane, step };
        mask.of(machine, 0, [x.address(), y.address()], n)?;
        Ok(vec![y])
    }) else {
        return;
    };
    let x = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let expected = on_cpu(&DropoutMask { drop_p: 0.3, seed: 77 }.apply(&x).unwrap());
    assert_eq!(in_planes(&found[0], sizes, ImageLayout::Nhwc), expected);
}

/// What [`normalise`] does.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "all of them are independent")]
struct Case {
    dtype: DType,
    sizes: [usize; 3],
    format: ImageLayout,
    residual: bool,
    relu: bool,
    centred: bool,
    fixed: bool,
    affine: bool,
}

#[test]
fn batch_normalisation() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        for (i, sizes) in [[5, 3, 64], [3, 2, 35], [4, 7, 1], [2, 260, 4], [3, 24, 50], [2, 3, 4096], [7, 72, 50]]
            .into_iter()
            .enumerate()
        {
            // Those of many elements once.
            for bits in if sizes[0] * sizes[1] * sizes[2] > 5000 || sizes[1] > 256 { 3..4 } else { 0..8 } {
                let [residual, relu, fixed] = [1, 2, 4].map(|bit| bits & bit != 0);
                let (centred, affine) = ((i + bits) % 4 > 0, (i + bits) % 3 > 0);
                normalise(Case { dtype, sizes, format, residual, relu, centred, fixed, affine });
            }
        }
    }
}

fn normalise(case: Case) {
    let Case { dtype, sizes, format, residual, relu, centred, fixed, affine } = case;
    let [images, channels, plane] = sizes;
    let n = images * channels * plane;
    let x: Vec<f64> = numbers(n, 1).into_iter().map(|x| x + 3.0).collect();
    let images_of = |values: &[f64]| Buffer::new(dtype, &laid(values, sizes, format));
    let [x, r, dy] = [images_of(&x), images_of(&numbers(n, 2)), images_of(&numbers(n, 3))];
    let ones: [Vec<f64>; 2] = [vec![1.0; channels], vec![0.0; channels]];
    let [weight, bias] = if affine { [numbers(channels, 4), numbers(channels, 5)] } else { ones };
    let [weight, bias] = [weight, bias].map(|values| Buffer::new(wide(dtype), &values));
    let before = [numbers(channels, 6), numbers(channels, 7).into_iter().map(|x| x + 1.5).collect()];
    let before = before.map(|values| Buffer::new(DType::F32, &values));
    let momentum = 0.1;

    let Some(mut found) = in_both_orders(|machine| {
        let running = [&before[0], &before[1]].map(|buffer| Buffer::new(DType::F32, &buffer.values()));
        let [statistics, lines] = [STATISTICS, 2].map(|each| Buffer::empty(DType::F64, each * channels));
        let [y, dx, dr] = [(); 3].map(|()| Buffer::empty(dtype, n));
        let [d_weight, d_bias] = [(); 2].map(|()| Buffer::empty(wide(dtype), channels));
        let on = |flag: bool, buffer: &Buffer| if flag { buffer.address() } else { 0 };
        let norm = Norm {
            sizes: Channels { images, channels, plane, format },
            eps: 1e-5,
            centred,
            relu,
            dtype: code(dtype)?,
            affine_dtype: code(wide(dtype))?,
            weight: on(affine, &weight),
            bias: on(affine, &bias),
            statistics: statistics.address(),
        };
        let state = Running { dtype: 0, mean: running[0].address(), var: running[1].address() };
        if fixed {
            norm.take(machine, state)?;
        } else {
            norm.measure(machine, x.address(), Some((state, momentum)))?;
        }
        norm.forward(machine, [x.address(), on(residual, &r), y.address()])?;
        let values = [x.address(), on(residual, &y), dy.address()];
        let gradients = [dx.address(), on(residual && relu, &dr), d_weight.address(), d_bias.address()];
        norm.backward(machine, values, fixed, lines.address(), gradients)?;
        let [mean, var] = running;
        Ok(vec![y, dx, dr, d_weight, d_bias, mean, var])
    }) else {
        return;
    };

    let norm = norm::Norm { channels, plane, eps: 1e-5, centred, relu };
    for images in &mut found[..3] {
        *images = in_planes(images, sizes, format);
    }
    let [x, r, dy] = [x, r, dy].map(|images| in_planes(&images.values(), sizes, format));
    let before = before.map(|buffer| buffer.values());
    let affine = [weight.values(), bias.values()].concat();
    let given = Statistics { mean: before[0].clone(), var: before[1].clone() };
    let given = fixed.then_some(&given);
    let (y, statistics) = norm::forward(&norm, &x, residual.then_some(&r[..]), &affine, given);
    let back = norm::backward(&norm, [&x, &y, &dy], &affine, &statistics, fixed, residual && relu);
    let what = format!("{case:?}");
    let tolerance = 4.0 * tolerance(dtype);
    assert_close(&found[0], &y, tolerance, &what);
    // Where the rounded y is 0 the exact one may be a little more: both have a right to their sign.
    let clear = |i: usize| !relu || found[0][i] == 0.0 && y[i] == 0.0 || found[0][i] > 0.0 && y[i] > 0.0;
    let same = (0..n).all(clear);
    for (name, found, expected, scale) in [
        ("dx", &found[1], &back.x, 4.0),
        ("weight", &found[3], &back.affine[..channels].to_vec(), 20.0),
        ("bias", &found[4], &back.affine[channels..].to_vec(), 20.0),
    ] {
        if same {
            assert_close(found, expected, scale * tolerance, &format!("{name}, {what}"));
        }
    }
    if let Some(dr) = back.residual.filter(|_| same) {
        assert_close(&found[2], &dr, tolerance, &what);
    }
    if !fixed {
        let count = (images * plane) as f64;
        let moved = |before: &[f64], batch: &[f64], factor: f64| {
            before.iter().zip(batch).map(|(a, b)| a * (1.0 - momentum) + b * momentum * factor).collect::<Vec<_>>()
        };
        let mean = if centred { moved(&before[0], &statistics.mean, 1.0) } else { before[0].clone() };
        assert_close(&found[5], &mean, tolerance.max(1e-6), &what);
        assert_close(&found[6], &moved(&before[1], &statistics.var, count / (count - 1.0)), tolerance.max(1e-6), &what);
    }
}

/// Like a convolution without padding that meets a NaN: nothing of it may be hidden.
#[test]
fn normalisation_hands_on_what_is_not_a_number() {
    for mut machine in machines() {
        let x = Buffer::new(DType::F32, &[1.0, f64::NAN, 2.0, 3.0]);
        let (statistics, y) = (Buffer::empty(DType::F64, STATISTICS), Buffer::empty(DType::F32, 4));
        let sizes = Channels { images: 1, channels: 1, plane: 4, format: ImageLayout::Nchw };
        let statistics = statistics.address();
        let (dtype, affine_dtype, weight, bias) = (0, 0, 0, 0);
        let norm = Norm { sizes, eps: 1e-5, centred: true, relu: false, dtype, affine_dtype, weight, bias, statistics };
        norm.measure(&mut machine, x.address(), None).unwrap();
        norm.forward(&mut machine, [x.address(), 0, y.address()]).unwrap();
        assert!(y.values().iter().all(|y| y.is_nan()));
    }
}

#[test]
fn biases() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        for sizes @ [images, channels, plane] in [[5, 3, 64], [3, 300, 1], [2, 2, 7], [40, 72, 4], [2, 3, 4096]] {
            let n = images * channels * plane;
            let (dtypes, bias) = ([code(dtype).unwrap(), 0], Buffer::new(DType::F32, &numbers(channels, 2)));
            let Some(mut found) = in_both_orders(|machine| {
                let sizes = Channels { images, channels, plane, format };
                let (y, d_bias) = (Buffer::new(dtype, &numbers(n, 1)), Buffer::empty(DType::F32, channels));
                nn::bias_back(machine, sizes, dtypes, [y.address(), d_bias.address()])?;
                nn::bias(machine, sizes, dtypes, [y.address(), bias.address()])?;
                Ok(vec![y, d_bias])
            }) else {
                return;
            };
            found[0] = in_planes(&found[0], sizes, format);
            let (y, bias) = (in_planes(&Buffer::new(dtype, &numbers(n, 1)).values(), sizes, format), bias.values());
            let channel = |i: usize| i / plane % channels;
            let mut sums = vec![0.0; channels];
            y.iter().enumerate().for_each(|(i, y)| sums[channel(i)] += y);
            let shifted: Vec<_> = y.iter().enumerate().map(|(i, y)| y + bias[channel(i)]).collect();
            assert_close(&found[0], &shifted, tolerance(dtype), &format!("{dtype:?}, {format:?}"));
            assert_close(&found[1], &sums, 1e-5, &format!("{dtype:?}, {format:?}"));
        }
    }
}

/// The elements of a result on the CPU.
fn on_cpu((storage, shape): &(CpuStorage, Shape)) -> Vec<f64> {
    let values = storage.to_dtype(&Layout::contiguous(shape), DType::F64).unwrap();
    values.as_slice::<f64>().unwrap().to_vec()
}

/// The cross entropy on the CPU in f64, and the gradient for `dy` = 0.5.
fn entropy_on_cpu(logits: &Buffer, shape: &[usize], targets: &Targets) -> [Vec<f64>; 2] {
    let logits = Tensor::from_vec(logits.values(), shape, &Device::Cpu).unwrap();
    let (mean, rows) = targets.forward(&logits).unwrap();
    let dx = targets.backward(&logits, &rows, &Tensor::new(0.5, &Device::Cpu).unwrap()).unwrap();
    [on_cpu(&mean), dx.flatten_all().unwrap().to_vec1().unwrap()]
}

/// A function of one tensor in f64: its value, and the gradient for `dy`.
fn reference(x: &Buffer, shape: &[usize], dy: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>) -> [Vec<f64>; 2] {
    let x = Var::from_tensor(&Tensor::from_vec(x.values(), shape, &Device::Cpu).unwrap()).unwrap();
    let y = f(&x).unwrap();
    let flat = y.flatten_all().unwrap();
    let dy = Tensor::new(&dy[..flat.elem_count()], &Device::Cpu).unwrap();
    let grads = (&flat * dy).unwrap().sum_all().unwrap().backward().unwrap();
    [flat, grads.get(&x).unwrap().flatten_all().unwrap()].map(|t| t.to_vec1().unwrap())
}

#[test]
fn pooling() {
    let sizes = [(2, 2, 0, [6, 8]), (3, 2, 1, [7, 9]), (3, 1, 1, [5, 4]), (2, 3, 0, [9, 8]), (4, 2, 2, [6, 5])];
    for (dtype, (kernel, stride, padding, input)) in FLOATS.into_iter().flat_map(|d| sizes.map(|s| (d, s))) {
        for (max, format) in [false, true].into_iter().flat_map(|max| FORMATS.map(|format| (max, format))) {
            let output = input.map(|side| (side + 2 * padding - kernel) / stride + 1);
            let (planes, type_code) = (6, code(dtype).unwrap());
            let step = if format == ImageLayout::Nchw { 1 } else { 3 };
            let pool = PoolShape { max, kernel, stride, padding, input, output, planes, step };
            let [n, m] = [input, output].map(|[a, b]| planes * a * b);
            let [of_input, of_output] = [input, output].map(|[a, b]| [2, 3, a * b]);
            // Of few different values, so that windows have equals.
            let x: Vec<f64> = numbers(n, 1).into_iter().map(|x| (x * 4.0).round() / 4.0).collect();
            let [x, dy] = [x, numbers(m, 2)].map(|values| Buffer::new(dtype, &values));
            let Some(mut found) = in_both_orders(|machine| {
                let laid = |x: &Buffer, sizes| Buffer::new(dtype, &laid(&x.values(), sizes, format));
                let (x, dy) = (laid(&x, of_input), laid(&dy, of_output));
                let (y, dx) = (Buffer::empty(dtype, m), Buffer::empty(dtype, n));
                pool.forward(machine, type_code, [x.address(), y.address()])?;
                pool.backward(machine, type_code, [x.address(), dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            found = vec![in_planes(&found[0], of_output, format), in_planes(&found[1], of_input, format)];
            let shape = [2, 3, input[0], input[1]];
            let of =
                |values: &Buffer, shape: [usize; 4]| Tensor::from_vec(values.values(), &shape, &Device::Cpu).unwrap();
            let (x, dy) = (of(&x, shape), of(&dy, [2, 3, output[0], output[1]]));
            let dx = cpu::pool::pool_back(&pool, &x, &dy).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let expected = [on_cpu(&cpu::pool::pool(&pool, &x).unwrap()), dx];
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, 2.0 * tolerance(dtype), &format!("{dtype:?}, {pool:?}"));
            }
        }
    }
    let nan = Buffer::new(DType::F32, &[1.0, f64::NAN, 2.0, 3.0]);
    for mut machine in machines() {
        let y = Buffer::empty(DType::F32, 1);
        let (input, output) = ([2, 2], [1, 1]);
        let pool = PoolShape { max: true, kernel: 2, stride: 2, padding: 0, input, output, planes: 1, step: 1 };
        pool.forward(&mut machine, 0, [nan.address(), y.address()]).unwrap();
        assert!(y.values()[0].is_nan());
    }
}

#[test]
fn means_of_planes() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| FORMATS.map(|format| (dtype, format))) {
        for sizes @ [images, channels, plane] in [[4, 3, 64], [3, 3, 7], [1, 1, 1], [2, 300, 5]] {
            let (planes, step) = (images * channels, if format == ImageLayout::Nchw { 1 } else { channels });
            let (means, type_code, n) = (Mean { planes, plane, step }, code(dtype).unwrap(), planes * plane);
            let [x, dy] = [(1, n), (2, planes)].map(|(seed, n)| Buffer::new(dtype, &numbers(n, seed)));
            let Some(mut found) = in_both_orders(|machine| {
                let (y, dx) = (Buffer::empty(dtype, planes), Buffer::empty(dtype, n));
                let x = Buffer::new(dtype, &laid(&x.values(), sizes, format));
                means.forward(machine, type_code, [x.address(), y.address()])?;
                means.backward(machine, type_code, [dy.address(), dx.address()])?;
                Ok(vec![y, dx])
            }) else {
                return;
            };
            found[1] = in_planes(&found[1], sizes, format);
            let expected = reference(&x, &[planes, plane], &dy.values(), |x| x.mean(1));
            for (found, expected) in found.iter().zip(&expected) {
                assert_close(found, expected, tolerance(dtype), &format!("{dtype:?}, {sizes:?}, {format:?}"));
            }
        }
    }
}

#[test]
fn weights_between_formats_and_types() {
    let pairs = FLOATS.into_iter().flat_map(|from| FLOATS.map(|to| (from, to)));
    for ((from, to), sizes) in pairs.flat_map(|pair| [[5, 300, 9], [2, 7, 49], [3, 1, 2]].map(|sizes| (pair, sizes))) {
        let [filters, channels, places] = sizes;
        let values = numbers(filters * channels * places, 1);
        let x = Buffer::new(from, &values);
        let Some(found) = in_both_orders(|machine| {
            let weight = Weight { filters, channels, places };
            let [y, back] = [to, from].map(|dtype| Buffer::empty(dtype, values.len()));
            let (there, home) = ([x.address(), y.address()], [y.address(), back.address()]);
            weight.swap_storage(machine, [code(from)?, code(to)?], there, ImageLayout::Nhwc)?;
            weight.swap_storage(machine, [code(to)?, code(from)?], home, ImageLayout::Nchw)?;
            Ok(vec![y, back])
        }) else {
            return;
        };
        let once = Buffer::new(to, &x.values()).values();
        assert_eq!(in_planes(&found[0], sizes, ImageLayout::Nhwc), once, "{from:?} to {to:?}");
        assert_eq!(found[1], Buffer::new(from, &once).values(), "{to:?} to {from:?}");
    }
}

/// The rows of a (rows, inner) and the columns of b (inner, columns).
fn product(a: &[f64], b: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let mut product = Vec::with_capacity(a.len() / inner * columns);
    for row in a.chunks(inner) {
        for column in 0..columns {
            product.push(row.iter().zip(b.iter().skip(column).step_by(columns)).map(|(a, b)| a * b).sum());
        }
    }
    product
}

/// From (a, b, plane) to (b, a, plane).
fn exchanged(x: &[f64], a: usize, b: usize, plane: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for (j, i) in (0..b).flat_map(|j| (0..a).map(move |i| (j, i))) {
        y.extend(&x[(i * b + j) * plane..][..plane]);
    }
    y
}

#[test]
fn patches_of_convolutions() {
    for (kernel, stride, padding, dilation, input) in
        [([3, 3], 1, 1, 1, [6, 5]), ([3, 3], 2, 1, 1, [7, 8]), ([1, 1], 2, 0, 1, [6, 7]), ([3, 2], 1, 2, 2, [8, 9])]
    {
        let (images, channels, filters) = (2, 3, 4);
        let side = |i: usize| {
            let output = (input[i] + 2 * padding - dilation * (kernel[i] - 1) - 1) / stride + 1;
            Side { input: input[i], kernel: kernel[i], output, stride, padding, dilation }
        };
        let conv = Conv { images, channels, filters, groups: 1, height: side(0), width: side(1) };
        let output = [conv.height.output, conv.width.output];
        let patches = Patches { images, channels, input, kernel, output, stride, padding, dilation };
        let ([rows, columns], pixels) = (patches.matrix(), output[0] * output[1]);
        let n = images * channels * input[0] * input[1];
        let [w, dy] = [(filters * rows, 2), (filters * columns, 3)].map(|(n, seed)| numbers(n, seed));
        for dtype in FLOATS {
            let x = Buffer::new(dtype, &numbers(n, 1));
            let transposed = {
                let dy = exchanged(&dy, images, filters, pixels);
                let w: Vec<f64> = (0..rows).flat_map(|r| w.iter().skip(r).step_by(rows).copied()).collect();
                Buffer::new(dtype, &product(&w, &dy, filters, columns))
            };
            let Some(found) = in_both_orders(|machine| {
                let (matrix, dx) = (Buffer::empty(dtype, rows * columns), Buffer::empty(dtype, n));
                patches.take(machine, code(dtype)?, [x.address(), matrix.address()])?;
                patches.put_back(machine, code(dtype)?, [transposed.address(), dx.address()])?;
                Ok(vec![matrix, dx])
            }) else {
                return;
            };
            let y = exchanged(&product(&w, &found[0], rows, columns), filters, images, pixels);
            assert_close(&y, &conv::forward(&conv, &x.values(), &w, None), 1e-12, &format!("{dtype:?}, {conv:?}"));
            let dx = conv::input_gradient(&conv, &dy, &w);
            assert_close(&found[1], &dx, 8.0 * tolerance(dtype), &format!("{dtype:?}, {conv:?}"));
        }
    }
}

#[test]
fn cross_entropies() {
    for dtype in FLOATS {
        for [rows, classes] in [[5, 10], [3, 300], [1, 2]] {
            let (n, type_code) = (rows * classes, code(dtype).unwrap());
            let logits = Buffer::new(dtype, &numbers(n, 1).into_iter().map(|x| 8.0 * x).collect::<Vec<_>>());
            let labels: Vec<f64> = (0..rows).map(|i| (i * 7 % classes) as f64).collect();
            let shares: Vec<f64> = numbers(n, 2).into_iter().map(|x| x.max(0.0)).collect();
            let [label_buffer, share_buffer] =
                [(DType::I64, &labels), (DType::F32, &shares)].map(|(dtype, values)| Buffer::new(dtype, values));
            let dy = Buffer::new(dtype, &[0.5]);
            let soft = Tensor::from_vec(share_buffer.values(), (rows, classes), &Device::Cpu).unwrap();
            let shape = [rows, classes];
            let address = share_buffer.address();
            let cases = [0.0, 0.1].map(|smoothing| {
                let labels = labels.iter().map(|label| Some(*label as usize)).collect();
                let targets = Targets::Labels { labels, count: rows, smoothing };
                (
                    Target::Labels { address: label_buffer.address(), smoothing },
                    entropy_on_cpu(&logits, &shape, &targets),
                )
            });
            let soft = entropy_on_cpu(&logits, &shape, &Targets::Soft(soft));
            let soft = (Target::Probabilities { address, dtype: 0 }, soft);
            for (target, expected) in cases.into_iter().chain([soft]) {
                let loss = CrossEntropy { rows, classes, dtype: type_code, target };
                let Some(found) = in_both_orders(|machine| {
                    let (y, dx) = (Buffer::empty(dtype, 1), Buffer::empty(dtype, n));
                    loss.forward(machine, [logits.address(), y.address()])?;
                    loss.backward(machine, [logits.address(), dy.address(), dx.address()])?;
                    Ok(vec![y, dx])
                }) else {
                    return;
                };
                for (found, expected) in found.iter().zip(&expected) {
                    assert_close(found, expected, tolerance(dtype), &format!("{dtype:?}, {shape:?}, {target:?}"));
                }
            }
        }
    }
    for (label, mut machine) in [-1.0, 3.0].into_iter().zip(machines()) {
        let (logits, labels) = (Buffer::new(DType::F32, &[0.0; 3]), Buffer::new(DType::I64, &[label]));
        let loss = Buffer::empty(DType::F32, 1);
        let target = Target::Labels { address: labels.address(), smoothing: 0.0 };
        let entropy = CrossEntropy { rows: 1, classes: 3, dtype: 0, target };
        entropy.forward(&mut machine, [logits.address(), loss.address()]).unwrap();
        assert!(loss.values()[0].is_nan(), "a label that is no class");
    }
}
