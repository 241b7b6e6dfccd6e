//! A part of the graph that was begun outside of the loss function.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use sam_runtime::variants::{Combination, Direction};
use sam_runtime::{Sam, nn, plain, sam};

use super::{close, gradient, numbers, refused, var};

const WORDS: [&str; 2] = ["inside the loss function", "detach()"];

#[sam(rho = 0.1)]
fn of_outputs(outputs: &Tensor) -> Result<Tensor> {
    outputs.sqr()?.sum_all()
}

#[test]
fn a_forward_pass_outside() {
    let w = var(&[0.5]);
    let y = w.exp().unwrap();
    refused(Sam::new(0.1).loss(|| y.sum_all()), &["[1]", WORDS[0], WORDS[1]]);
    refused(of_outputs(&y), &WORDS);
    assert_eq!(numbers(&w), [0.5]);
    // A weight that was derived once.
    let derived = (w.as_tensor() * 2.).unwrap();
    refused(Sam::new(0.1).loss(|| (w.as_tensor() * &derived)?.sum_all()), &WORDS);
    // Plainly the gradient is right: nothing moves.
    close(&gradient(&plain(|| of_outputs(&w.exp()?)).unwrap(), &w), &[2. * 1f64.exp()]);
    close(&gradient(&plain(|| of_outputs(&y)).unwrap(), &w), &[2. * 1f64.exp()]);
    // The way out.
    let inside = Sam::new(0.1).loss(|| w.exp()?.sum_all()).unwrap();
    close(&gradient(&inside, &w), &[0.6f64.exp()]);
}

/// Through our own layers, which keep a graph of their own.
#[test]
fn a_backbone_of_layers_outside() {
    let (v, w) = (var(&[1., -2.]), var(&[3., 4.]));
    let features = nn::relu(&nn::add(&v, &w).unwrap()).unwrap();
    refused(Sam::new(0.1).loss(|| nn::add(&features, &v)?.sqr()?.sum_all()), &WORDS);
    refused(Sam::new(0.1).loss(|| features.sum_all()), &["[2]", WORDS[0]]);
    let detached = features.detach();
    let loss = Sam::new(0.1).loss(|| nn::add(&detached, &v)?.sqr()?.sum_all()).unwrap();
    // v + features = (5, 0), ε̂ = (0.1, 0)
    close(&gradient(&loss, &v), &[10.2, 0.]);
}

/// What is kept from the first pass to the second, and from step to step.
#[test]
fn a_state_that_hangs_on_a_variable() {
    let w = var(&[0.5]);
    let mut cache: Option<Tensor> = None;
    let mut keeping = |detach: bool| {
        Sam::new(0.1).loss(|| -> Result<Tensor> {
            let now = w.sqr()?;
            let sum = match &cache {
                Some(before) => (before + &now)?,
                None => now.clone(),
            };
            cache = Some(if detach { now.detach() } else { now });
            sum.sum_all()
        })
    };
    refused(keeping(false), &WORDS);
    keeping(true).unwrap_err();
    let w2 = var(&[0.5]);
    let mut hidden = Tensor::zeros(1, w2.dtype(), w2.device()).unwrap();
    for _ in 0..3 {
        let loss = Sam::new(0.1).loss(|| -> Result<(Tensor, Tensor)> {
            let next = ((&hidden * 0.5)? + w2.as_tensor())?;
            Ok((next.sqr()?.sum_all()?, next))
        });
        // An auxiliary value has left its graph behind.
        hidden = loss.unwrap().1;
    }
}

/// In a single pass there is no other one to compare with.
#[test]
fn directions_of_a_single_pass() {
    let w = var(&[0.5]);
    let sam = Sam::random_direction(0.1, [w.clone()]);
    let y = w.exp().unwrap();
    refused(sam.loss(|| y.sum_all()), &WORDS);
    let stale = Sam::new(0.1).direction(Direction::PreviousGradient);
    stale.loss(|| w.exp()?.sum_all()).unwrap();
    refused(stale.loss(|| y.sum_all()), &WORDS);
    assert_eq!(numbers(&w), [0.5]);
}

