//! A step that fails leaves the state of layers as it was.

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use sam_runtime::variants::{Direction, named};
use sam_runtime::{Pass, Sam, nn, sam};
use sam_tests::tensor;

use super::{numbers, refused};

fn norm() -> (nn::BatchNorm, VarMap) {
    let vars = VarMap::new();
    let norm = nn::batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu)).unwrap();
    (norm, vars)
}

fn statistics(norm: &nn::BatchNorm) -> [Vec<f64>; 2] {
    [numbers(norm.running_mean()), numbers(norm.running_var())]
}

#[sam(shards(x; m = 4))]
fn in_shards(norm: &nn::BatchNorm, x: &Tensor) -> Result<Tensor> {
    norm.forward_t(x, true)?.sqr()?.mean_all()? * x.min_all()?.to_scalar::<f64>()?
}

#[test]
fn running_statistics_go_back() {
    let (norm, _) = norm();
    let x = tensor(&[8, 3], DType::F64, 1);
    let before = statistics(&norm);
    let forward = || -> Result<Tensor> { norm.forward_t(&x, true)?.sqr()?.sum_all() };
    refused(Sam::new(0.1).loss(|| forward()? * f64::NAN), &["NaN"]);
    assert_eq!(statistics(&norm), before);
    refused(
        Sam::new(0.1).loss(|| {
            let loss = forward()?;
            if Pass::current() == Pass::Descent { Err(Error::msg("on purpose")) } else { Ok(loss) }
        }),
        &["on purpose"],
    );
    assert_eq!(statistics(&norm), before);
    let panics = std::panic::AssertUnwindSafe(|| {
        Sam::new(0.).loss(|| -> Result<Tensor> {
            forward()?;
            panic!("on purpose")
        })
    });
    std::panic::catch_unwind(panics).unwrap_err();
    assert_eq!(statistics(&norm), before);
    let nan = (&x * f64::NAN).unwrap();
    refused(Sam::new(0.1).loss(|| norm.forward_t(&nan, true)?.sqr()?.sum_all()), &["loss"]);
    assert_eq!(statistics(&norm), before);
    // A step that goes well moves them once.
    Sam::new(0.1).loss(forward).unwrap();
    let once = statistics(&norm);
    let (other, _) = self::norm();
    other.forward_t(&x, true).unwrap();
    assert_eq!(once, statistics(&other));
}

/// A later shard fails: what the earlier ones have moved is restored too.
#[test]
fn running_statistics_of_shards() {
    let (norm, _) = norm();
    let before = statistics(&norm);
    let good = tensor(&[8, 3], DType::F64, 1);
    let bad = Tensor::cat(&[good.narrow(0, 0, 4).unwrap(), (good.narrow(0, 4, 4).unwrap() * f64::NAN).unwrap()], 0);
    in_shards(&norm, &bad.unwrap()).unwrap_err();
    assert_eq!(statistics(&norm), before);
    in_shards(&norm, &good).unwrap();
    assert_ne!(statistics(&norm), before);
}

/// Stock layers, with `buffers`.
#[test]
fn listed_state_goes_back() {
    let vars = VarMap::new();
    let norm = candle_nn::batch_norm(3, 1e-5, VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu)).unwrap();
    let x = tensor(&[8, 3], DType::F64, 1);
    let statistics = || named(&vars, |name| name.starts_with("running"));
    let all = || vars.all_vars().iter().map(|var| numbers(var)).collect::<Vec<_>>();
    let before = all();
    refused(
        Sam::new(0.1).buffers(statistics()).loss(|| {
            let loss = norm.forward_t(&x, true)?.sqr()?.sum_all()?;
            if Pass::current() == Pass::Descent { Err(Error::msg("on purpose")) } else { Ok(loss) }
        }),
        &["on purpose"],
    );
    assert_eq!(all(), before);
    // Without a perturbation.
    refused(
        Sam::new(0.).buffers(statistics()).loss(|| norm.forward_t(&x, true)?.sqr()?.sum_all()? * f64::NAN),
        &["NaN"],
    );
    assert_eq!(all(), before);
    // Perturbed before its only pass.
    let affine: Vec<_> = vars.all_vars().into_iter().filter(|var| var.id() != norm.running_mean().id()).collect();
    let affine: Vec<_> = affine.into_iter().filter(|var| var.id() != norm.running_var().id()).collect();
    let sam = Sam::new(0.1).direction(Direction::Random).vars(affine);
    refused(sam.loss(|| norm.forward_t(&x, false)?.sqr()?.sum_all()? * f64::NAN), &["NaN"]);
    assert_eq!(all(), before);
}
