//! A run that was saved and loaded is bitwise the same as one that was not, and what is not its state is refused.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_tests::{Net, device, values};

use crate::promises::{Variant, all};
use crate::reference::*;

fn steps(range: std::ops::Range<u64>, net: &Net, sam: &Sam, sgd: &mut Sgd) {
    for number in range {
        let Step { x, y, .. } = Step::new(number);
        sgd.backward_step(&sam.loss(|| net.loss(&x, &y)).unwrap()).unwrap();
        sam.apply_decoupled(0.05).unwrap();
    }
}

#[test]
fn of_every_variant() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let params = ParamsSgd { lr: 0.05, ..Default::default() };
    for Variant { name, make, .. } in all() {
        let start = || {
            let net = net();
            let sgd = Sgd::new(net.vars.to_vec(), params).unwrap();
            let sam = if name == "m-sam" { Sam::momentum_sam(sgd.momentum_buffers()) } else { make(&net) };
            (net, sgd, sam)
        };
        let (whole, mut sgd, sam) = start();
        steps(0..9, &whole, &sam, &mut sgd);

        let (before, mut sgd, sam) = start();
        steps(0..4, &before, &sam, &mut sgd);
        let names = named(&before);
        names.save(file("w")).unwrap();
        sgd.save(&names, file("v")).unwrap();
        sam.save(&names, file("s")).unwrap();

        let (after, mut sgd, sam) = start();
        let mut names = named(&after);
        names.load(file("w")).unwrap();
        sgd.load(&names, file("v")).unwrap();
        sam.load(&names, file("s")).unwrap();
        steps(4..9, &after, &sam, &mut sgd);
        assert_eq!(after.bits(), whole.bits(), "{name}");
    }
}

#[test]
fn never_in_the_middle_of_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let net = net();
    let (sam, names) = (Sam::f_sam(), named(&net));
    let path = folder.path().join("state");
    let outcome = sam.loss(|| -> Result<Tensor> {
        sam.save(&names, &path)?;
        net.vars[0].sqr()?.sum_all()
    });
    assert!(outcome.unwrap_err().to_string().contains("between steps"));
    assert!(!path.exists());

    // Nor between its stages.
    let mut loss = |_| -> Result<Tensor> { net.vars[0].sqr()?.sum_all() };
    let stages = sam.ascend(&mut loss).unwrap().perturb().unwrap();
    assert!(sam.save(&names, &path).unwrap_err().to_string().contains("between steps"));
    assert!(sam.load(&names, &path).unwrap_err().to_string().contains("between steps"));
    drop(stages);
    sam.save(&names, &path).unwrap();
    let error = sam.clone().seed(4).load(&names, &path).unwrap_err().to_string();
    assert!(error.contains("seed 0, this one has 4"), "{error}");
    let halves = Net::new(DType::BF16, 5);
    sam.loss(|| net.vars[0].sqr()?.sum_all()).unwrap();
    sam.save(&names, &path).unwrap();
    let error = Sam::f_sam().load(&named(&halves), &path).unwrap_err().to_string();
    assert!(error.contains("F64, its variable BF16"), "{error}");
}

#[test]
fn what_is_no_state_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let net = net();
    let (sam, names) = (Sam::f_sam(), named(&net));
    let mut sgd = Sgd::new(net.vars.to_vec(), ParamsSgd::default()).unwrap();
    steps(0..3, &net, &sam, &mut sgd);
    sam.save(&names, file("good")).unwrap();
    let bytes = std::fs::read(file("good")).unwrap();

    std::fs::write(file("cut"), &bytes[..bytes.len() / 2]).unwrap();
    names.save(file("weights")).unwrap();
    let other = VarMap::new();
    other.data().lock().unwrap().insert("head.bias".into(), Var::zeros(2, DType::F64, device()).unwrap());
    let twin = sam.clone();
    for (names, name, what) in [
        (&names, "none", "none"),
        (&names, "cut", "cut"),
        (&names, "weights", "expected the state of a `Sam`"),
        (&other, "good", "the state of `h"),
    ] {
        let error = sam.load(names, file(name)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    assert!(sam.save(&VarMap::new(), file("good")).is_err());
    assert_eq!(std::fs::read(file("good")).unwrap(), bytes);

    // Both go on alike.
    let (x, y) = batch_of(8);
    let gradient = |sam: &Sam| sam_tests::gradient(&sam.loss(|| net.loss(&x, &y)).unwrap(), &net.vars);
    assert_eq!(gradient(&sam), gradient(&twin));
}

type Make = fn() -> Sam;

/// Every combination of pieces that remember something.
const REMEMBERING: [(&str, Make); 10] = [
    ("plain", || Sam::new(0.05)),
    ("f-sam", Sam::f_sam),
    ("vasso", Sam::vasso),
    ("look-sam", Sam::look_sam),
    ("stale", Sam::previous_gradient),
    ("wsam", Sam::wsam),
    ("ae-sam", || Sam::ae_sam(100)),
    ("sparse", || Sam::sparse_sam(10)),
    ("rst", Sam::rst),
    ("m-sam", || Sam::momentum_sam(Sgd::new(vec![], ParamsSgd::default()).unwrap().momentum_buffers())),
];

fn map(vars: &[(&str, &Var)]) -> VarMap {
    let map = VarMap::new();
    for (name, var) in vars {
        map.data().lock().unwrap().insert((*name).to_owned(), (*var).clone());
    }
    map
}

fn two_variables() -> (VarMap, [Var; 2]) {
    let vars = [Var::new(&[1f32, -2., 0.5], device()).unwrap(), Var::new(&[0.25f32, 3.], device()).unwrap()];
    (map(&[("a", &vars[0]), ("b", &vars[1])]), vars)
}

fn loss([a, b]: &[Var; 2]) -> Result<Tensor> {
    a.sqr()?.sum_all()? + (b.sqr()?.sqr()? * 0.5)?.sum_all()?
}

/// Type, shape and bytes of all tensors.
fn tensors_of(bytes: &[u8]) -> BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn saved(sam: &Sam, names: &VarMap) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    sam.save(names, folder.path().join("state")).unwrap();
    std::fs::read(folder.path().join("state")).unwrap()
}

