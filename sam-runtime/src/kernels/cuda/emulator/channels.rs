//! Moments of channels and biases.

use candle_core::DType;

use super::super::launch::channels::{self, Channels};
use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, LAYOUTS, assert_close, in_both_orders, numbers, to_nchw, tolerance};

#[test]
fn biases() {
    for (dtype, format) in FLOATS.into_iter().flat_map(|dtype| LAYOUTS.map(|format| (dtype, format))) {
        for sizes @ [images, channels, plane] in [[5, 3, 64], [3, 300, 1], [2, 2, 7], [40, 72, 4], [2, 3, 4096]] {
            let n = images * channels * plane;
            let (dtypes, bias) = ([dtype_code(dtype).unwrap(), 0], Buffer::new(DType::F32, &numbers(channels, 2)));
            let Some(mut found) = in_both_orders(|launcher| {
                let sizes = Channels { images, channels, plane, format };
                let (y, d_bias) = (Buffer::new(dtype, &numbers(n, 1)), Buffer::empty(DType::F32, channels));
                channels::bias_back(launcher, sizes, dtypes, [y.address(), d_bias.address()])?;
                channels::bias(launcher, sizes, dtypes, [y.address(), bias.address()])?;
                Ok(vec![y, d_bias])
            }) else {
                return;
            };
            found[0] = to_nchw(&found[0], sizes, format);
            let (y, bias) = (to_nchw(&Buffer::new(dtype, &numbers(n, 1)).values(), sizes, format), bias.values());
            let channel = |i: usize| i / plane % channels;
            let mut sums = vec![0.0; channels];
            y.iter().enumerate().for_each(|(i, y)| sums[channel(i)] += y);
            let shifted: Vec<_> = y.iter().enumerate().map(|(i, y)| y + bias[channel(i)]).collect();
            assert_close(&found[0], &shifted, tolerance(dtype), &format!("{dtype:?}, {format:?}"));
            assert_close(&found[1], &sums, 1e-5, &format!("{dtype:?}, {format:?}"));
        }
    }
}
