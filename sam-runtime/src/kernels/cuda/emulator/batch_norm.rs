//! Batch normalization, against the CPU kernels in f64.

use candle_core::DType;

use super::super::launch::batch_norm::{BatchNorm, Running};
use super::super::launch::channels::Channels;
use super::super::launch::dtype_code;
use super::super::launch::shared::STATISTICS;
use super::{Buffer, FLOATS, LAYOUTS, assert_close, emulators, in_both_orders, in_layout, numbers, to_nchw, tolerance};
use crate::core::dtype::wide;
use crate::core::image_layout::ImageLayout;
use crate::kernels::cpu::batch_norm::{self as norm, Statistics};
use crate::kernels::shapes::BatchNormShape;

/// A case of [`check`].
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "all of them are independent")]
struct Case {
    dtype: DType,
    sizes: [usize; 3],
    format: ImageLayout,
    residual: bool,
    relu: bool,
    centered: bool,
    fixed: bool,
    affine: bool,
}

#[test]
fn batch_normalization() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| LAYOUTS.map(|format| (dtype, format))) {
        for (i, sizes) in [[5, 3, 64], [3, 2, 35], [4, 7, 1], [2, 260, 4], [3, 24, 50], [2, 3, 4096], [7, 72, 50]]
            .into_iter()
            .enumerate()
        {
            // Large sizes only once.
            for bits in if sizes[0] * sizes[1] * sizes[2] > 5000 || sizes[1] > 256 { 3..4 } else { 0..8 } {
                let [residual, relu, fixed] = [1, 2, 4].map(|bit| bits & bit != 0);
                let (centered, affine) = ((i + bits) % 4 > 0, (i + bits) % 3 > 0);
                check(Case { dtype, sizes, format, residual, relu, centered, fixed, affine });
            }
        }
    }
}

fn check(case: Case) {
    let Case { dtype, sizes, format, residual, relu, centered, fixed, affine } = case;
    let [images, channels, plane] = sizes;
    let n = images * channels * plane;
    let x: Vec<f64> = numbers(n, 1).into_iter().map(|x| x + 3.0).collect();
    let images_of = |values: &[f64]| Buffer::new(dtype, &in_layout(values, sizes, format));
    let [x, r, dy] = [images_of(&x), images_of(&numbers(n, 2)), images_of(&numbers(n, 3))];
    let ones: [Vec<f64>; 2] = [vec![1.0; channels], vec![0.0; channels]];
    let [weight, bias] = if affine { [numbers(channels, 4), numbers(channels, 5)] } else { ones };
    let [weight, bias] = [weight, bias].map(|values| Buffer::new(wide(dtype), &values));
    let before = [numbers(channels, 6), numbers(channels, 7).into_iter().map(|x| x + 1.5).collect()];
    let before = before.map(|values| Buffer::new(DType::F32, &values));
    let momentum = 0.1;

    let Some(mut found) = in_both_orders(|launcher| {
        let running = [&before[0], &before[1]].map(|buffer| Buffer::new(DType::F32, &buffer.values()));
        let [statistics, coefficients] = [STATISTICS, 2].map(|each| Buffer::empty(DType::F64, each * channels));
        let [y, dx, dr] = [(); 3].map(|()| Buffer::empty(dtype, n));
        let [d_weight, d_bias] = [(); 2].map(|()| Buffer::empty(wide(dtype), channels));
        let on = |flag: bool, buffer: &Buffer| if flag { buffer.address() } else { 0 };
        let norm = BatchNorm {
            sizes: Channels { images, channels, plane, format },
            eps: 1e-5,
            centered,
            relu,
            dtype: dtype_code(dtype)?,
            affine_dtype: dtype_code(wide(dtype))?,
            weight: on(affine, &weight),
            bias: on(affine, &bias),
            statistics: statistics.address(),
        };
        let state = Running { dtype: 0, mean: running[0].address(), var: running[1].address() };
        if fixed {
            norm.use_running(launcher, state)?;
        } else {
            norm.batch_statistics(launcher, x.address(), Some((state, momentum)))?;
        }
        norm.forward(launcher, [x.address(), on(residual, &r), y.address()])?;
        let values = [x.address(), on(residual, &y), dy.address()];
        let gradients = [dx.address(), on(residual && relu, &dr), d_weight.address(), d_bias.address()];
        norm.backward(launcher, values, fixed, coefficients.address(), gradients)?;
        let [mean, var] = running;
        Ok(vec![y, dx, dr, d_weight, d_bias, mean, var])
    }) else {
        return;
    };

    let norm = BatchNormShape { channels, plane, eps: 1e-5, centered, relu };
    for images in &mut found[..3] {
        *images = to_nchw(images, sizes, format);
    }
    let [x, r, dy] = [x, r, dy].map(|images| to_nchw(&images.values(), sizes, format));
    let before = before.map(|buffer| buffer.values());
    let affine = [weight.values(), bias.values()].concat();
    let given = Statistics { mean: before[0].clone(), var: before[1].clone() };
    let given = fixed.then_some(&given);
    let (y, statistics) = norm::forward(&norm, &x, residual.then_some(&r[..]), &affine, given);
    let back = norm::backward(&norm, [&x, &y, &dy], &affine, &statistics, fixed, residual && relu);
    let what = format!("{case:?}");
    let tolerance = 4.0 * tolerance(dtype);
    assert_close(&found[0], &y, tolerance, &what);
    // Where y rounds to 0 the exact value may be slightly positive: then either sign is correct.
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
        let mean = if centered { moved(&before[0], &statistics.mean, 1.0) } else { before[0].clone() };
        assert_close(&found[5], &mean, tolerance.max(1e-6), &what);
        assert_close(&found[6], &moved(&before[1], &statistics.var, count / (count - 1.0)), tolerance.max(1e-6), &what);
    }
}

/// A NaN in the input must not be hidden.
#[test]
fn normalization_hands_on_what_is_not_a_number() {
    for mut launcher in emulators() {
        let x = Buffer::new(DType::F32, &[1.0, f64::NAN, 2.0, 3.0]);
        let (statistics, y) = (Buffer::empty(DType::F64, STATISTICS), Buffer::empty(DType::F32, 4));
        let sizes = Channels { images: 1, channels: 1, plane: 4, format: ImageLayout::Nchw };
        let statistics = statistics.address();
        let (dtype, affine_dtype, weight, bias) = (0, 0, 0, 0);
        let norm =
            BatchNorm { sizes, eps: 1e-5, centered: true, relu: false, dtype, affine_dtype, weight, bias, statistics };
        norm.batch_statistics(&mut launcher, x.address(), None).unwrap();
        norm.forward(&mut launcher, [x.address(), 0, y.address()]).unwrap();
        assert!(y.values().iter().all(|y| y.is_nan()));
    }
}