#[test]
fn a_state_is_for_one_variant() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    for (from, make) in REMEMBERING {
        let (names, vars) = two_variables();
        let sam = make();
        for _ in 0..3 {
            sam.loss(|| loss(&vars)).unwrap();
            sam.apply_decoupled(0.0).unwrap();
        }
        sam.save(&names, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), saved(&sam, &names), "the same state gives the same file");
        for (into, make) in REMEMBERING {
            let sam = make();
            let before = saved(&sam, &names);
            match sam.load(&names, &path) {
                Ok(()) => {
                    assert_eq!(from, into);
                    assert_eq!(saved(&sam, &names), std::fs::read(&path).unwrap(), "{from}");
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(from != into && error.contains("state of another variant"), "{from} into {into}: {error}");
                    assert_eq!(saved(&sam, &names), before);
                }
            }
        }
        // Other constants of the same pieces.
        let other = make().seed(0).radius(sam_runtime::variants::Radius::Constant(0.7));
        other.load(&names, &path).unwrap();
    }

    // The words.
    let (names, vars) = two_variables();
    let sam = Sam::look_sam();
    sam.loss(|| loss(&vars)).unwrap();
    sam.save(&names, &path).unwrap();
    let error = Sam::previous_gradient().load(&names, &path).unwrap_err().to_string();
    assert!(
        error.contains("its direction is none that remembers anything, that of this `Sam` `PreviousGradient`"),
        "{error}"
    );
    let error = Sam::new(0.05).load(&names, &path).unwrap_err().to_string();
    assert!(error.contains("its combination is `LookSam`"), "{error}");
    let mut sgd = Sgd::new(vars.to_vec(), ParamsSgd::default()).unwrap();
    sgd.backward_step(&loss(&vars).unwrap()).unwrap();
    sgd.save(&names, &path).unwrap();
    let error = Sam::new(0.05).load(&names, &path).unwrap_err().to_string();
    assert!(
        error.contains("expected the state of a `Sam`, found a file of kind `sam-runtime sgd velocities`"),
        "{error}"
    );
}

/// From before files had labels; see `fixtures/README.md`.
#[test]
fn files_without_labels_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/unlabelled");
    let (names, _vars) = two_variables();
    for (name, make) in REMEMBERING.iter().take(8).copied().chain([("gsam", (|| Sam::gsam(0.0..=1.0)) as Make)]) {
        let path = folder.join(format!("{name}.safetensors"));
        let seed = if name == "f-sam" { 7 } else { 0 };
        let sam = make().seed(seed);
        sam.load(&names, &path).unwrap();
        let new = saved(&sam, &names);
        assert_eq!(tensors_of(&new), tensors_of(&std::fs::read(&path).unwrap()), "{name}");

        // A `Sam` that has no use for what is in them refuses them.
        if !["plain", "gsam"].contains(&name) {
            let error = Sam::new(0.05).seed(seed).load(&names, &path).unwrap_err().to_string();
            assert!(error.contains("it is of another variant"), "{error}");
        }
    }
}

/// A state file with or without labels for F-SAM.
fn write(path: &Path, labeled: bool, tensors: &[(&str, Tensor)]) {
    let labels = [("kind", "sam-runtime sam state"), ("version", "1"), ("direction", "Residual")];
    let labels: HashMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor.to_device(&Device::Cpu).unwrap()));
    std::fs::write(path, safetensors::serialize(tensors, labeled.then_some(labels)).unwrap()).unwrap();
}