/// Views of variables, tensors without variables, and losses with a gradient of their own may be older.
#[test]
fn what_may_be_made_before() -> Result<()> {
    let w = var(&[1., 2., 3., 4.]);
    let (square, part) = (w.reshape((2, 2))?.t()?, w.narrow(0, 1, 2)?);
    let (half, constant) = ((&square.detach() * 0.5)?, Tensor::ones((2, 2), w.dtype(), w.device())?);
    for combination in [Combination::PerturbedGradient, Combination::Gsam { alpha: 0.3 }, Combination::SecondOrder] {
        let loss = || {
            let sum = ((square.sqr()? + &half)? * &constant)?.sum_all()?;
            sum + part.exp()?.sum_all()?
        };
        let sam = Sam::new(0.1).combination(combination);
        let (found, expected) = (
            sam.loss(loss)?,
            sam.loss(|| {
                let square = w.reshape((2, 2))?.t()?;
                let sum = ((square.sqr()? + &half)? * &constant)?.sum_all()?;
                sum + w.narrow(0, 1, 2)?.exp()?.sum_all()?
            })?,
        );
        assert_eq!(gradient(&found, &w), gradient(&expected, &w));
    }
    Ok(())
}

/// Of the 43 variables of a small BERT two got a gradient, without an error.
#[test]
fn a_listed_variable_without_a_gradient() -> Result<()> {
    let (v, w) = (var(&[1.]), var(&[2.]));
    let listed = |vars: &[&Var]| Sam::new(0.1).vars(vars.iter().map(|var| (*var).clone()).collect::<Vec<_>>());
    let cut = || -> Result<Tensor> { (v.sqr()?.detach() + w.sqr()?)?.sum_all() };
    refused(listed(&[&v, &w]).loss(cut), &["`vars`", "F64 [1]", "leave it out"]);
    listed(&[&w]).loss(cut).unwrap();
    // One that the first pass changes, too: it is a buffer.
    let counted = || {
        v.set(&(v.as_tensor() + 1.)?)?;
        w.sqr()?.sum_all()
    };
    refused(listed(&[&v, &w]).loss(counted), &["`vars`", "F64 [1]", "list it as `buffers`"]);
    v.set(&Tensor::new(&[1f64], &Device::Cpu)?)?;
    let loss = listed(&[&w]).buffers([v.clone()]).loss(counted);
    close(&gradient(&loss.unwrap(), &w), &[4.2]);
    assert_eq!(numbers(&v), [2.], "the second pass does not change it");
    // A buffer that gets a gradient is not perturbed, and keeps its gradient.
    let loss = Sam::new(0.1).buffers([v.clone()]).loss(|| (v.sqr()? + w.sqr()?)?.sum_all())?;
    close(&gradient(&loss, &v), &[4.]);
    close(&gradient(&loss, &w), &[4.2]);
    Ok(())
}

#[test]
fn the_diagnosis_names_what_a_loss_does_not_reach() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let (below, stock) = (candle_nn::linear(4, 4, vb.pp("below"))?, candle_nn::layer_norm(4, 1e-5, vb.pp("norm"))?);
    let ours = nn::layer_norm(4, 1e-5, vb.pp("norm"))?;
    let (head, elsewhere) = (candle_nn::linear(4, 2, vb.pp("head"))?, Var::new(1f32, &Device::Cpu)?);
    let x = Tensor::randn(0f32, 1., (3, 4), &Device::Cpu)?;
    let loss = |norm: &dyn Module| -> Result<Tensor> {
        head.forward(&norm.forward(&below.forward(&x)?)?)?.broadcast_mul(&elsewhere)?.sqr()?.mean_all()
    };
    let cut = Sam::diagnose(&vars, || loss(&stock))?;
    assert_eq!(cut.with_gradient, ["head.bias", "head.weight"]);
    assert_eq!(cut.without_gradient, ["below.bias", "below.weight", "norm.bias", "norm.weight"]);
    assert_eq!(cut.unknown, 1);
    let report = cut.to_string();
    assert!(report.starts_with("2 of 6 variables get a gradient, and 1 that the map does not have"), "{report}");
    assert!(report.ends_with("\n  norm.bias\n  norm.weight") && report.contains("sam_runtime::nn"), "{report}");
    // The perturbation of a sharpness-aware loss is left out, and ours reaches all.
    let whole = Sam::diagnose(&vars, || Sam::new(0.1).loss(|| loss(&ours)))?;
    assert_eq!((whole.with_gradient.len(), whole.without_gradient.len()), (6, 0));
    assert!(!whole.to_string().contains('\n'));
    let error = Sam::new(0.1).vars(vars.all_vars()).loss(|| loss(&stock)).unwrap_err().to_string();
    assert!(error.contains("Sam::diagnose") && error.contains("LayerNorm") && error.contains('`'), "{error}");
    assert!(Sam::diagnose(&vars, || loss(&ours)? * f64::NAN).is_err());
    Ok(())
}
