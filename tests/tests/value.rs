//! The value, and every auxiliary value, is bitwise that of the plain function at w.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor};
use sam_runtime::{Aux, Sam, plain, sam};
use sam_tests::{Net, batch, bits, gradient, values};

#[sam(rho = 0.3)]
fn loss(net: &Net, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    net.loss(x, y)
}

#[derive(Debug)]
struct Metrics {
    logits: Tensor,
    hits: usize,
}

impl Aux for Metrics {
    fn detached(self) -> Result<Self> {
        Ok(Self { logits: self.logits.detached()?, ..self })
    }
}

type Auxiliary = (Tensor, Option<f64>, Vec<Tensor>);

#[sam(rho = 0.3)]
fn loss_with_values(net: &Net, x: &Tensor, y: &Tensor) -> Result<(Tensor, Metrics, Auxiliary)> {
    let (loss, logits) = (net.loss(x, y)?, net.forward(x)?);
    let hits = logits.argmax(1)?.eq(y)?.sum_all()?.to_vec0::<u8>()?.into();
    let norm = values(&logits).iter().map(|x| x * x).sum::<f64>();
    let norm = Some(norm);
    Ok((loss, Metrics { logits: logits.clone(), hits }, (logits.sqr()?, norm, vec![logits.exp()?])))
}

type OfShards = (Tensor, Tensor, usize, f64, Option<Vec<u32>>);

#[sam(rho = 0.3, shards(x, y; m = 7))]
fn sharded(net: &Net, x: &Tensor, y: &Tensor) -> Result<OfShards> {
    let (loss, logits) = (net.loss(x, y)?, net.forward(x)?);
    let mean = values(&loss)[0];
    Ok((loss, logits, x.dim(0)?, mean, Some(y.to_vec1()?)))
}

#[test]
fn the_loss() {
    for dtype in [DType::F32, DType::F64] {
        for seed in 0..20 {
            let (net, (x, y)) = (Net::new(dtype, seed), batch(17, dtype, seed));
            let (sharp, flat) = (loss(&net, &x, &y).unwrap(), plain(|| loss(&net, &x, &y)).unwrap());
            assert_eq!(sharp.dtype(), dtype);
            assert_eq!(sharp.dims(), flat.dims());
            assert_eq!(bits(&sharp), bits(&flat));
            assert_eq!(bits(&flat), bits(&net.loss(&x, &y).unwrap()));
            assert_ne!(gradient(&sharp, &net.vars), gradient(&flat, &net.vars));
        }
    }
}

#[test]
fn auxiliary_values() {
    let (net, (x, y)) = (Net::new(DType::F32, 1), batch(17, DType::F32, 2));
    let (loss, metrics, (squares, norm, exps)) = loss_with_values(&net, &x, &y).unwrap();
    let (plain_loss, plain_metrics, (plain_squares, plain_norm, plain_exps)) =
        plain(|| loss_with_values(&net, &x, &y)).unwrap();
    assert_eq!(bits(&loss), bits(&plain_loss));
    assert_eq!(bits(&metrics.logits), bits(&plain_metrics.logits));
    assert_eq!(metrics.hits, plain_metrics.hits);
    assert_eq!(bits(&squares), bits(&plain_squares));
    assert_eq!(norm.map(f64::to_bits), plain_norm.map(f64::to_bits));
    assert_eq!(bits(&exps[0]), bits(&plain_exps[0]));
    for tensor in [&metrics.logits, &squares, &exps[0]] {
        assert!(!tensor.track_op(), "an auxiliary value has kept its graph");
    }
}

/// In shards: tensors joined, counts added, floats averaged over the samples.
#[test]
fn auxiliary_values_of_shards() {
    let (net, (x, y)) = (Net::new(DType::F64, 1), batch(17, DType::F64, 2));
    let (loss, logits, rows, mean, labels) = sharded(&net, &x, &y).unwrap();
    assert_eq!(logits.dims(), [17, 3]);
    let whole = values(&net.forward(&x).unwrap());
    assert!(values(&logits).iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-14));
    assert_eq!(rows, 17);
    assert_eq!(labels, Some(y.to_vec1::<u32>().unwrap()));
    let whole = values(&net.loss(&x, &y).unwrap())[0];
    assert!((mean - whole).abs() < 1e-14 && (values(&loss)[0] - whole).abs() < 1e-14);

    // A type of one's own has to say how.
    let sam = Sam::new(0.1);
    let mut shards = sam.shards(7).unwrap().split(&x).unwrap();
    let outcome = loop {
        let Some(shard) = shards.next_shard() else { break shards.loss::<candle_core::Error>() };
        let (x, y) = (shard.of(&x).unwrap(), shard.of(&y).unwrap());
        let mut loss = |_| -> Result<_> { Ok((net.loss(&x, &y)?, Metrics { logits: net.forward(&x)?, hits: 0 })) };
        let step = sam.ascend(&mut loss).unwrap().perturb().unwrap().descend(&mut loss).unwrap();
        step.restore_into(&mut shards).unwrap();
    };
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("Metrics") && error.contains("Aux::join_shards"), "{error}");
}

#[test]
fn the_loss_keeps_its_shape_and_type() {
    let net = Net::new(DType::F32, 1);
    let (x, y) = batch(5, DType::F32, 2);
    for dtype in [DType::F64, DType::BF16, DType::F16] {
        let cast = || -> Result<Tensor> { net.loss(&x, &y)?.to_dtype(dtype)?.reshape((1, 1)) };
        let (sharp, flat) = (Sam::new(0.1).loss(cast).unwrap(), cast().unwrap());
        assert_eq!((sharp.dtype(), sharp.dims()), (flat.dtype(), flat.dims()));
        assert_eq!(bits(&sharp), bits(&flat));
        assert_eq!(gradient(&sharp, &net.vars).len(), 4);
    }
}
