//! Batches in parts and shards whose losses are no means over samples.

use candle_core::{DType, Result, Tensor, Var};
use sam_runtime::{BatchSelection, Sam, Shards, SplitBatch, Weights};
use sam_tests::{device, gradient, values};

use crate::reference::{Step, add, along, assert_close, losses, net, times, weights};

/// Sequences of tokens, some of them padded: 1 where there is a token.
fn mask(lengths: &[usize]) -> Tensor {
    let longest = lengths.iter().copied().max().unwrap();
    let rows = lengths.iter().flat_map(|n| (0..longest).map(|i| f64::from(u8::from(i < *n))).collect::<Vec<_>>());
    Tensor::from_vec(rows.collect(), (lengths.len(), longest), device()).unwrap()
}

/// The mean over all tokens of (w x)², and the number of tokens as f64.
fn mean_of_tokens(w: &Var, x: &Tensor, mask: &Tensor) -> Result<(Tensor, f64)> {
    let count = mask.sum_all()?;
    let sum = (x.broadcast_mul(w)?.sqr()? * mask)?.sum_all()?;
    Ok(((sum / &count)?, values(&count)[0]))
}

fn sum_of_tokens(w: &Var, x: &Tensor, mask: &Tensor) -> Result<(Tensor, f64)> {
    let (mean, count) = mean_of_tokens(w, x, mask)?;
    Ok(((mean * count)?, count))
}

struct Setting {
    w: Var,
    x: Tensor,
    mask: Tensor,
    lengths: Vec<usize>,
}

fn setting() -> Setting {
    let lengths = vec![5, 1, 2, 2, 4, 3, 5];
    let mask = mask(&lengths);
    let w = Var::new(&[1f64, -2., 0.5, 3., 1.5], device()).unwrap();
    Setting { w, x: sam_tests::tensor(&[7, 5], DType::F64, 3), mask, lengths }
}

/// Says how the parts are added up.
type Weigh<'a> = dyn Fn(BatchSelection<'_>) -> Result<BatchSelection<'_>> + 'a;

type Loss = fn(&Var, &Tensor, &Tensor) -> Result<(Tensor, f64)>;

fn close(found: &[f64], expected: &[f64]) {
    assert_close(found, expected, 1e-13);
}

/// One ε̂: the step of the whole batch at once, with its value, its auxiliary average and its gradient.
#[test]
fn parts() {
    let Setting { w, x, mask, lengths } = setting();
    let sam = Sam::new(0.3);
    let whole = |loss: Loss| sam.loss(|| loss(&w, &x, &mask)).unwrap();
    for m in [1, 2, 3, 4, 6, 7, 9] {
        let run = |loss: Loss, weigh: &Weigh<'_>| {
            let parts = sam.micro_batches(m).unwrap().split(&x).unwrap();
            let parts = weigh(parts).unwrap().split(&mask).unwrap();
            let mut body = |_| loss(&w, &parts.of(&x)?, &parts.of(&mask)?);
            let stages = parts.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
            stages.restore::<candle_core::Error>().unwrap()
        };
        let of = |(loss, count): &(Tensor, f64)| {
            [gradient(loss, std::slice::from_ref(&w)).concat(), values(loss), vec![*count]].concat()
        };
        let sums = of(&run(sum_of_tokens, &|parts| Ok(parts.sum())));
        close(&sums, &of(&whole(sum_of_tokens)));

        let tensor = Tensor::new(lengths.iter().map(|n| *n as u32).collect::<Vec<_>>(), device()).unwrap();
        let expected = of(&whole(mean_of_tokens));
        let last = expected.len() - 1;
        let ways: [&Weigh<'_>; 3] =
            [&|parts| parts.weights(&lengths), &|parts| parts.sum().weights(&tensor), &|parts| {
                parts.weights(&lengths.iter().map(|n| 1e300 * *n as f64).collect::<Vec<_>>())
            }];
        for weigh in ways {
            let found = of(&run(mean_of_tokens, weigh));
            close(&found[..last], &expected[..last]);
        }
    }
}

fn in_shards(
    sam: &Sam,
    Setting { w, x, mask, .. }: &Setting,
    loss: Loss,
    mut shards: Shards<(Tensor, f64)>,
) -> (Vec<f64>, f64, f64) {
    while let Some(shard) = shards.next_shard() {
        let (x, mask) = (shard.of(x).unwrap(), shard.of(mask).unwrap());
        let mut body = |_| loss(w, &x, &mask);
        let step = sam.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
        step.restore_into(&mut shards).unwrap();
    }
    let (loss, aux) = shards.loss::<candle_core::Error>().unwrap();
    (gradient(&loss, std::slice::from_ref(w)).concat(), values(&loss)[0], aux)
}

