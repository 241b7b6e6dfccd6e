//! Attention and its caches: values and gradients of compositions of candle's operations in f64, and of differences.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::cell::RefCell;

use candle_core::{D, DType, Result, Tensor, Var};
use candle_nn::kv_cache as stock;
use proptest::prelude::*;
use sam_runtime::Sam;
use sam_runtime::nn::attention::{
    AttnMask, flash_attn, flash_attn_varlen_cpu, flash_attn_varlen_unfused, multi_head_attention,
    scaled_dot_product_attention, self_attention,
};
use sam_runtime::nn::{Dropout, kv_cache, ops};
use sam_tests::{central_difference, device, is_for_the_cpu, numbers, run, values};

/// Uniform in [-1, 1).
fn random(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(numbers(shape.iter().product(), seed), shape, device()).unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    for (i, (a, b)) in values(found).iter().zip(values(expected)).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a} and {b} at {i}");
    }
}

/// By norms, which small elements do not escape.
#[track_caller]
fn assert_close_by_norm(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let (found, expected) = (values(found), values(expected));
    let norm = |x: f64| x / (expected.len() as f64).sqrt();
    let error = norm(found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt());
    let size = norm(expected.iter().map(|x| x * x).sum::<f64>().sqrt());
    assert!(error <= tolerance * size + 1e-4, "{what}: {error} of {size}");
}

/// softmax(scale q kᵀ + bias) v of (batch, heads, tokens, dim) by candle's operations. `seen` is 1 where a query sees a key; rows
/// without one give 0.
struct Reference {
    bias: Option<Tensor>,
    seen: Option<Tensor>,
    softcap: f64,
    factors: Option<Tensor>,
    scale: f64,
}

impl Reference {
    fn new(scale: f64) -> Self {
        Self { bias: None, seen: None, softcap: 0.0, factors: None, scale }
    }

    fn of(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let group = q.dim(1)? / k.dim(1)?;
        let all = |x: &Tensor| {
            let (b, h, t, d) = x.dims4()?;
            x.unsqueeze(2)?.broadcast_as((b, h, group, t, d))?.reshape((b, h * group, t, d))
        };
        let mut scores = (q.contiguous()?.matmul(&all(k)?.t()?.contiguous()?)? * self.scale)?;
        if self.softcap != 0.0 {
            scores = ((scores / self.softcap)?.tanh()? * self.softcap)?;
        }
        if let Some(bias) = &self.bias {
            scores = scores.broadcast_add(bias)?;
        }
        let mut powers = scores.exp()?;
        if let Some(seen) = &self.seen {
            powers = powers.broadcast_mul(&seen.to_dtype(DType::F64)?)?;
        }
        let sums = powers.sum_keepdim(D::Minus1)?;
        let mut weights = powers.broadcast_div(&(&sums + sums.eq(0.0)?.to_dtype(DType::F64)?)?)?;
        if let Some(factors) = &self.factors {
            weights = (weights * factors.to_dtype(DType::F64)?)?;
        }
        weights.matmul(&all(v)?.contiguous()?)
    }
}

fn causal(queries: usize, keys: usize, offset: usize) -> Tensor {
    let sees = |i: usize| (0..keys).map(move |j| u8::from(j <= i + offset));
    Tensor::from_vec((0..queries).flat_map(sees).collect::<Vec<u8>>(), (queries, keys), device()).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Causal,
    Boolean,
    Bias,
}

/// Which function, on which views.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Plain,
    Views,
    Heads,
    Packed,
}

#[derive(Clone, Debug)]
struct Case {
    sizes: [usize; 7],
    kind: Kind,
    mask_dims: [bool; 4],
    entry: Entry,
    dropped: bool,
    dtype: DType,
}

