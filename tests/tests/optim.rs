//! `optim` is PyTorch's, group by group, on the disk and back.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarMap};
use proptest::prelude::*;
use sam_runtime::optim::{AdamW, ParamGroup, ParamsSgd, Sgd, decay_groups};
use sam_tests::{device, is_for_the_cpu, values};

const SHAPES: [&[usize]; 3] = [&[48], &[4, 16], &[16]];

/// What torch has made of the same, see `fixtures/torch_optim.py`.
fn torch() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_optim.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Numbers that every type holds exactly, as in `torch_optim.py`.
fn numbers(shape: &[usize], seed: usize, dtype: DType, divisor: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let whole = (0..n).map(|i| ((i * 37 + seed * 101) % 127) as f64 - 63.0);
    let values: Vec<f64> = whole.map(|x| x / divisor).collect();
    Tensor::from_vec(values, shape, device()).unwrap().to_dtype(dtype).unwrap()
}

fn variables(dtype: DType) -> Vec<Var> {
    let shapes = SHAPES.iter().enumerate();
    shapes.map(|(k, shape)| Var::from_tensor(&numbers(shape, k, dtype, 64.0)).unwrap()).collect()
}

fn store<'a>(gradients: impl IntoIterator<Item = (&'a Var, Tensor)>) -> GradStore {
    let mut store = GradStore::default();
    for (var, grad) in gradients {
        store.insert(var, grad);
    }
    store
}

fn map<'a>(vars: impl IntoIterator<Item = (&'a str, &'a Var)>) -> VarMap {
    let map = VarMap::new();
    for (name, var) in vars {
        map.data().lock().unwrap().insert(name.to_owned(), var.clone());
    }
    map
}

/// How far apart, in units of the last place of the type.
fn ulps(a: f64, b: f64, dtype: DType) -> f64 {
    let epsilon = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    if a == b { 0.0 } else { (a - b).abs() / (epsilon * a.abs().max(b.abs()) / 2.0) }
}

#[track_caller]
fn assert_torch(found: &Tensor, expected: &Tensor, ulps_allowed: f64, what: &str) {
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()), "{what}");
    for (a, b) in values(found).into_iter().zip(values(expected)) {
        let distance = ulps(a, b, found.dtype());
        assert!(distance <= ulps_allowed, "{what}: {a} and {b}, {distance} ulps");
    }
}

/// The step of `torch_optim.py` in which the variable `k` gets a gradient.
fn seven_steps(adamw: &mut AdamW, vars: &[Var], dtype: DType) {
    for step in 0..7 {
        let with_gradient = vars.iter().enumerate().filter(|(k, _)| *k != 2 || step >= 2);
        let gradients = with_gradient.map(|(k, var)| (var, numbers(var.dims(), 7 * step + k, dtype, 512.0)));
        adamw.step(&store(gradients)).unwrap();
    }
}

#[test]
fn adamw_is_that_of_pytorch() {
    let torch = torch();
    for dtype in [DType::F32, DType::F64] {
        for name in ["default", "other", "groups"] {
            let vars = variables(dtype);
            let mut adamw = match name {
                "default" => AdamW::new_lr(vars.clone(), 1e-2).unwrap(),
                "other" => {
                    let params = ParamsAdamW { lr: 0.1, beta1: 0.3, beta2: 0.9, eps: 1e-3, weight_decay: 0.0 };
                    AdamW::new(vars.clone(), params).unwrap()
                }
                _ => {
                    let params = ParamsAdamW { lr: 0.03, beta2: 0.95, weight_decay: 0.1, ..Default::default() };
                    let first = ParamGroup::new(vars[..1].to_vec()).lr_scale(0.5).weight_decay(0.0);
                    AdamW::with_groups([first, ParamGroup::new(vars[1..].to_vec())], params).unwrap()
                }
            };
            seven_steps(&mut adamw, &vars, dtype);
            let names = map(["0", "1", "2"].into_iter().zip(&vars));
            let state = candle_core::safetensors::load_buffer(&adamw.to_bytes(&names).unwrap(), &Device::Cpu).unwrap();
            for (k, var) in vars.iter().enumerate() {
                let key = format!("adamw.{name}.{dtype:?}.{k}").to_uppercase().replace("ADAMW", "adamw");
                let key = key.replace(&name.to_uppercase(), name);
                // Other processors may divide and take roots otherwise.
                let ulps = if device().is_cpu() { 0.0 } else { 4.0 };
                assert_torch(var.as_tensor(), &torch[&format!("{key}.w")], ulps, &key);
                assert_torch(&state[&format!("first.{k}")], &torch[&format!("{key}.m")], ulps, &key);
                assert_torch(&state[&format!("second.{k}")], &torch[&format!("{key}.v")], ulps, &key);
            }
        }
    }
}
