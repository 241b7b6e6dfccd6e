//! Tests of the networks.

use candle_core::{Device, Var};

use super::*;
use crate::models::layers::CandleNn;
use crate::models::params::{is_statistic, trained};

fn named(name: &str) -> Architecture {
    name.parse().unwrap()
}

/// The published counts where there are any, otherwise those of the layers' tables.
#[test]
fn parameter_counts() {
    let cnn = 9 * (3 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * 208 + 650;
    for (name, shape, classes, parameters) in [
        ("mlp", [1, 28, 28], 10, 784 * 128 + 128 + 1290),
        ("mlp-wide", [1, 28, 28], 10, 1_863_690),
        ("cnn", [3, 32, 32], 10, cnn),
        ("resnet20", [3, 32, 32], 10, 272_474),
        ("resnet32", [3, 32, 32], 10, 466_906),
        ("resnet56", [3, 32, 32], 10, 855_770),
        ("resnet18", [3, 32, 32], 10, 11_173_962),
        ("resnet18-w16", [3, 32, 32], 10, 701_466),
        ("wrn-16-4", [3, 32, 32], 10, 2_748_890),
        ("wrn-16-4-pad", [3, 32, 32], 10, 2_706_906),
        ("wrn-16-8", [3, 32, 32], 10, 10_961_370),
        ("wrn-16-8-pad", [3, 32, 32], 10, 10_795_482),
        ("wrn-40-2", [3, 32, 32], 10, 2_243_546),
        ("wrn-40-2-pad", [3, 32, 32], 10, 2_232_794),
        ("wrn-28-10", [3, 32, 32], 10, 36_479_194),
        ("wrn-28-10-pad", [3, 32, 32], 10, 36_220_634),
        ("wrn-28-10-pad", [3, 32, 32], 100, 36_278_324),
        ("shake-shake-26-2x32d", [3, 32, 32], 10, 2_923_162),
        ("shake-shake-26-2x96d", [3, 32, 32], 10, 26_192_922),
        ("pyramidnet-272-200", [3, 32, 32], 10, 26_210_842),
        ("pyramidnet-272-200-shakedrop", [3, 32, 32], 100, 26_288_692),
        ("mentormix-resnet32", [3, 32, 32], 10, 29_442_378),
        ("resnet50", [3, 224, 224], 1000, 25_557_032),
        ("resnet101", [3, 224, 224], 1000, 44_549_160),
        ("resnet152", [3, 224, 224], 1000, 60_192_808),
        ("vit-ti-16", [3, 224, 224], 1000, 5_717_416),
        ("vit-s-16", [3, 224, 224], 1000, 22_050_664),
        ("vit-s-32", [3, 224, 224], 1000, 22_878_952),
        ("vit-b-16", [3, 224, 224], 1000, 86_567_656),
        ("vit-b-32", [3, 224, 224], 1000, 88_224_232),
        ("mixer-s-16", [3, 224, 224], 1000, 18_528_264),
        ("mixer-s-32", [3, 224, 224], 1000, 19_104_624),
        ("mixer-b-16", [3, 224, 224], 1000, 59_880_472),
        ("mixer-b-32", [3, 224, 224], 1000, 60_293_428),
        ("mixer-tiny", [3, 32, 32], 10, 1_132_170),
        ("efficientnet-lite0", [3, 224, 224], 1000, 4_652_008),
        // Those of the programs that `bench` is compared with.
        ("vit-tiny", [3, 32, 32], 10, 5_362_762),
        ("gpt", [1, 1, 256], 256, 4_870_144),
        ("efficientnet-lite0", [3, 128, 128], 10, 3_383_818),
    ] {
        let model = Model::<SamRuntime>::unset(&DeviceConfig::CPU, named(name), shape, classes, 1).unwrap();
        assert_eq!(model.parameters(), parameters, "{name}");
    }
    // Without its normalizations, whose scales and shifts are two numbers a channel.
    let norms: usize = 16 + 160 * 11 + 160 + 320 * 11 + 320 + 640 * 11 + 640;
    let plain = Model::<SamRuntime>::unset(&DeviceConfig::CPU, named("wrn-40-10-plain"), [3, 32, 32], 10, 1).unwrap();
    assert_eq!(plain.parameters(), 55_583_194 - 2 * norms);
}

/// The narrowest of every family on the smallest images: a result or an error, never a panic.
#[test]
fn no_width_and_no_size_is_a_panic() {
    let mut trained = 0;
    for family in [
        "mlp",
        "mlp-norm",
        "mlp-wide",
        "cnn",
        "resnet8",
        "resnet18",
        "wrn-10-1",
        "wrn-10-1-pad",
        "wrn-10-1-plain",
        "shake-shake-26-2x4d",
        "pyramidnet-11-4",
        "pyramidnet-11-4-shakedrop",
        "mentormix-resnet32",
        "resnet50",
        "vit-tiny",
        "vit-ti-16",
        "mixer-tiny",
        "mixer-s-16",
        "efficientnet-lite0",
    ] {
        let names = (1..=3).filter_map(|width| format!("{family}-w{width}").parse::<Architecture>().ok());
        for (architecture, side) in names.flat_map(|name| [1, 2, 3, 4, 5, 16].map(|side| (name, side))) {
            let step = || -> Result<()> {
                let model: Model = Model::new(architecture, [3, side, side], 2, 1)?;
                let x = Tensor::ones((2, 3, side, side), DType::F32, &Device::Cpu)?;
                let loss = model.cross_entropy(&x, &Tensor::new(&[0u32, 1], &Device::Cpu)?)?;
                nn::backward(&loss).map(drop)
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(step));
            let outcome = outcome.unwrap_or_else(|_| panic!("{architecture} panicked at {side} pixels"));
            trained += usize::from(outcome.is_ok());
        }
    }
    assert!(trained > 200, "{trained}");
}

/// Narrow ones of each kind: logits in training and in evaluation, and a gradient for every variable that is trained.
#[test]
fn every_network_runs_and_has_gradients() {
    for (name, side) in [
        ("mlp-w4", 8),
        ("mlp-norm-w4", 8),
        ("mlp-wide-w4", 8),
        ("cnn-w2", 8),
        ("resnet20-w2", 8),
        ("resnet18-w2", 8),
        ("wrn-10-0.25", 8),
        ("wrn-16-1-pad", 8),
        ("wrn-16-1-plain", 8),
        ("shake-shake-26-2x4d", 8),
        ("pyramidnet-11-6", 8),
        ("pyramidnet-11-6-shakedrop", 8),
        ("mentormix-resnet32-w2", 8),
        ("resnet50-w4", 32),
        ("vit-tiny-w6", 8),
        ("vit-s-16-w6", 32),
        ("mixer-tiny-w4", 8),
        ("mixer-b-32-w4", 64),
        ("efficientnet-lite0-w2", 64),
    ] {
        let init = if name.starts_with("resnet50") { Init::ImageNet } else { Init::Authors };
        let model =
            Model::<SamRuntime>::with_init(&DeviceConfig::CPU, named(name), [3, side, side], 10, init, 1).unwrap();
        let pixels: Vec<f32> = (0..6 * 3 * side * side).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let x = Tensor::from_vec(pixels, (6, 3, side, side), &Device::Cpu).unwrap();
        assert_eq!(model.forward(&x, false).unwrap().dims(), [6, 10], "{name}");
        let y = Tensor::new(&[1u32, 3, 5, 7, 9, 0], &Device::Cpu).unwrap();
        let loss = model.cross_entropy(&x, &y).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_finite(), "{name}");
        let gradient = loss.backward().unwrap();
        for (variable, var) in model.vars().data().lock().unwrap().iter() {
            assert_eq!(gradient.get(var).is_some(), !is_statistic(variable), "{name}: {variable}");
        }
    }
}