fn cases() -> impl Strategy<Value = Case> {
    let lengths = || prop_oneof![1..8usize, 30..70usize, 180..210usize];
    let dims = || prop::sample::select(vec![1usize, 3, 8, 16, 20, 32, 64, 72]);
    (
        (1..3usize, 1..3usize, 1..3usize, lengths(), lengths(), dims(), dims()),
        prop::sample::select(vec![Kind::None, Kind::Causal, Kind::Boolean, Kind::Bias]),
        any::<[bool; 4]>(),
        prop::sample::select(vec![Entry::Plain, Entry::Views, Entry::Heads, Entry::Packed]),
        prop::bool::weighted(0.3),
        prop::sample::select(vec![DType::F32, DType::F64, DType::F32, DType::F64, DType::BF16, DType::F16]),
    )
        .prop_map(|((b, kv, group, tq, tk, d, dv), kind, mask_dims, entry, dropped, dtype)| {
            let mut sizes = [b, kv, group, tq, tk, d, dv];
            if matches!(entry, Entry::Packed) {
                sizes = [b, kv, 1, tq, tq, d, d];
            }
            Case { sizes, kind, mask_dims, entry, dropped, dtype }
        })
}

/// The output, (batch, queries, heads dim), and the gradients of q, k, v and the bias of Σ dy y, in f64.
fn ours(case: &Case, mask: &AttnMask, q: &Tensor, k: &Tensor, v: &Tensor, dy: &Tensor) -> Result<[Tensor; 5]> {
    let [b, kv, group, tq, _, d, dv] = case.sizes;
    let heads = kv * group;
    // (batch, tokens, heads dim)
    let rows = |x: &Tensor| Var::from_tensor(&x.transpose(1, 2)?.flatten_from(2)?.to_dtype(case.dtype)?);
    let vars = [rows(q)?, rows(k)?, rows(v)?];
    let [q, k, v] = &vars;
    let split = |x: &Tensor, heads: usize| x.reshape((x.dim(0)?, x.dim(1)?, heads, ()))?.transpose(1, 2);
    let dropout = Dropout::seeded(0.3, 5);
    let dropout = case.dropped.then_some(&dropout);
    let packed = match case.entry {
        Entry::Packed => Var::from_tensor(&Tensor::cat(&[q.as_tensor(), k, v], 2)?)?,
        _ => q.clone(),
    };
    let y = match case.entry {
        Entry::Packed => self_attention(&packed, heads, mask, dropout, None)?,
        Entry::Heads => multi_head_attention(q, k, v, heads, mask, dropout, None)?,
        Entry::Plain | Entry::Views => {
            let (mut q, mut k, mut v) = (split(q, heads)?, split(k, kv)?, split(v, kv)?);
            if matches!(case.entry, Entry::Plain) {
                (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
            }
            let y = scaled_dot_product_attention(&q, &k, &v, mask, dropout, None)?;
            assert_eq!(y.dims(), [b, heads, tq, dv]);
            y.transpose(1, 2)?.flatten_from(2)?
        }
    };
    assert_eq!((y.dims(), y.dtype()), (&[b, tq, heads * dv][..], case.dtype));
    let grads = (y.to_dtype(DType::F64)? * dy)?.sum_all()?.backward()?;
    let of = |x: &Tensor| grads.get(x).unwrap().to_dtype(DType::F64);
    let parts = match case.entry {
        Entry::Packed => {
            let all = of(&packed)?;
            [0, 1, 2].map(|i| all.narrow(2, i * heads * d, heads * d).unwrap())
        }
        _ => vars.each_ref().map(|var| of(var).unwrap()),
    };
    let bias = match mask {
        AttnMask::Mask(mask) if mask.is_variable() => of(mask)?,
        _ => Tensor::zeros((), DType::F64, device())?,
    };
    let [dq, dk, dv] = parts;
    Ok([y.to_dtype(DType::F64)?, split(&dq, heads)?, split(&dk, kv)?, split(&dv, kv)?, bias])
}

fn check(case: &Case) -> Result<()> {
    let [b, kv, group, tq, tk, d, dv] = case.sizes;
    let heads = kv * group;
    // What the type can hold.
    let rounded = |x: Tensor| x.to_dtype(case.dtype)?.to_dtype(DType::F64);
    let (q, k) = (rounded(random(&[b, heads, tq, d], 1))?, rounded(random(&[b, kv, tk, d], 2))?);
    let (v, dy) = (rounded(random(&[b, kv, tk, dv], 3))?, random(&[b, tq, heads * dv], 4));
    let mut reference = Reference::new(1.0 / (d as f64).sqrt());
    let mut bias = None;
    let full = [b, heads, tq, tk];
    let shape: Vec<usize> =
        full.iter().zip(case.mask_dims).map(|(size, whole)| if whole { *size } else { 1 }).collect();
    let mask = match case.kind {
        Kind::None => AttnMask::None,
        Kind::Causal => {
            let offset = tk.saturating_sub(tq) + usize::from(case.mask_dims[0]);
            reference.seen = Some(causal(tq, tk, offset));
            AttnMask::causal_with_offset(offset)
        }
        Kind::Boolean => {
            let seen = random(&shape, 6).ge(-0.2)?;
            reference.seen = Some(seen.clone());
            AttnMask::Mask(seen)
        }
        Kind::Bias => {
            let values = rounded(random(&shape, 6))?;
            bias = Some(Var::from_tensor(&values)?);
            reference.bias = bias.as_ref().map(|bias| bias.as_tensor().clone());
            AttnMask::Mask(Var::from_tensor(&values.to_dtype(case.dtype)?)?.as_tensor().clone())
        }
    };
    if case.dropped {
        let ones = Tensor::ones(&full, DType::F32, device())?;
        reference.factors = Some(Dropout::seeded(0.3, 5).forward(&ones, true)?);
    }
    let vars = [Var::from_tensor(&q)?, Var::from_tensor(&k)?, Var::from_tensor(&v)?];
    let y = reference.of(&vars[0], &vars[1], &vars[2])?.transpose(1, 2)?.flatten_from(2)?;
    let grads = (&y * &dy)?.sum_all()?.backward()?;
    let found = ours(case, &mask, &q, &k, &v, &dy)?;
    let tolerance: f64 = match case.dtype {
        DType::F64 => 1e-11,
        DType::F32 => 3e-5,
        DType::F16 => 2e-2,
        _ => 1e-1,
    };
    // For the output the rounding of the type and of the weights, for gradients that of the output as well.
    let by_norm = if case.dtype == DType::BF16 { 2e-2 } else { tolerance.min(3e-3) };
    assert_close(&found[0], &y, tolerance, &format!("{case:?}: the output"));
    assert_close_by_norm(&found[0], &y, by_norm, &format!("{case:?}: the output"));
    for (i, var) in vars.iter().enumerate() {
        let (found, expected, what) = (&found[1 + i], grads.get(var).unwrap(), format!("{case:?}: gradient {i}"));
        assert_close(found, expected, tolerance, &what);
        assert_close_by_norm(found, expected, by_norm, &what);
    }
    if let Some(bias) = bias {
        // A sum of many terms where the mask is broadcast.
        let terms = full.iter().zip(&shape).map(|(all, size)| all / size).product::<usize>() as f64;
        assert_close(&found[4], grads.get(&bias).unwrap(), tolerance * terms.sqrt(), &format!("{case:?}: the mask"));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn agrees_with_the_composition_in_f64(case in cases()) {
        check(&case).unwrap();
    }
}

/// What cuDNN has kernels for, where it is on.
#[test]
fn types_of_two_bytes_without_a_mask_tensor() -> Result<()> {
    let sizes =
        [[2, 2, 1, 70, 70, 16, 16], [1, 2, 2, 64, 133, 32, 24], [2, 1, 3, 100, 40, 8, 8], [1, 2, 1, 32, 32, 72, 72]];
    for (sizes, dtype) in sizes.into_iter().zip([DType::BF16, DType::F16].into_iter().cycle()) {
        for (kind, more) in [(Kind::None, false), (Kind::Causal, false), (Kind::Causal, true)] {
            for entry in [Entry::Plain, Entry::Views, Entry::Heads, Entry::Packed] {
                let [b, kv, group, tq, _, d, _] = sizes;
                let sizes = if matches!(entry, Entry::Packed) { [b, kv * group, 1, tq, tq, d, d] } else { sizes };
                check(&Case { sizes, kind, mask_dims: [more; 4], entry, dropped: false, dtype })?;
            }
        }
    }
    Ok(())
}

/// With other kernels than the gradients of all three, from what the forward pass left.
#[test]
fn the_gradient_of_queries_alone() -> Result<()> {
    let [q, k, v] = [1, 2, 3].map(|seed| random(&[2, 4, 50, 16], seed).to_dtype(DType::F16));
    let (q, k, v) = (Var::from_tensor(&q?)?, Var::from_tensor(&k?)?, Var::from_tensor(&v?)?);
    let gradient = |k: &Tensor, v: &Tensor| -> Result<Tensor> {
        let y = scaled_dot_product_attention(&q, k, v, &AttnMask::causal(), None, None)?;
        let grads = y.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
        grads.get(&q).unwrap().to_dtype(DType::F64)
    };
    assert_close_by_norm(&gradient(&k.detach(), &v.detach())?, &gradient(&k, &v)?, 3e-3, "alone");
    Ok(())
}

/// All of one: a soft cap, a causal mask, a bias and a view.
#[test]
fn gradients_are_those_of_differences() -> Result<()> {
    let shapes = [[1, 4, 5, 3], [1, 2, 6, 3], [1, 2, 6, 2], [1, 4, 5, 6]];
    let inputs: Vec<Tensor> = shapes.iter().zip(1..).map(|(shape, seed)| random(shape, seed)).collect();
    let attention = |t: &[Tensor]| ops::sdpa(&t[0], &t[1], &t[2], Some(&t[3]), true, 1.3, 0.8);
    let (_, grads) = run(attention, &inputs, 9);
    for (number, grad) in grads.into_iter().enumerate() {
        let grad = values(&grad.unwrap());
        for i in 0..grad.len() {
            let mut direction = vec![0f64; grad.len()];
            direction[i] = 1.0;
            let direction = Tensor::from_vec(direction, inputs[number].shape(), device())?;
            let slope = central_difference(attention, &inputs, 9, (number, &direction), 1e-5);
            assert!((slope - grad[i]).abs() < 1e-8, "{slope} and {} at {i} of {number}", grad[i]);
        }
    }
    Ok(())
}

#[test]
fn threads_do_not_show() {
    if is_for_the_cpu("it has threads") {
        return;
    }
    // One head and few heads are shared out in parts.
    for (b, h, t, d, dtype) in [(1, 1, 700, 16, DType::F32), (1, 3, 401, 8, DType::F64), (5, 4, 65, 32, DType::F32)] {
        let digest = || -> Result<Vec<u64>> {
            let qkv = Var::from_tensor(&random(&[b, t, 3 * h * d], 1).to_dtype(dtype)?)?;
            let bias = Var::from_tensor(&random(&[1, h, t, t], 2).to_dtype(dtype)?)?;
            let dropout = Dropout::seeded(0.2, 3);
            let y = self_attention(&qkv, h, &AttnMask::Mask(bias.as_tensor().clone()), Some(&dropout), None)?;
            let grads = y.sqr()?.sum_all()?.backward()?;
            let all = [&y, grads.get(&qkv).unwrap(), grads.get(&bias).unwrap()];
            Ok(all.into_iter().flat_map(values).map(f64::to_bits).collect())
        };
        let on =
            |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(digest).unwrap();
        let one = on(1);
        assert!(on(2) == one && on(7) == one);
    }
}

#[test]
fn both_passes_of_a_step_drop_the_same() -> Result<()> {
    let qkv = Var::from_tensor(&random(&[2, 9, 3 * 8], 1))?;
    let dropout = Dropout::seeded(0.5, 1);
    let seen = RefCell::new(Vec::new());
    let loss = Sam::new(1e-12).loss(|| -> Result<Tensor> {
        let y = self_attention(&qkv, 2, &AttnMask::None, Some(&dropout), None)?;
        seen.borrow_mut().push(y.detach());
        y.sqr()?.mean_all()
    })?;
    loss.backward()?;
    let seen = seen.into_inner();
    assert_eq!(seen.len(), 2);
    assert_close(&seen[0], &seen[1], 1e-9, "the second pass");
    let other = self_attention(&qkv, 2, &AttnMask::None, Some(&dropout), None)?;
    assert!(values(&(other - &seen[0])?).iter().any(|x| x.abs() > 1e-3), "another step drops others");
    // The expectation is the output without.
    let plain = self_attention(&qkv, 2, &AttnMask::None, None, None)?;
    let mut mean = plain.zeros_like()?;
    for _ in 0..4000 {
        mean = (mean + (self_attention(&qkv.detach(), 2, &AttnMask::None, Some(&dropout), None)? / 4000.0)?)?;
    }
    assert_close(&mean, &plain, 0.05, "the mean");
    Ok(())
}

/// As in PyTorch: 0 where a query sees nothing, and NaN only where it comes from.
#[test]
fn rows_without_a_key_and_not_finite_numbers() -> Result<()> {
    let q = Var::from_tensor(&random(&[1, 1, 3, 4], 1).to_dtype(DType::F32)?)?;
    let k = Var::from_tensor(&random(&[1, 1, 5, 4], 2).to_dtype(DType::F32)?)?;
    let seen = Tensor::from_vec([[1u8; 5], [0; 5], [1; 5]].concat(), (3, 5), device())?;
    let hidden = ((seen.to_dtype(DType::F32)? - 1.0)? * 1.0)?.to_vec2::<f32>()?;
    let bias: Vec<f32> = hidden.concat().iter().map(|x| if *x < 0.0 { f32::NEG_INFINITY } else { 0.0 }).collect();
    let bias = Var::from_tensor(&Tensor::from_vec(bias, (3, 5), device())?)?;
    for mask in [AttnMask::Mask(seen), AttnMask::Mask(bias.as_tensor().clone())] {
        let y = scaled_dot_product_attention(&q, &k, &k, &mask, None, None)?;
        let grads = y.sum_all()?.backward()?;
        let (y, dq) = (y.reshape((3, 4))?.to_vec2::<f32>()?, grads.get(&q).unwrap().reshape((3, 4))?.to_vec2::<f32>()?);
        assert_eq!((&y[1], &dq[1]), (&vec![0.0; 4], &vec![0.0; 4]));
        assert!(y[0].iter().chain(&dq[0]).all(|x| x.is_finite() && *x != 0.0));
        assert!(values(grads.get(&k).unwrap()).iter().all(|x| x.is_finite()));
        if let Some(bias) = grads.get(&bias) {
            assert!(values(bias).iter().all(|x| x.is_finite()));
        }
    }
    let mut broken = values(&q);
    broken[5] = f64::NAN;
    let broken = Tensor::from_vec(broken, (1, 1, 3, 4), device())?.to_dtype(DType::F32)?;
    let y = scaled_dot_product_attention(&broken, &k, &k, &AttnMask::None, None, None)?.reshape((3, 4))?;
    let y = y.to_vec2::<f32>()?;
    assert!(y[1].iter().all(|x| x.is_nan()) && y[0].iter().chain(&y[2]).all(|x| x.is_finite()), "{y:?}");
    let none = Tensor::zeros((1, 1, 0, 4), DType::F32, device())?;
    let y = scaled_dot_product_attention(&q, &none, &none, &AttnMask::None, None, None)?;
    assert_eq!(values(&y), [0.0; 12], "no keys");
    assert_eq!(scaled_dot_product_attention(&none, &k, &k, &AttnMask::None, None, None)?.dims(), [1, 1, 0, 4]);
    Ok(())
}

#[test]
fn wrong_inputs_are_errors() {
    let of = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device()).unwrap();
    let (q, k) = (of(&[2, 4, 5, 8]), of(&[2, 2, 6, 8]));
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor, mask| scaled_dot_product_attention(q, k, v, &mask, None, None);
    assert!(attend(&q, &k, &k, AttnMask::None).is_ok());
    assert!(attend(&q, &of(&[2, 3, 6, 8]), &of(&[2, 3, 6, 8]), AttnMask::None).is_err(), "4 heads by 3");
    assert!(attend(&q, &of(&[2, 2, 6, 7]), &k, AttnMask::None).is_err(), "dimensions");
    assert!(attend(&q, &k, &of(&[2, 2, 5, 8]), AttnMask::None).is_err(), "keys");
    assert!(attend(&q, &k, &k.to_dtype(DType::F64).unwrap(), AttnMask::None).is_err(), "types");
    assert!(attend(&q, &k, &k, AttnMask::Mask(of(&[5, 5]))).is_err(), "a mask of another shape");
    assert!(attend(&q, &k, &k, AttnMask::Mask(of(&[5, 6]).to_dtype(DType::I64).unwrap())).is_err(), "of integers");
    assert!(self_attention(&of(&[2, 5, 20]), 3, &AttnMask::None, None, None).is_err());
    assert!(self_attention(&of(&[2, 5, 18]), 0, &AttnMask::None, None, None).is_err());
    let rows = of(&[2, 5, 12]);
    assert!(multi_head_attention(&rows, &rows, &rows, 5, &AttnMask::None, None, None).is_err());
}

/// Values are candle's, and there is a gradient: that of the composition.
#[test]
fn flash_attention_has_a_gradient() -> Result<()> {
    if is_for_the_cpu("candle's function") {
        return Ok(());
    }
    for (b, offset, max_bias, softcap) in
        [(1, 2, None, None), (2, 2, None, None), (1, 2, Some(8.0), Some(1.5)), (2, 2, Some(8.0), None)]
    {
        let (tq, tk) = (4, 4 + offset);
        for kind in [Kind::None, Kind::Causal, Kind::Bias] {
            if matches!(kind, Kind::Bias) && b > 1 {
                continue;
            }
            let bias = random(&[tq, tk], 5).to_dtype(DType::F32)?;
            let mask = || match kind {
                Kind::Causal => AttnMask::causal_with_offset(offset),
                Kind::Bias => AttnMask::Mask(bias.clone()),
                _ => AttnMask::None,
            };
            let shapes = [[b, tq, 4, 6], [b, tk, 2, 6], [b, tk, 2, 6]];
            let vars: Vec<Var> = shapes
                .iter()
                .zip(1..)
                .map(|(shape, seed)| Var::from_tensor(&random(shape, seed).to_dtype(DType::F32)?))
                .collect::<Result<_>>()?;
            let [q, k, v] = [0, 1, 2].map(|i| vars[i].detach());
            let expected = candle_nn::attention::flash_attn::<f32>(&q, &k, &v, 0.4, mask(), max_bias, softcap)?;
            let found = flash_attn::<f32>(&vars[0], &vars[1], &vars[2], 0.4, mask(), max_bias, softcap)?;
            assert_close(&found, &expected, 1e-5, &format!("{b} {kind:?} {max_bias:?} {softcap:?}"));
            let constant = flash_attn::<f32>(&q, &k, &v, 0.4, mask(), max_bias, softcap)?;
            assert_eq!(values(&constant), values(&expected));
            let grads = found.sqr()?.sum_all()?.backward()?;
            for var in &vars {
                assert!(values(grads.get(var).unwrap()).iter().any(|x| x.abs() > 1e-4));
            }
        }
    }
    Ok(())
}

#[test]
fn sequences_of_different_lengths() -> Result<()> {
    if is_for_the_cpu("candle's function") {
        return Ok(());
    }
    let lengths = |of: [u32; 3]| Tensor::new(&of, device());
    let (of_q, of_k) = (lengths([3, 0, 5])?, lengths([4, 2, 7])?);
    let vars: Vec<Var> = [[8, 4, 6], [13, 2, 6], [13, 2, 6]]
        .iter()
        .zip(1..)
        .map(|(shape, seed)| Var::from_tensor(&random(shape, seed).to_dtype(DType::F32)?))
        .collect::<Result<_>>()?;
    let slopes = Var::from_tensor(&random(&[4], 7).to_dtype(DType::F32)?)?;
    for causal in [false, true] {
        for (left, right) in [(None, None), (Some(2), Some(1)), (Some(1), None)] {
            for alibi in [None, Some(slopes.as_tensor())] {
                let [q, k, v] = [0, 1, 2].map(|i| vars[i].detach());
                let fixed = alibi.map(Tensor::detach);
                let run = |unfused: bool, q: &Tensor, k: &Tensor, v: &Tensor, alibi: Option<&Tensor>| {
                    let f = if unfused { flash_attn_varlen_unfused } else { flash_attn_varlen_cpu };
                    f(q, k, v, alibi, &of_q, &of_k, 5, 7, 0.4, causal, left, right)
                };
                for unfused in [false, true] {
                    let expected = run(unfused, &q, &k, &v, fixed.as_ref())?;
                    let found = run(unfused, &vars[0], &vars[1], &vars[2], alibi)?;
                    assert_close(&found, &expected, 1e-5, &format!("{causal} {left:?} {right:?} {alibi:?}"));
                    let grads = found.sqr()?.sum_all()?.backward()?;
                    assert!(vars.iter().all(|var| grads.get(var).is_some()));
                    assert_eq!(grads.get(&slopes).is_some(), alibi.is_some());
                }
            }
        }
    }
    Ok(())
}

/// Ours and candle's, step by step: the same values, and a gradient for what is appended.
#[test]
fn caches_keep_the_gradient() -> Result<()> {
    let steps = [3usize, 1, 4, 2, 1, 9, 1];
    let mut ours =
        (kv_cache::KvCache::new(2, 4), kv_cache::ConcatKvCache::new(2), kv_cache::RotatingKvCache::new(2, 6));
    let mut theirs = (stock::KvCache::new(2, 4), stock::ConcatKvCache::new(2), stock::RotatingKvCache::new(2, 6));
    let mut interleaved = (kv_cache::InterleavedKvCache::new(3), stock::InterleavedKvCache::new(3));
    for (n, seed) in steps.into_iter().zip(1..) {
        let [k, v] = [seed, 100 + seed].map(|seed| Var::from_tensor(&random(&[1, 2, n, 3], seed)).unwrap());
        let (k_fixed, v_fixed) = (k.detach(), v.detach());
        let pairs = [
            (ours.0.append(&k, &v)?, theirs.0.append(&k_fixed, &v_fixed)?),
            (ours.1.append(&k, &v)?, theirs.1.append(&k_fixed, &v_fixed)?),
            (ours.2.append(&k, &v)?, theirs.2.append(&k_fixed, &v_fixed)?),
        ];
        for ((ours, theirs), name) in pairs.iter().zip(["KvCache", "ConcatKvCache", "RotatingKvCache"]) {
            for ((found, expected), var) in [(&ours.0, &theirs.0), (&ours.1, &theirs.1)].into_iter().zip([&k, &v]) {
                assert_eq!((found.dims(), values(found)), (expected.dims(), values(expected)), "{name}");
                // d Σ x² = 2 x where it is the new one, and no other variable is in the graph.
                let grads = found.sqr()?.sum_all()?.backward()?;
                assert_close(grads.get(var).unwrap(), &(var.as_tensor() * 2.0)?, 1e-12, name);
            }
        }
        let (found, expected) = (interleaved.0.append(&k, &v)?, interleaved.1.append(&k_fixed, &v_fixed)?);
        assert_eq!((found.dims(), values(&found)), (expected.dims(), values(&expected)));
        let grads = found.sqr()?.sum_all()?.backward()?;
        assert_close(grads.get(&v).unwrap(), &(v.as_tensor() * 2.0)?, 1e-12, "InterleavedKvCache");
    }
    assert_eq!(ours.0.current_seq_len(), theirs.0.current_seq_len());
    assert!(ours.0.k()?.is_some_and(|k| !k.track_op()), "what is kept is a constant");
    assert_eq!(ours.2.positions(2), theirs.2.positions(2));
    ours.0.reset();
    assert!(ours.0.k()?.is_none());
    // Without variables it is candle's.
    let x = random(&[1, 2, 3, 3], 1);
    let (k, _) = ours.0.append(&x, &x)?;
    assert_eq!(k.dims(), [1, 2, 3, 3]);
    Ok(())
}