/// One ε̂ for each shard: Σ of the shards' own steps, each with its share.
#[test]
fn shards() {
    let setting = setting();
    let Setting { w, x, mask, lengths } = &setting;
    let sam = Sam::new(0.3);
    // 3 + 4, since one sample would remain: 8 and 14 of 22 tokens
    let ranges = [(0, 3), (3, 4)];
    let shares = [8. / 22., 14. / 22.];
    for (loss, shares, by_tokens) in [(sum_of_tokens as Loss, [1., 1.], false), (mean_of_tokens, shares, true)] {
        let mut expected = (vec![0.; 5], 0., 0.);
        for ((start, len), share) in ranges.into_iter().zip(shares) {
            let (x, mask) = (x.narrow(0, start, len).unwrap(), mask.narrow(0, start, len).unwrap());
            let (loss, count) = sam.loss(|| loss(w, &x, &mask)).unwrap();
            expected.0 = add(&expected.0, &times(share, &gradient(&loss, std::slice::from_ref(w)).concat()));
            expected.1 += share * values(&loss)[0];
            expected.2 += share * count;
        }
        let shards = sam.shards(3).unwrap().split(x).unwrap();
        let shards = if by_tokens { shards.weights(lengths).unwrap() } else { shards.sum() };
        let found = in_shards(&sam, &setting, loss, shards.split(mask).unwrap());
        close(&found.0, &expected.0);
        close(&[found.1, found.2], &[expected.1, expected.2]);
        // The value is that of the whole batch.
        close(&[found.1], &values(&loss(w, x, mask).unwrap().0));
    }
}

/// Samples without a token are put where there are some: their own mean would be 0 / 0.
#[test]
fn examples_that_weigh_nothing() {
    let lengths = vec![0, 0, 3, 2, 0, 0, 0, 4, 1, 0, 0];
    let (w, x) = (Var::new(&[1f64, -2., 0.5, 3.], device()).unwrap(), sam_tests::tensor(&[11, 4], DType::F64, 5));
    let setting = Setting { w, x, mask: mask(&lengths), lengths };
    let Setting { w, x, mask, lengths } = &setting;
    let sam = Sam::new(0.3);
    let expected = values(&mean_of_tokens(w, x, mask).unwrap().0);
    for m in 1..12 {
        let shards = sam.shards(m).unwrap().split(x).unwrap().weights(lengths).unwrap();
        let (_, loss, _) = in_shards(&sam, &setting, mean_of_tokens, shards);
        close(&[loss], &expected);
        let parts = sam.micro_batches(m).unwrap().weights(lengths).unwrap().split(x).unwrap();
        let mut body = |_| Ok::<_, candle_core::Error>(mean_of_tokens(w, &parts.of(x)?, &parts.of(mask)?)?.0);
        let stages = parts.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
        let loss: Tensor = stages.restore::<candle_core::Error>().unwrap();
        close(&values(&loss), &expected);
        let whole = sam.loss(|| Ok::<_, candle_core::Error>(mean_of_tokens(w, x, mask)?.0)).unwrap();
        let vars = std::slice::from_ref(w);
        close(&gradient(&loss, vars).concat(), &gradient(&whole, vars).concat());
    }
}

/// Every type that holds weights.
#[test]
fn types() {
    let all = |weights: &dyn Fn() -> Result<Vec<f64>>| assert_eq!(weights().unwrap(), [3., 0., 2.]);
    all(&|| vec![3usize, 0, 2].to_weights());
    all(&|| [3f32, 0., 2.].to_weights());
    all(&|| [3u32, 0, 2].as_slice().to_weights());
    all(&|| vec![3f64, 0., 2.].to_weights());
    for dtype in [DType::U8, DType::U32, DType::I64, DType::BF16, DType::F16, DType::F32, DType::F64] {
        all(&|| Tensor::new(&[3f64, 0., 2.], device())?.to_dtype(dtype)?.to_weights());
    }
    // Strided, and of a graph.
    let column = Var::new(&[[3f64, 1.], [0., 1.], [2., 1.]], device()).unwrap();
    all(&|| column.narrow(1, 0, 1)?.squeeze(1)?.to_weights());
}

