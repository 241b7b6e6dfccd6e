//! The kernels compared with what bounds them: memory-bound ones with a copy of the same bytes, in bytes that have to move,
//! and convolutions with a matrix product, in multiplications of the plain sum.
//!
//! `cargo bench -p sam-runtime`, and a part of a name to run only some.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark ends at its first error")]

use candle_core::backprop::GradStore;
use candle_core::{D, DType, Device, Module, Tensor, Var};
use candle_nn::rnn::{GRUConfig, LSTMConfig};
use candle_nn::{Conv1dConfig, Conv2dConfig, ModuleT, Optimizer, RNN, VarBuilder, VarMap};
use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use sam_runtime::nn::attention::{AttnMask, self_attention};
use sam_runtime::optim::{AdamW, Ema, ParamsSgd, Sgd, clip_grad_norm};
use sam_runtime::{Sam, nn};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The parameters of WRN-28-10.
const PARAMETERS: usize = 36_479_194;

fn randn(dims: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap()
}

/// A group whose throughput is that of `bytes`, with a copy that reads and writes as many.
fn beside_a_copy(c: &mut Criterion, name: &str, bytes: usize, bench: impl FnOnce(&mut Group<'_>)) {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes as u64)).sample_size(10).sampling_mode(SamplingMode::Flat);
    let (from, mut to) = (vec![1f32; bytes / 8], vec![0f32; bytes / 8]);
    group.bench_function("copy", |b| {
        b.iter(|| {
            to.par_chunks_mut(1 << 15).zip(from.par_chunks(1 << 15)).for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    bench(&mut group);
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

/// Norm, perturbation and restoring: four reads or writes of a parameter.
fn sam(c: &mut Criterion) {
    let w = Var::from_tensor(&randn(&[PARAMETERS])).unwrap();
    beside_a_copy(c, "sam", 4 * 4 * PARAMETERS, |group| {
        for (name, sam) in [
            ("p = 2", Sam::default()),
            ("p = 1", Sam::default().p(1.0)),
            ("p = inf", Sam::default().p(f64::INFINITY)),
            ("adaptive", Sam::default().adaptive(0.01)),
        ] {
            let ascent = || sam.ascend(&mut |_| w.sum_all()).unwrap();
            group.bench_function(name, |b| {
                b.iter_batched(ascent, |ascent| drop(ascent.perturb().unwrap()), BatchSize::PerIteration);
            });
        }
    });
}

/// Weight, velocity and gradient read, weight and velocity written.
fn sgd(c: &mut Criterion) {
    let w = Var::from_tensor(&randn(&[PARAMETERS])).unwrap();
    let grads = w.sum_all().unwrap().backward().unwrap();
    let mut sgd = Sgd::new(vec![w], ParamsSgd { lr: 1e-6, ..ParamsSgd::default() }).unwrap();
    beside_a_copy(c, "sgd", 5 * 4 * PARAMETERS, |group| {
        group.bench_function("momentum", |b| b.iter(|| sgd.step(&grads).unwrap()));
    });
}

/// AdamW: weight, two moments and gradient read, all but the gradient written. Clipping: a gradient read twice and written. An
/// average: it and the weight read, it written.
fn adamw(c: &mut Criterion) {
    const PARAMETERS: usize = 10_000_000;
    let w = Var::from_tensor(&randn(&[PARAMETERS])).unwrap();
    let grads = w.sum_all().unwrap().backward().unwrap();
    let mut adamw = AdamW::new_lr(vec![w.clone()], 1e-6).unwrap();
    beside_a_copy(c, "adamw", 7 * 4 * PARAMETERS, |group| {
        group.bench_function("step", |b| b.iter(|| adamw.step(&grads).unwrap()));
    });
    let vars = [w.clone()];
    beside_a_copy(c, "clip", 3 * 4 * PARAMETERS, |group| {
        let mut grads = w.sum_all().unwrap().backward().unwrap();
        group.bench_function("read only", |b| b.iter(|| clip_grad_norm(&mut grads, &vars, 1e9).unwrap()));
        let gradient = grads.get(&w).unwrap().clone();
        group.bench_function("scaled", |b| {
            b.iter(|| {
                grads.insert(&w, gradient.clone());
                clip_grad_norm(&mut grads, &vars, 1.0).unwrap()
            });
        });
    });
    let mut ema = Ema::new(vec![w.clone()], 0.999).unwrap();
    beside_a_copy(c, "ema", 3 * 4 * PARAMETERS, |group| {
        group.bench_function("update", |b| b.iter(|| ema.update().unwrap()));
    });
}

/// Forward: one activation read, one written. Backward: input, output and gradient read, a gradient written.
fn norm(c: &mut Criterion) {
    let (vars, dims) = (VarMap::new(), [128, 64, 32, 32]);
    let layer = nn::batch_norm(64, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
    let x = randn(&dims);
    let bytes = 4 * x.elem_count();
    beside_a_copy(c, "batch norm, relu", 2 * bytes, |group| {
        group.bench_function("forward", |b| b.iter(|| layer.forward_relu(&x, true).unwrap()));
    });
    let y = layer.forward_relu(Var::from_tensor(&x).unwrap().as_tensor(), true).unwrap();
    beside_a_copy(c, "batch norm, relu, gradient", 4 * bytes, |group| {
        group.bench_function("backward", |b| b.iter(|| y.backward().unwrap()));
    });
    beside_a_copy(c, "batch norm", 2 * bytes, |group| {
        group.bench_function("evaluation", |b| b.iter(|| layer.forward_t(&x, false).unwrap()));
    });
}

type Op<'a> = Box<dyn Fn(&Tensor) -> Tensor + 'a>;

/// Forward: an activation read, one written; backward: two read, one written. Next to candle's: forward its fused
/// operations, which have no gradient, and backward those that have one.
fn transformer(c: &mut Criterion) {
    let (x, scores) = (randn(&[8, 128, 256]), randn(&[8, 4, 128, 128]));
    let [weight, bias] = [Tensor::ones(256, DType::F32, &Device::Cpu).unwrap(), randn(&[256])];
    let [weight, bias] = [weight, bias].map(|affine| Var::from_tensor(&affine).unwrap());
    let ops: [(&str, &Tensor, Op<'_>, Op<'_>, Op<'_>); 4] = [
        (
            "layer norm",
            &x,
            Box::new(|x| nn::ops::layer_norm(x, &weight, &bias, 1e-5).unwrap()),
            Box::new(|x| candle_nn::ops::layer_norm(x, &weight, &bias, 1e-5).unwrap()),
            Box::new(|x| candle_nn::ops::layer_norm_slow(x, &weight, &bias, 1e-5).unwrap()),
        ),
        (
            "rms norm",
            &x,
            Box::new(|x| nn::ops::rms_norm(x, &weight, 1e-5).unwrap()),
            Box::new(|x| candle_nn::ops::rms_norm(x, &weight, 1e-5).unwrap()),
            Box::new(|x| candle_nn::ops::rms_norm_slow(x, &weight, 1e-5).unwrap()),
        ),
        (
            "group norm",
            &x,
            Box::new(|x| nn::GroupNorm::new(weight128(), weight128(), 128, 8, 1e-5).unwrap().forward(x).unwrap()),
            Box::new(|x| candle_group_norm().forward(x).unwrap()),
            Box::new(|x| candle_group_norm().forward(x).unwrap()),
        ),
        (
            "softmax",
            &scores,
            Box::new(|x| nn::ops::softmax_last_dim(x).unwrap()),
            Box::new(|x| candle_nn::ops::softmax_last_dim(x).unwrap()),
            Box::new(|x| candle_nn::ops::softmax(x, D::Minus1).unwrap()),
        ),
    ];
    for (name, x, ours, fused, slow) in ops {
        let (var, bytes) = (Var::from_tensor(x).unwrap(), 4 * x.elem_count());
        beside_a_copy(c, name, 2 * bytes, |group| {
            group.bench_function("forward", |b| b.iter(|| ours(x)));
            group.bench_function("candle, fused", |b| b.iter(|| fused(x)));
        });
        beside_a_copy(c, &format!("{name}, gradient"), 3 * bytes, |group| {
            let (y, slow) = (ours(&var), slow(&var));
            group.bench_function("backward", |b| b.iter(|| y.backward().unwrap()));
            group.bench_function("candle", |b| b.iter(|| slow.backward().unwrap()));
        });
    }
}

fn weight128() -> Tensor {
    Tensor::ones(128, DType::F32, &Device::Cpu).unwrap()
}

fn candle_group_norm() -> candle_nn::GroupNorm {
    candle_nn::GroupNorm::new(weight128(), weight128(), 128, 8, 1e-5).unwrap()
}

/// Candle's, as a measure for the others.
fn matmul(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    let a = randn(&[1024, 1024]);
    group.throughput(Throughput::Elements(1 << 30)).sample_size(10);
    group.bench_function("1024x1024x1024", |b| b.iter(|| a.matmul(&a).unwrap()));
    group.finish();
}

fn linear(c: &mut Criterion) {
    let (x, w) = (randn(&[128, 1024]), randn(&[1024, 1024]));
    let (x_var, w_var) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
    let y = |x: &Tensor, w: &Tensor| nn::Linear::new(w.clone(), None).forward(x).unwrap();
    let mut group = c.benchmark_group("linear, 128 of 1024 to 1024");
    group.throughput(Throughput::Elements(128 << 20)).sample_size(10);
    group.bench_function("forward", |b| b.iter(|| y(&x, &w)));
    let (of_x, of_w) = (y(&x_var, &w), y(&x, &w_var));
    group.bench_function("gradient of the input", |b| b.iter(|| of_x.backward().unwrap()));
    group.bench_function("gradient of the weight", |b| b.iter(|| of_w.backward().unwrap()));
    group.finish();
}

fn convolution(c: &mut Criterion) {
    for (images, from, to, side, kernel, stride) in [
        (128, 3, 16, 32, 3, 1),
        (128, 16, 16, 32, 3, 1),
        (128, 64, 64, 32, 3, 1),
        (128, 256, 256, 8, 3, 1),
        (32, 640, 640, 8, 3, 1),
        (128, 64, 128, 32, 3, 2),
        (128, 64, 128, 32, 1, 2),
    ] {
        let config = Conv2dConfig { padding: kernel / 2, stride, ..Conv2dConfig::default() };
        let (x, w) = (randn(&[images, from, side, side]), randn(&[to, from, kernel, kernel]));
        let (x_var, w_var) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
        let y = |x: &Tensor, w: &Tensor| nn::Conv2d::new(w.clone(), None, config).forward(x).unwrap();
        let name = format!("conv {kernel}x{kernel}/{stride}, {from} to {to} channels, {images} of {side}x{side}");
        let mut group = c.benchmark_group(name);
        let places = images * (side / stride) * (side / stride);
        group.throughput(Throughput::Elements((places * from * to * kernel * kernel) as u64)).sample_size(10);
        group.bench_function("forward", |b| b.iter(|| y(&x, &w)));
        let (of_x, of_w) = (y(&x_var, &w), y(&x, &w_var));
        group.bench_function("gradient of the input", |b| b.iter(|| of_x.backward().unwrap()));
        group.bench_function("gradient of the weight", |b| b.iter(|| of_w.backward().unwrap()));
        group.finish();
    }
}

/// The multiplications of a causal attention's two products forward, and its five backward.
fn attention(c: &mut Criterion) {
    for [batch, heads, length, dim] in [[32, 8, 256, 32], [8, 12, 512, 64]] {
        let qkv = Var::from_tensor(&randn(&[batch, length, 3 * heads * dim])).unwrap();
        let products = batch * heads * length * length / 2 * dim;
        let y = || self_attention(&qkv, heads, &AttnMask::causal(), None, None).unwrap();
        let name = format!("causal attention, {batch} of {length} tokens, {heads} heads of {dim}");
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(2 * products as u64)).sample_size(10);
        group.bench_function("forward", |b| b.iter(y));
        let y = y();
        group.throughput(Throughput::Elements(5 * products as u64));
        group.bench_function("backward", |b| b.iter(|| y.backward().unwrap()));
        group.finish();
    }
}

/// A sequence of 100 steps forward and backward, next to candle's.
fn recurrent(c: &mut Criterion) {
    let (vars, x) = (VarMap::new(), randn(&[32, 100, 128]));
    let vb = |name: &str| VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu).pp(name);
    let mut group = c.benchmark_group("32 sequences of 100 steps, 128 to 128");
    group.sample_size(10);
    let lstm = nn::lstm(128, 128, LSTMConfig::default(), vb("lstm")).unwrap();
    let of_candle = candle_nn::lstm(128, 128, LSTMConfig::default(), vb("lstm")).unwrap();
    group.bench_function("lstm", |b| b.iter(|| gradient_of_sequence(&lstm, &x)));
    group.bench_function("lstm, candle", |b| b.iter(|| gradient_of_sequence(&of_candle, &x)));
    let gru = nn::gru(128, 128, GRUConfig::default(), vb("gru")).unwrap();
    let of_candle = candle_nn::gru(128, 128, GRUConfig::default(), vb("gru")).unwrap();
    group.bench_function("gru", |b| b.iter(|| gradient_of_sequence(&gru, &x)));
    group.bench_function("gru, candle", |b| b.iter(|| gradient_of_sequence(&of_candle, &x)));
    group.finish();
}

fn gradient_of_sequence<R: RNN>(rnn: &R, x: &Tensor) -> GradStore {
    let states = rnn.seq(x).unwrap();
    rnn.states_to_tensor(&states).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap()
}

/// As the first layer of a speech model, next to candle's.
fn convolution_1d(c: &mut Criterion) {
    let (x, w) = (randn(&[8, 80, 1000]), randn(&[256, 80, 3]));
    let (x_var, w_var) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
    let config = Conv1dConfig { padding: 1, ..Conv1dConfig::default() };
    let ours = |x: &Tensor, w: &Tensor| nn::Conv1d::new(w.clone(), None, config).forward(x).unwrap();
    let of_candle = |x: &Tensor, w: &Tensor| candle_nn::Conv1d::new(w.clone(), None, config).forward(x).unwrap();
    let mut group = c.benchmark_group("conv1d 3, 80 to 256 channels, 8 of 1000");
    group.throughput(Throughput::Elements(8 * 1000 * 80 * 256 * 3)).sample_size(10);
    group.bench_function("forward", |b| b.iter(|| ours(&x, &w)));
    group.bench_function("forward, candle", |b| b.iter(|| of_candle(&x, &w)));
    let (y, of_candle) = (ours(&x_var, &w_var), of_candle(&x_var, &w_var));
    group.throughput(Throughput::Elements(2 * 8 * 1000 * 80 * 256 * 3));
    group.bench_function("backward", |b| b.iter(|| y.backward().unwrap()));
    group.bench_function("backward, candle", |b| b.iter(|| of_candle.backward().unwrap()));
    group.finish();
}

criterion_group!(
    benches,
    sam,
    sgd,
    adamw,
    norm,
    transformer,
    attention,
    recurrent,
    matmul,
    linear,
    convolution,
    convolution_1d
);
criterion_main!(benches);
