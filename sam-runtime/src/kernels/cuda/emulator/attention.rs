//! Attention, against the CPU kernels in f64.

use candle_core::{DType, Device, Tensor};

use super::super::launch::attention::{Attention, Given, Mask};
use super::super::launch::dtype_code;
use super::{Buffer, FLOATS, assert_close, in_both_orders, numbers, on_cpu, tolerance};
use crate::kernels::cpu::attention::{attention, attention_back};
use crate::kernels::shapes::{AttentionShape, HeadStrides, mask_strides};

fn tensor(buffer: &Buffer, shape: &[usize]) -> Tensor {
    Tensor::from_vec(buffer.values(), shape, &Device::Cpu).unwrap()
}

/// The output and the gradients of q, k, v and the mask on the CPU in f64.
fn expected(shape: &AttentionShape, args: &[Tensor], dy: &Tensor) -> Vec<Vec<f64>> {
    let (y, logs) = attention(shape, args).unwrap();
    let output = Tensor::from_vec(on_cpu(&y), y.1.clone(), &Device::Cpu).unwrap();
    let wanted: Vec<bool> = args.iter().map(|arg| arg.dtype() != DType::U8).collect();
    let gradients = attention_back(shape, args, &wanted, &output, dy, &logs).unwrap();
    let gradients = gradients.into_iter().flatten().map(|x| x.flatten_all().unwrap().to_vec1().unwrap());
    std::iter::once(on_cpu(&y)).chain(gradients).collect()
}

#[test]
fn attention_forward_and_backward() {
    let plain = AttentionShape {
        batch: 2,
        heads: 2,
        kv_heads: 2,
        queries: 21,
        keys: 70,
        dim: 36,
        v_dim: 8,
        scale: 0.3,
        softcap: 0.0,
        causal: None,
        drop_p: 0.0,
        seed: 7,
        packed: false,
    };
    let causal = AttentionShape { batch: 1, queries: 70, keys: 66, causal: Some(-3), ..plain };
    let grouped =
        AttentionShape { heads: 4, keys: 20, drop_p: 0.3, v_dim: 130, softcap: 0.8, causal: Some(2), ..plain };
    let packed = AttentionShape { keys: 21, v_dim: 36, packed: true, ..plain };
    for (shape, mask_dims) in [
        (plain, None),
        (plain, Some([2, 2, 21, 70])),
        (causal, None),
        (grouped, Some([1, 4, 1, 20])),
        (packed, Some([1, 1, 21, 1])),
    ] {
        for boolean in [false, true] {
            if mask_dims.is_none() && boolean {
                continue;
            }
            for dtype in FLOATS {
                check(&shape, mask_dims, boolean, dtype);
            }
        }
    }
}

fn check(shape: &AttentionShape, mask_dims: Option<[usize; 4]>, boolean: bool, dtype: DType) {
    let AttentionShape { batch, heads, kv_heads, queries, keys, dim, v_dim, packed, .. } = *shape;
    // (batch, tokens, heads, dim) in memory.
    let sizes: Vec<[usize; 3]> = if packed {
        vec![[batch, queries, 3 * heads * dim]]
    } else {
        vec![[batch, queries, heads * dim], [batch, keys, kv_heads * dim], [batch, keys, kv_heads * v_dim]]
    };
    let inputs: Vec<Buffer> =
        sizes.iter().zip(1..).map(|(size, seed)| Buffer::new(dtype, &numbers(size.iter().product(), seed))).collect();
    let dy = Buffer::new(dtype, &numbers(batch * queries * heads * v_dim, 5));
    let mask_values: Vec<f64> = numbers(mask_dims.map_or(0, |dims| dims.iter().product()), 6);
    let mut args: Vec<Tensor> = inputs.iter().zip(&sizes).map(|(buffer, size)| tensor(buffer, size)).collect();
    // Those of booleans are a byte each.
    let bytes: Vec<u8> = mask_values.iter().map(|x| u8::from(*x > -0.5)).collect();
    let mask_buffer = Buffer::new(dtype, &mask_values);
    if let Some(dims) = mask_dims {
        args.push(if boolean {
            Tensor::from_vec(bytes.clone(), &dims, &Device::Cpu).unwrap()
        } else {
            tensor(&mask_buffer, &dims)
        });
    }
    let expected = expected(shape, &args, &tensor(&dy, &[batch, queries, heads * v_dim]));
    let mask = mask_dims.map(|dims| Mask {
        address: if boolean { bytes.as_ptr() as u64 } else { mask_buffer.address() },
        dtype: if boolean { None } else { Some(dtype_code(dtype).unwrap()) },
        strides: mask_strides(dims.into()),
    });
    let shapes: Vec<&[usize]> = sizes.iter().map(<[usize; 3]>::as_slice).collect();
    let strides: [HeadStrides; 3] = shape.gradient_strides(&shapes);
    let at = |i: usize, buffers: &[Buffer]| (buffers[if packed { 0 } else { i }].address(), strides[i]);
    let [q, k, v] = [0, 1, 2].map(|i| at(i, &inputs));
    let launch = Attention { shape, dtype: dtype_code(dtype).unwrap(), q, k, v, mask };
    let Some(found) = in_both_orders(|launcher| {
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let rows = batch * heads * queries;
        let (y, [logs, deltas]) = (Buffer::empty(dtype, rows * v_dim), [(); 2].map(|()| Buffer::empty(wide, rows)));
        launch.forward(launcher, (y.address(), shape.output()), logs.address())?;
        let given = Given { dy: (dy.address(), shape.output()), logs: logs.address(), deltas: deltas.address() };
        launch.deltas(launcher, y.address(), given.dy, given.deltas)?;
        let to: Vec<Buffer> = sizes.iter().map(|size| Buffer::empty(dtype, size.iter().product())).collect();
        launch.backward_of_queries(launcher, &given, at(0, &to))?;
        launch.backward_of_keys(launcher, &given, [Some(at(1, &to)), Some(at(2, &to))])?;
        let mut results = vec![y];
        results.extend(to);
        if mask_dims.is_some() && !boolean {
            let gradient = Buffer::empty(dtype, mask_values.len());
            launch.backward_of_mask(launcher, &given, gradient.address(), mask_values.len())?;
            results.push(gradient);
        }
        Ok(results)
    }) else {
        return;
    };
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Sums of many terms, and an output that is rounded before the backward pass.
        let tolerance = 20.0 * tolerance(dtype) * if i == 4 { 4.0 } else { 1.0 };
        assert_close(found, expected, tolerance, &format!("{dtype:?} {shape:?} {mask_dims:?} {boolean}: result {i}"));
    }
}