fn text(n: usize, length: usize, step: usize) -> Tensor {
    let tokens = (0..n * length).map(|i| (i * step % 61) as u32).collect();
    Tensor::from_vec(tokens, (n, length), &Device::Cpu).unwrap()
}

#[test]
fn a_language_model_predicts_each_token_from_those_before() {
    let model: Model = Model::new(named("gpt-w16"), [1, 1, 12], 61, 1).unwrap();
    let (x, y) = (text(3, 12, 7), text(3, 12, 11));
    let logits = model.forward(&x, false).unwrap();
    assert_eq!(logits.dims(), [36, 61]);
    // The seventh token of the second text, and shorter texts.
    let mut tokens = x.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    tokens[18] = 60;
    let other = model.forward(&Tensor::from_vec(tokens, (3, 12), &Device::Cpu).unwrap(), false).unwrap();
    let short = model.forward(&x.narrow(1, 0, 5).unwrap().contiguous().unwrap(), false).unwrap();
    let rows = |logits: &Tensor| logits.to_vec2::<f32>().unwrap();
    let (logits, other, short) = (rows(&logits), rows(&other), rows(&short));
    assert!((0..18).chain(24..36).all(|i| logits[i] == other[i]) && (18..24).all(|i| logits[i] != other[i]));
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!((0..5).all(|i| close(&short[i], &logits[i]) && close(&short[5 + i], &logits[12 + i])));
    let gradient = model.cross_entropy(&x, &y).unwrap().backward().unwrap();
    for (variable, var) in model.vars().data().lock().unwrap().iter() {
        assert!(gradient.get(var).is_some(), "{variable}");
    }
    // Equally likely at first.
    let loss = model.cross_entropy(&x, &y).unwrap().to_scalar::<f32>().unwrap();
    assert!((loss - 61f32.ln()).abs() < 0.2, "{loss}");
    for wrong in [x.to_dtype(DType::F32).unwrap(), text(2, 13, 1), x.flatten_all().unwrap()] {
        let error = model.forward(&wrong, false).unwrap_err().to_string();
        assert!(error.contains("tokens (n, "), "{error}");
    }
}

