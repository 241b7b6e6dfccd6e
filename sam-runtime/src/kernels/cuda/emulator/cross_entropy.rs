//! Cross entropy, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::cross_entropy::{CrossEntropy, Target};
use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, assert_close, emulators, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::cross_entropy::Targets;

/// The cross entropy on the CPU in f64, and the gradient for `dy` = 0.5.
fn entropy_on_cpu(logits: &Buffer, shape: &[usize], targets: &Targets) -> [Vec<f64>; 2] {
    let logits = Tensor::from_vec(logits.values(), shape, &Device::Cpu).unwrap();
    let (mean, rows) = targets.forward(&logits).unwrap();
    let dx = targets.backward(&logits, &rows, &Tensor::new(0.5, &Device::Cpu).unwrap()).unwrap();
    [on_cpu(&mean), dx.flatten_all().unwrap().to_vec1().unwrap()]
}

#[test]
fn cross_entropies() {
    for dtype in FLOATS {
        for [rows, classes] in [[5, 10], [3, 300], [1, 2]] {
            let (n, type_code) = (rows * classes, dtype_code(dtype).unwrap());
            let logits = Buffer::new(dtype, &numbers(n, 1).into_iter().map(|x| 8.0 * x).collect::<Vec<_>>());
            let classes_of_rows: Vec<_> = (0..rows).map(|i| i * 7 % classes).collect();
            let labels: Vec<f64> = classes_of_rows.iter().map(|class| *class as f64).collect();
            let shares: Vec<f64> = numbers(n, 2).into_iter().map(|x| x.max(0.0)).collect();
            let [label_buffer, share_buffer] =
                [(DType::I64, &labels), (DType::F32, &shares)].map(|(dtype, values)| Buffer::new(dtype, values));
            let dy = Buffer::new(dtype, &[0.5]);
            let soft = Tensor::from_vec(share_buffer.values(), (rows, classes), &Device::Cpu).unwrap();
            let shape = [rows, classes];
            let address = share_buffer.address();
            let cases = [0.0, 0.1].map(|smoothing| {
                let labels = classes_of_rows.iter().map(|class| Some(*class)).collect();
                let targets = Targets::Labels { labels, count: rows, smoothing };
                (
                    Target::Labels { address: label_buffer.address(), smoothing },
                    entropy_on_cpu(&logits, &shape, &targets),
                )
            });
            let soft = entropy_on_cpu(&logits, &shape, &Targets::Soft(soft));
            let soft = (Target::Probabilities { address, dtype: 0 }, soft);
            for (target, expected) in cases.into_iter().chain([soft]) {
                let loss = CrossEntropy { rows, classes, dtype: type_code, target, each: false };
                let Some(found) = in_both_orders(|launcher| {
                    let (y, dx) = (Buffer::empty(dtype, 1), Buffer::empty(dtype, n));
                    loss.forward(launcher, [logits.address(), y.address()])?;
                    loss.backward(launcher, [logits.address(), dy.address(), dx.address()])?;
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
    for (label, mut launcher) in [-1.0, 3.0].into_iter().zip(emulators()) {
        let (logits, labels) = (Buffer::new(DType::F32, &[0.0; 3]), Buffer::new(DType::I64, &[label]));
        let loss = Buffer::empty(DType::F32, 1);
        let target = Target::Labels { address: labels.address(), smoothing: 0.0 };
        let entropy = CrossEntropy { rows: 1, classes: 3, dtype: 0, target, each: false };
        entropy.forward(&mut launcher, [logits.address(), loss.address()]).unwrap();
        assert!(loss.values()[0].is_nan(), "a label that is no class");
    }
}

#[test]
fn cross_entropies_of_each_row() {
    for (dtype, [rows, classes]) in FLOATS.into_iter().flat_map(|dtype| [(dtype, [300, 5]), (dtype, [3, 300])]) {
        let n = rows * classes;
        let logits = Buffer::new(dtype, &numbers(n, 1).into_iter().map(|x| 4.0 * x).collect::<Vec<_>>());
        let dy = Buffer::new(dtype, &numbers(rows, 2));
        let of_rows: Vec<_> = (0..rows).map(|i| i * 7 % classes).collect();
        let labels = Buffer::new(DType::I64, &of_rows.iter().map(|label| *label as f64).collect::<Vec<_>>());
        let target = Target::Labels { address: labels.address(), smoothing: 0.0 };
        let loss = CrossEntropy { rows, classes, dtype: dtype_code(dtype).unwrap(), target, each: true };
        let Some(found) = in_both_orders(|launcher| {
            let (y, dx) = (Buffer::empty(dtype, rows), Buffer::empty(dtype, n));
            loss.forward(launcher, [logits.address(), y.address()])?;
            loss.backward(launcher, [logits.address(), dy.address(), dx.address()])?;
            Ok(vec![y, dx])
        }) else {
            return;
        };
        let targets = Targets::Labels { labels: of_rows.into_iter().map(Some).collect(), count: rows, smoothing: 0.0 };
        let logits = Tensor::from_vec(logits.values(), (rows, classes), &Device::Cpu).unwrap();
        let (costs, normalizers) = targets.forward_each(&logits).unwrap();
        let dy = Tensor::from_vec(dy.values(), rows, &Device::Cpu).unwrap();
        let dx = targets.backward(&logits, &normalizers, &dy).unwrap();
        let what = format!("{dtype:?}, {rows} of {classes}");
        assert_close(&found[0], &on_cpu(&costs), tolerance(dtype), &what);
        assert_close(&found[1], &dx.flatten_all().unwrap().to_vec1().unwrap(), tolerance(dtype), &what);
    }
}