#[test]
fn weights_that_are_refused() {
    let Setting { x, .. } = setting();
    let sam = Sam::new(0.3);
    let parts = || sam.micro_batches(2).unwrap();
    let shards = || sam.shards::<Tensor>(2).unwrap();
    let one = vec![1.; 7];
    let bad = |i: usize, weight: f64| {
        let mut weights = one.clone();
        weights[i] = weight;
        weights
    };
    for (weights, what) in [
        (bad(3, f64::NAN), "`weights` is NaN"),
        (bad(6, -1.), "`weights` is -1"),
        (bad(0, f64::INFINITY), "`weights` is inf"),
        (vec![0.; 7], "above 0"),
        (vec![1.; 6], "found 7 and 6"),
        (vec![], "`weights`"),
    ] {
        for error in [
            parts().split(&x).unwrap().weights(&weights).unwrap_err(),
            shards().split(&x).unwrap().weights(&weights).unwrap_err(),
        ] {
            assert!(error.to_string().contains(what), "{error}, expected {what}");
        }
    }
    // in the other order
    assert!(parts().weights(&[1., 2.]).unwrap().split(&x).unwrap_err().to_string().contains("found 2 and 7"));
    assert!(shards().weights(&[1., 2.]).unwrap().split(&x).unwrap_err().to_string().contains("found 2 and 7"));
    assert!(parts().weights(&x).unwrap_err().to_string().contains("[7, 5]"));

    for (examples, what) in [
        (sam.hardest(2).unwrap().split(&x).unwrap().sum(), "`sum`"),
        (sam.sharpest(2).unwrap().weights(&one).unwrap(), "`weights`"),
    ] {
        let error = examples.ascend(&mut |_| examples.of(&x)?.sum(1)).map(|_: sam_runtime::Ascent<'_, Tensor>| ());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("`hardest`"), "{error}");
    }
}

/// Zero samples: each says which number is 0, and what of.
#[test]
fn sizes_of_zero() {
    let sam = Sam::new(0.3);
    for (error, parts) in [
        (sam.hardest(0).unwrap_err(), ["`k` is 0", "choose"]),
        (sam.sharpest(0).unwrap_err(), ["`k` is 0", "choose"]),
        (sam.micro_batches(0).unwrap_err(), ["`m` is 0", "part"]),
        (sam.shards::<Tensor>(0).unwrap_err(), ["`m` is 0", "shard"]),
    ] {
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// Batches and labels that are views, as people hand them over, give the steps of their copies.
#[test]
fn strided_batches() {
    if sam_tests::is_for_the_cpu("candle multiplies contiguous matrices only on CUDA") {
        return;
    }
    let Step { x, y, .. } = Step::new(0);
    let strided = Tensor::cat(&[&x, &x], 1).unwrap().narrow(1, 6, 6).unwrap();
    let column = Tensor::stack(&[&y, &y], 1).unwrap();
    let labels = column.narrow(1, 1, 1).unwrap().squeeze(1).unwrap();
    let transposed = x.t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(!strided.is_contiguous() && !labels.is_contiguous() && !transposed.is_contiguous());
    let sam = Sam::new(0.3);
    let net = net();
    let run = |choose: &dyn Fn(&Sam) -> Result<BatchSelection<'_>>, per_example: bool, x: &Tensor, y: &Tensor| {
        let examples = choose(&sam).unwrap().split(x).unwrap().split(y).unwrap();
        let mut body = |_| {
            let losses = losses(&net, &examples.of(x)?, &examples.of(y)?.contiguous()?)?;
            if per_example { Ok(losses) } else { losses.mean_all() }
        };
        let stages = examples.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
        gradient(&stages.restore::<candle_core::Error>().unwrap(), &net.vars)
    };
    for x_view in [&strided, &transposed] {
        let alike = |choose: &dyn Fn(&Sam) -> Result<BatchSelection<'_>>, per_example| {
            let found = run(choose, per_example, x_view, &labels).concat();
            assert_close(&found, &run(choose, per_example, &x, &y).concat(), 1e-12);
        };
        alike(&|sam| sam.hardest(4), true);
        alike(&|sam| sam.sharpest(6), true);
        alike(&|sam| sam.micro_batches(5), false);
    }
    assert!(strided.narrow_rows(2, 3).unwrap().is_contiguous());
}

/// With everything in scope, candle's and the standard library's methods are what they were.
#[test]
fn no_name_is_taken() {
    #[allow(unused_imports, reason = "that is the test")]
    use sam_runtime::*;
    let x = Tensor::zeros((3, 2), DType::F32, device()).unwrap();
    assert_eq!(x.narrow(1, 0, 1).unwrap().dims(), [3, 1]);
    assert_eq!(x.sum(0).unwrap().dims(), [2]);
    assert_eq!([1, 2, 3].iter().sum::<i32>(), 6);
}

/// As in the paper: the ε̂ of a step over parts is that of the whole batch.
#[test]
fn parts_of_a_mean_over_examples() {
    let Step { x, y, .. } = Step::new(0);
    let (net, sam) = (net(), Sam::new(0.3));
    let w = weights(&net);
    let step = Step::new(0);
    let expected = step.g(&add(&w, &along(0.3, &step.g(&w))));
    let equal = vec![1usize; 12];
    let parts = sam.micro_batches(5).unwrap().split(&x).unwrap().split(&y).unwrap().weights(&equal).unwrap();
    let mut body = |_| net.loss(&parts.of(&x)?, &parts.of(&y)?);
    let stages = parts.ascend(&mut body).unwrap().perturb().unwrap().descend(&mut body).unwrap();
    let loss: Tensor = stages.restore::<candle_core::Error>().unwrap();
    assert_close(&gradient(&loss, &net.vars).concat(), &expected, 1e-11);
}