/// A few steps on one batch, for each family of networks.
#[test]
fn a_step_lowers_the_loss() {
    for (name, shape, classes) in [
        ("vit-tiny-w12", [3, 8, 8], 4),
        ("mixer-tiny-w8", [3, 8, 8], 4),
        ("efficientnet-lite0-w8", [3, 128, 128], 4),
        ("gpt-w16", [1, 1, 8], 61),
    ] {
        let model: Model = Model::with_init(&DeviceConfig::CPU, named(name), shape, classes, Init::Authors, 3).unwrap();
        let (x, y) = if shape[0] == 1 {
            (text(4, 8, 7), text(4, 8, 13))
        } else {
            let count = 4 * shape.iter().product::<usize>();
            let pixels: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
            let labels = Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu).unwrap();
            (Tensor::from_vec(pixels, (4, shape[0], shape[1], shape[2]), &Device::Cpu).unwrap(), labels)
        };
        let loss = || sam_runtime::Sam::new(1e-4).loss(|| model.cross_entropy(&x, &y)).unwrap();
        let before = loss();
        let gradient = nn::backward(&before).unwrap();
        // A step of one length: EfficientNet's gradient is some hundred times as long as the others'.
        let square = |(_, var): (_, Var)| gradient.get(&var).unwrap().sqr().unwrap().sum_all().unwrap();
        let squares = trained(model.vars()).into_iter().map(|named| square(named).to_scalar::<f32>().unwrap());
        let factor = 1e-4 / f64::from(squares.sum::<f32>().sqrt());
        for (_, var) in trained(model.vars()) {
            var.set(&(var.as_tensor() - (gradient.get(&var).unwrap() * factor).unwrap()).unwrap()).unwrap();
        }
        let [before, after] = [before, loss()].map(|loss| loss.to_scalar::<f32>().unwrap());
        assert!(after < before, "{name}: {before} {after}");
    }
}