#[test]
fn damaged_states_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (names, vars) = two_variables();
    let sam = Sam::f_sam();
    sam.loss(|| loss(&vars)).unwrap();
    let before = saved(&sam, &names);
    names.data().lock().unwrap().insert("c".to_owned(), vars[0].clone());

    let whole = |number: i64| Tensor::new(number, &Device::Cpu).unwrap();
    let of = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
    let good = || [("steps", whole(3)), ("seed", whole(0))];
    let more = |more: &[(&'static str, Tensor)]| [&good()[..], more].concat();
    let steps = |steps: Tensor| vec![("steps", steps), ("seed", whole(0))];
    let (a, b) = (of(&[1., 2., 3.]), of(&[1., 2.]));
    for labeled in [true, false] {
        write(&path, labeled, &more(&[("average.0.b", b.clone()), ("average.1.a", a.clone())]));
        Sam::f_sam().load(&names, &path).unwrap();
        for (tensors, words) in [
            (steps(whole(-1)), "`steps` is -1: expected a number of steps"),
            (steps(whole(i64::MIN)), "`steps` is -9223372036854775808"),
            (steps(whole(i64::MAX)), "`steps` is 9223372036854775807"),
            (steps(whole((1 << 53) + 1)), "`steps` is 9007199254740993"),
            (steps(of(&[3.])), "`steps` is F32 of shape [1]: expected one number of type I64"),
            (steps(whole(3).reshape((1, 1)).unwrap()), "`steps` is I64 of shape [1, 1]"),
            (vec![("steps", whole(3))], "there is no `seed`"),
            (vec![], "there is no `steps`"),
            (more(&[("rate", Tensor::new(f64::NAN, &Device::Cpu).unwrap())]), "`rate` is not finite"),
            (more(&[("rate", Tensor::new(0.5f32, &Device::Cpu).unwrap())]), "expected one number of type F64"),
            (
                more(&[("moments", Tensor::new(&[1f64, 1.], &Device::Cpu).unwrap())]),
                "`moments`, which this `Sam` does not",
            ),
            (more(&[("average.0.a", of(&[1., f32::NAN, 3.]))]), "`a` is not finite"),
            (more(&[("average.0.a", of(&[1., 3.]))]), "`a` has shape [2], its variable [3]"),
            (more(&[("average.0.a", a.to_dtype(DType::F64).unwrap())]), "`a` is F64, its variable F32"),
            (more(&[("average.0.a", a.to_dtype(DType::U8).unwrap())]), "`a` is U8, its variable F32"),
            (more(&[("average.0.x", a.clone())]), "`x` belongs to no variable"),
            (more(&[("average.0.a", a.clone()), ("average.0.b", b.clone())]), "two entries `average.0`"),
            (more(&[("average.0.a", a.clone()), ("average.00.b", b.clone())]), "two entries `average.0`"),
            (more(&[("average.0.a", a.clone()), ("average.2.b", b.clone())]), "entries of `average` are missing"),
            (more(&[("average.18446744073709551615.b", b.clone())]), "entries of `average` are missing"),
            (more(&[("average.0.a", a.clone()), ("average.1.c", a.clone())]), "two entries for `a` (F32 [3])"),
            (more(&[("average.18446744073709551616.a", a.clone())]), "found `average.18446744073709551616.a`"),
            (more(&[("average.-1.a", a.clone())]), "found `average.-1.a`"),
            (more(&[("average.a", a.clone())]), "found `average.a`"),
            (more(&[("a", a.clone())]), "found `a`"),
            (more(&[("mean.0.a", a.clone())]), "found `mean`"),
            (more(&[("kept.0.a", a.clone())]), "`kept`, which this `Sam` does not use"),
            (more(&[("mask.0.a", a.clone())]), "`mask`, which this `Sam` does not use"),
            (more(&[("remainder.0.a", a.clone())]), "`remainder`, which this `Sam` does not use"),
        ] {
            write(&path, labeled, &tensors);
            let error = sam.load(&names, &path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("file"), "{error}, expected {words}");
        }
    }
    // AE-SAM's moments.
    let sharp = Sam::ae_sam(100);
    for (moments, words) in [
        (vec![1., 2., 3.], "expected two numbers"),
        (vec![1., -1.], "expected a mean and a variance"),
        (vec![f64::NAN, 1.], "expected a mean and a variance"),
        (vec![1., f64::INFINITY], "expected a mean and a variance"),
    ] {
        write(&path, false, &more(&[("moments", Tensor::new(moments, &Device::Cpu).unwrap())]));
        let error = sharp.load(&names, &path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    names.data().lock().unwrap().remove("c");
    assert_eq!(saved(&sam, &names), before);
}

/// A few random changes of a file. `sam-runtime/fuzz` looks for worse ones.
fn mutated(file: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..file.len());
        match rng.random_range(0..5) {
            0 => file[at] ^= 1 << rng.random_range(0..8),
            1 => file[at] = rng.random(),
            // In the header: another digit, name or quotation mark.
            2 => file[at] = *b"0123456789-.\"abc{}[],:".choose(rng).unwrap(),
            3 => {
                let byte = file[at];
                file.insert(at, byte);
                // The header is that much longer, so that the file can still be read.
                file[0] = file[0].wrapping_add(1);
            }
            _ => file.truncate(at.max(1)),
        }
    }
    file
}

#[test]
fn damaged_files_change_nothing_or_are_states() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut outcomes = [0, 0];
    for (name, make) in REMEMBERING {
        let (names, vars) = two_variables();
        let (sam, mut sgd) = (make(), Sgd::new(vars.to_vec(), ParamsSgd::default()).unwrap());
        for _ in 0..2 {
            sgd.backward_step(&sam.loss(|| loss(&vars)).unwrap()).unwrap();
            sam.apply_decoupled(0.05).unwrap();
        }
        for subject in ["sam", "sgd"] {
            let save = |sgd: &Sgd| {
                if subject == "sam" { sam.save(&names, &path) } else { sgd.save(&names, &path) }.unwrap();
                std::fs::read(&path).unwrap()
            };
            let load = |sgd: &mut Sgd, file: &[u8]| {
                std::fs::write(&path, file).unwrap();
                if subject == "sam" { sam.load(&names, &path) } else { sgd.load(&names, &path) }
            };
            let file = save(&sgd);
            for _ in 0..25 {
                let outcome = load(&mut sgd, &mutated(&file, &mut rng));
                outcomes[usize::from(outcome.is_ok())] += 1;
                let after = save(&sgd);
                if outcome.is_err() {
                    assert!(after == file, "{name}: changed by {outcome:?}");
                    continue;
                }
                load(&mut sgd, &after).unwrap();
                assert!(save(&sgd) == after, "{name}");
                load(&mut sgd, &file).unwrap();
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 8), "{outcomes:?}");
}

/// A map has another order each time it is made.
#[test]
fn the_state_of_a_tied_variable_is_found_under_any_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let (_, vars) = two_variables();
    let sam = Sam::vasso();
    sam.loss(|| loss(&vars)).unwrap();
    for trial in 0..40 {
        sam.save(&map(&[("embedding", &vars[0]), ("head", &vars[0]), ("bias", &vars[1])]), &path).unwrap();
        let (_, loaded) = two_variables();
        let [a, b] = &loaded;
        let names = match trial % 3 {
            0 => map(&[("embedding", a), ("head", a), ("bias", b)]),
            1 => map(&[("head", a), ("bias", b), ("another", b)]),
            _ => map(&[("embedding", a), ("bias", b), ("a", a)]),
        };
        let twin = Sam::vasso();
        twin.load(&names, &path).unwrap();
        let gradient = |sam: &Sam, vars: &[Var; 2]| sam_tests::gradient(&sam.loss(|| loss(vars)).unwrap(), vars);
        assert_eq!(gradient(&twin, &loaded), gradient(&sam.clone(), &vars), "trial {trial}");
    }
    let (_, [a, b]) = two_variables();
    let c = Var::new(&[1f32, -2., 0.5], device()).unwrap();
    let untied = map(&[("embedding", &a), ("head", &c), ("bias", &b)]);
    let error = Sam::vasso().load(&untied, &path).unwrap_err().to_string();
    assert!(error.contains("`embedding` and `head` were one variable"), "{error}");
}

/// GSAM's radius follows the learning rate, which it has to know.
#[test]
fn a_radius_that_goes_with_the_rate_needs_one() {
    let (_, vars) = two_variables();
    let before = vars.clone().map(|var| values(&var));
    let sam = Sam::gsam(0.0..=1.0);
    for _ in 0..2 {
        let error = sam.loss(|| loss(&vars)).unwrap_err().to_string();
        assert!(error.contains("call `sam.set_learning_rate(opt.learning_rate())`"), "{error}");
        assert!(sam.last_stats().is_none());
    }
    assert_eq!(vars.clone().map(|var| values(&var)), before);
    // Without a perturbation it is not needed.
    sam_runtime::plain(|| sam.loss(|| loss(&vars))).unwrap();
    for (rate, fine) in [(f64::NAN, false), (f64::INFINITY, false), (0.5, true)] {
        sam.set_learning_rate(rate);
        assert_eq!(sam.loss(|| loss(&vars)).is_ok(), fine, "{rate}");
    }
}