/// Dropout and stochastic depth apply in training only, and a stream that is set back repeats them.
#[test]
fn noise_belongs_to_training() {
    for rates in [[0.3, 0.0], [0.0, 0.6]] {
        let model: Model = Model::new(named("vit-tiny-w12"), [3, 8, 8], 4, 3).unwrap();
        let x = Tensor::ones((4, 3, 8, 8), DType::F32, &Device::Cpu).unwrap();
        let plain = model.forward(&x, true).unwrap().to_vec2::<f32>().unwrap();
        let model = model.regularized(rates[0], rates[1]);
        let logits = |train| model.forward(&x, train).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(logits(false), plain);
        model.draws().set_position(0);
        let noisy = logits(true);
        assert_ne!(noisy, plain);
        assert_ne!(noisy[0], noisy[1], "each example has noise of its own");
        assert_ne!(logits(true), noisy);
        model.draws().set_position(0);
        assert_eq!(logits(true), noisy);
    }
}

/// A network without normalization begins as a linear function of what its stem sees: no block adds anything.
#[test]
fn fixup_blocks_begin_as_the_identity() {
    let model =
        Model::<SamRuntime>::with_init(&DeviceConfig::CPU, named("wrn-16-1-plain"), [3, 8, 8], 10, Init::Authors, 1)
            .unwrap();
    let vars = model.vars().data().lock().unwrap();
    let zero = vars.iter().filter(|(name, _)| name.ends_with("second.conv.weight"));
    assert_eq!(zero.clone().count(), 6);
    for (_, var) in zero {
        assert_eq!(var.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}

#[test]
fn the_same_seed_gives_the_same_weights() {
    let logits = |seed| {
        let model = Model::<SamRuntime>::new(named("cnn"), [1, 8, 8], 4, seed).unwrap();
        let x = Tensor::ones((1, 1, 8, 8), DType::F32, &Device::Cpu).unwrap();
        model.forward(&x, false).unwrap().to_vec2::<f32>().unwrap()
    };
    assert_eq!(logits(3), logits(3));
    assert_ne!(logits(3), logits(4));
}

/// Both layer sets compute the same function of the same weights, and have the same gradients.
#[test]
fn the_kits_agree() {
    for name in ["cnn", "resnet20", "vit-tiny-w12", "mixer-tiny-w8", "efficientnet-lite0-w4", "gpt-w16"] {
        let architecture = named(name);
        // EfficientNet divides the side by 32, and a batch normalization of very few values magnifies rounding.
        let side = if name.starts_with("efficientnet") { 128 } else { 16 };
        let shape = if architecture.is_for_text() { [1, 1, 16] } else { [3, side, side] };
        let (ours, stock) = (
            Model::<SamRuntime>::new(architecture, shape, 61, 1).unwrap(),
            Model::<CandleNn>::new(architecture, shape, 61, 1).unwrap(),
        );
        let pixels: Vec<f32> = (0..4 * 3 * side * side).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let (x, y) = if architecture.is_for_text() {
            (text(4, 16, 7), text(4, 16, 11))
        } else {
            let x = Tensor::from_vec(pixels, (4, 3, side, side), &Device::Cpu).unwrap();
            (x, Tensor::new(&[1u32, 3, 5, 7], &Device::Cpu).unwrap())
        };
        let losses = [ours.cross_entropy(&x, &y).unwrap(), stock.cross_entropy(&x, &y).unwrap()];
        let [a, b] = losses.each_ref().map(|loss| loss.to_scalar::<f32>().unwrap());
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
        let [a, b] = losses.map(|loss| loss.backward().unwrap());
        let (ours, stock) = (ours.vars().data().lock().unwrap(), stock.vars().data().lock().unwrap());
        for (name, var) in ours.iter().filter(|(name, _)| !name.contains("running")) {
            let (a, b) = (a.get(var).unwrap(), b.get(&stock[name]).unwrap());
            let off = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let size = b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            // Rounding moves activations of EfficientNet across the kinks of ReLU6, of which it has 33 in a row.
            let tolerance = if architecture.to_string().starts_with("efficientnet") { 1e-2 } else { 1e-4 };
            assert!(off <= tolerance * size + 1e-9, "{architecture:?} {name}: {off} of {size}");
        }
    }
}
