//! `optim::Sgd` is PyTorch's, in every type, on the disk and back.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_tests::{bits, copy, device, tensor, values};

fn loss(w: &Var) -> Result<Tensor> {
    let a = Tensor::new(&[0.5f64, 1.5, 3.0], w.device())?;
    (w.to_dtype(DType::F64)?.sin()? * a)?.sum_all()
}

/// Numbers of torch 2.15:
///
/// ```python
/// w = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)  # float64
/// a = torch.tensor([0.5, 1.5, 3.0])
/// opt = torch.optim.SGD([w], lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=wd)
/// for _ in range(5):
///     opt.zero_grad(); (a * w.sin()).sum().backward(); opt.step()
/// ```
#[test]
fn equals_pytorch() {
    for (momentum, nesterov, weight_decay, expected) in [
        (0.9, true, 5e-2, [0.385_111_294_648_844_6, -1.358_236_387_226_402_7, -2.297_390_479_796_556]),
        (0.9, false, 5e-2, [0.544_087_708_365_268, -1.343_028_171_835_733_3, -2.532_716_837_001_846_7]),
        (0.0, false, 5e-2, [0.828_096_135_711_826_4, -1.729_481_852_181_142_4, -0.875_093_576_300_84]),
        (0.0, false, 0.0, [0.853_420_594_520_605_6, -1.764_257_051_982_558_9, -0.877_184_521_401_674_1]),
    ] {
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 2e-6), (DType::F16, 1e-2), (DType::BF16, 6e-2)] {
            let w = Tensor::new(&[1f64, -2., 0.5], device()).unwrap().to_dtype(dtype).unwrap();
            let w = Var::from_tensor(&w).unwrap();
            let params = ParamsSgd { lr: 0.1, momentum, nesterov, weight_decay };
            let mut sgd = Sgd::new(vec![w.clone()], params).unwrap();
            for _ in 0..5 {
                sgd.backward_step(&loss(&w).unwrap()).unwrap();
            }
            for (found, expected) in values(&w).iter().zip(expected) {
                assert!((found - expected).abs() < tolerance, "{dtype:?}, {params:?}: {found} and {expected}");
            }
        }
    }
}

/// Long variables are shared out among threads; each element must still be its own.
#[test]
fn treats_every_element_alike() {
    let n = 100_003;
    let (w, g) = (copy(&tensor(&[n], DType::F32, 1)), tensor(&[n], DType::F32, 2));
    let before = values(&w);
    let mut sgd = Sgd::new(vec![w.clone()], ParamsSgd::default()).unwrap();
    for _ in 0..2 {
        sgd.backward_step(&(w.as_tensor() * &g).unwrap().sum_all().unwrap()).unwrap();
    }
    for ((w0, g), found) in before.iter().zip(values(&g)).zip(values(&w)) {
        let g1 = g + 5e-4 * w0;
        let w1 = w0 - 0.1 * (g1 + 0.9 * g1);
        let g2 = g + 5e-4 * w1;
        let expected = w1 - 0.1 * (g2 + 0.9 * (0.9 * g1 + g2));
        assert!((found - expected).abs() < 1e-6);
    }
}

#[test]
fn leaves_variables_without_a_gradient_alone() {
    let (w, idle) = (Var::new(&[1f32, -2., 0.5], device()).unwrap(), Var::new(&[3f32], device()).unwrap());
    let mut sgd = Sgd::new(vec![idle.clone(), w.clone()], ParamsSgd::default()).unwrap();
    sgd.backward_step(&loss(&w).unwrap()).unwrap();
    assert_eq!(values(&idle), [3.]);
    sgd.set_learning_rate(0.);
    assert_eq!(sgd.learning_rate(), 0.);
    let before = values(&w);
    sgd.backward_step(&loss(&w).unwrap()).unwrap();
    assert_eq!(values(&w), before);
}

fn two_layers(dtype: DType) -> (VarMap, Vec<Var>) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, dtype, device());
    let vars: Vec<Var> = ["a", "b"]
        .iter()
        .map(|name| Var::from_tensor(&vb.get_with_hints(3, name, candle_nn::Init::Const(0.5)).unwrap()).unwrap())
        .collect();
    (map, vars)
}

/// Half of a run, the disk, and the other half with new objects: bitwise the same as the whole.
#[test]
fn resumes_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let step = |sgd: &mut Sgd, vars: &[Var]| {
            sgd.backward_step(&(loss(&vars[0]).unwrap() - loss(&vars[1]).unwrap()).unwrap()).unwrap();
        };
        let (_map, whole) = two_layers(dtype);
        let mut sgd = Sgd::new(whole.clone(), ParamsSgd::default()).unwrap();
        (0..6).for_each(|_| step(&mut sgd, &whole));

        let (map, first) = two_layers(dtype);
        let mut sgd = Sgd::new(map.all_vars(), ParamsSgd::default()).unwrap();
        (0..3).for_each(|_| step(&mut sgd, &first));
        map.save(folder.path().join("weights.safetensors")).unwrap();
        sgd.save(&map, folder.path().join("sgd.safetensors")).unwrap();

        let (mut map, second) = two_layers(dtype);
        map.load(folder.path().join("weights.safetensors")).unwrap();
        let mut sgd = Sgd::new(second.clone(), ParamsSgd::default()).unwrap();
        sgd.load(&map, folder.path().join("sgd.safetensors")).unwrap();
        (0..3).for_each(|_| step(&mut sgd, &second));
        for (a, b) in whole.iter().zip(&second) {
            assert_eq!(values(a), values(b));
        }
    }
}

#[test]
fn files_are_whole_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sgd.safetensors");
    let (map, vars) = two_layers(DType::F32);
    let mut sgd = Sgd::new(vars.clone(), ParamsSgd::default()).unwrap();
    sgd.backward_step(&loss(&vars[0]).unwrap()).unwrap();
    sgd.save(&map, &path).unwrap();
    let names = || std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(), ["sgd.safetensors"]);

    // Cut anywhere, it is refused, and what was loaded before stays.
    let bytes = std::fs::read(&path).unwrap();
    let state = format!("{sgd:?}");
    for end in [0, 5, 20, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let error = sgd.load(&map, &path).unwrap_err().to_string();
        assert!(error.contains("sgd.safetensors"), "{error}");
        assert_eq!(format!("{sgd:?}"), state);
    }
    assert!(sgd.load(&map, folder.path().join("missing")).unwrap_err().to_string().contains("missing"));

    // Of another model.
    std::fs::write(&path, &bytes).unwrap();
    let other = VarMap::new();
    let error = Sgd::new(vec![], ParamsSgd::default()).unwrap().load(&other, &path).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("no variable"), "{error}");
    let error = sgd.save(&other, &path).unwrap_err().to_string();
    assert!(error.contains("no name"), "{error}");
    let vb = VarBuilder::from_varmap(&other, DType::F32, device());
    vb.get_with_hints(4, "a", candle_nn::Init::Const(0.5)).unwrap();
    let mut sgd = Sgd::new(other.all_vars(), ParamsSgd::default()).unwrap();
    let error = sgd.load(&other, &path).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("[3]") && error.contains("[4]"), "{error}");

    // Nowhere to write: an error that names the file, and nothing there.
    let nowhere = folder.path().join("no/sgd.safetensors");
    let error = Sgd::new(vars, ParamsSgd::default()).unwrap().save(&map, &nowhere).unwrap_err().to_string();
    assert!(error.contains("no/sgd.safetensors"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

const CLASSICAL: ParamsSgd = ParamsSgd { lr: 0.1, momentum: 0.5, nesterov: false, weight_decay: 0.0 };

fn map(vars: &[(&str, &Var)]) -> VarMap {
    let map = VarMap::new();
    for (name, var) in vars {
        map.data().lock().unwrap().insert((*name).to_owned(), (*var).clone());
    }
    map
}

fn var(values: &[f64]) -> Var {
    Var::new(values, device()).unwrap()
}

/// Gradients of one's own.
fn gradients(pairs: &[(&Var, Tensor)]) -> GradStore {
    let mut grads = var(&[0.]).sum_all().unwrap().backward().unwrap();
    for (var, grad) in pairs {
        grads.insert(var, grad.clone());
    }
    grads
}

fn square(w: &Var) -> Tensor {
    w.sqr().unwrap().sum_all().unwrap()
}

/// `all_vars` lists a tied weight once for each of its names.
#[test]
fn a_variable_that_is_listed_twice_moves_once() {
    let w = var(&[3.]);
    let mut sgd = Sgd::new(map(&[("a", &w), ("b", &w)]).all_vars(), CLASSICAL).unwrap();
    sgd.backward_step(&square(&w)).unwrap(); // v = 6
    assert!((values(&w)[0] - 2.4).abs() < 1e-12, "{:?}", values(&w));
    sgd.step(&square(&w).backward().unwrap()).unwrap(); // v = 3 + 4.8
    assert!((values(&w)[0] - (2.4 - 0.78)).abs() < 1e-12, "{:?}", values(&w));
}

/// A map has another order each time it is made.
#[test]
fn the_velocity_of_a_tied_variable_is_found_under_any_of_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sgd.safetensors");
    let step = |sgd: &mut Sgd, w: &Var| sgd.backward_step(&square(w)).unwrap();
    let (w, twin) = (var(&[3., 4.]), var(&[3., 4.]));
    let mut whole = Sgd::new(vec![twin.clone()], CLASSICAL).unwrap();
    (0..2).for_each(|_| step(&mut whole, &twin));
    let mut sgd = Sgd::new(vec![w.clone(), w.clone()], CLASSICAL).unwrap();
    step(&mut sgd, &w);
    let after_one = values(&w);
    let mut files = Vec::new();
    for trial in 0..40 {
        sgd.save(&map(&[("embedding", &w), ("head", &w), ("attention", &w)]), &path).unwrap();
        files.push(std::fs::read(&path).unwrap());
        let loaded = var(&after_one);
        let names = match trial % 4 {
            0 => map(&[("head", &loaded), ("attention", &loaded), ("embedding", &loaded)]),
            1 => map(&[("head", &loaded)]),
            2 => map(&[("embedding", &loaded), ("another", &loaded)]),
            _ => map(&[("attention", &loaded)]),
        };
        let mut resumed = Sgd::new(names.all_vars(), CLASSICAL).unwrap();
        resumed.load(&names, &path).unwrap();
        step(&mut resumed, &loaded);
        assert_eq!(bits(&loaded), bits(&twin), "trial {trial}");
    }
    assert!(files.iter().all(|file| *file == files[0]), "the same state gives the same file");
    let file = safetensors::SafeTensors::deserialize(&files[0]).unwrap();
    assert_eq!(file.names(), ["attention"], "the first name");

    // Into a model where the weights are no longer tied.
    let (a, b) = (var(&after_one), var(&after_one));
    let untied = map(&[("embedding", &a), ("head", &b)]);
    let error = Sgd::new(vec![a, b], CLASSICAL).unwrap().load(&untied, &path).unwrap_err().to_string();
    assert!(error.contains("`embedding` and `head` were one variable"), "{error}");
    // And the other way round.
    let (a, b) = (var(&[1.]), var(&[2.]));
    let mut untied = Sgd::new(vec![a.clone(), b.clone()], CLASSICAL).unwrap();
    untied.backward_step(&(square(&a) + square(&b)).unwrap()).unwrap();
    untied.save(&map(&[("embedding", &a), ("head", &b)]), &path).unwrap();
    let mut tied = Sgd::new(vec![a.clone()], CLASSICAL).unwrap();
    let error = tied.load(&map(&[("embedding", &a), ("head", &a)]), &path).unwrap_err().to_string();
    assert!(error.contains("second velocity of `embedding` (F64 [1])"), "{error}");
}

#[test]
fn a_gradient_that_does_not_fit_is_an_error_before_anything_moves() {
    let (a, b, c) = (var(&[1., 2.]), var(&[3., 4., 5.]), var(&[6.]));
    sam_runtime::name_variables(&map(&[("first", &a), ("layer.weight", &b)]));
    let of = |values: &[f64]| Tensor::new(values, device()).unwrap();
    let good = [(&a, of(&[1., 1.])), (&b, of(&[1., 1., 1.])), (&c, of(&[1.]))];
    for momentum in [0.0, 0.9] {
        let mut sgd = Sgd::new(vec![a.clone(), b.clone(), c.clone()], ParamsSgd { momentum, ..CLASSICAL }).unwrap();
        for fresh in [true, false] {
            let before = [values(&a), values(&b), values(&c)];
            let state = format!("{sgd:?}");
            for (bad, words) in [
                (of(&[9.]), "F64 [1]"),
                (of(&[9., 9., 9., 9.]), "F64 [4]"),
                (of(&[9., 9., 9.]).reshape((1, 3)).unwrap(), "F64 [1, 3]"),
                (of(&[9., 9., 9.]).to_dtype(DType::F32).unwrap(), "F32 [3]"),
                (of(&[9., 9., 9.]).to_dtype(DType::U32).unwrap(), "U32 [3]"),
            ] {
                let grads = gradients(&[good[0].clone(), (&b, bad), good[2].clone()]);
                let error = sgd.step(&grads).unwrap_err().to_string();
                assert!(error.contains("`layer.weight` (F64 [3])") && error.contains(words), "{error}");
                assert_eq!([values(&a), values(&b), values(&c)], before, "{words}");
                assert_eq!(format!("{sgd:?}"), state, "{words}");
            }
            // Without a name, by type and shape.
            let grads = gradients(&[good[0].clone(), good[1].clone(), (&c, of(&[1., 2.]))]);
            let error = sgd.step(&grads).unwrap_err().to_string();
            assert!(error.contains("a variable of F64 [1]"), "{error}");
            assert_eq!([values(&a), values(&b), values(&c)], before);
            if fresh {
                sgd.step(&gradients(&good)).unwrap();
            }
        }
    }
}

/// The gradient of xy by x is y: nothing is copied on the way if it is given by hand.
#[test]
fn a_gradient_may_be_a_variable() {
    for momentum in [0.0, 0.5] {
        let (x, y, z) = (var(&[2.]), var(&[3.]), var(&[5.]));
        let mut sgd = Sgd::new(vec![x.clone(), y.clone(), z.clone()], ParamsSgd { momentum, ..CLASSICAL }).unwrap();
        let itself = |var: &Var| var.as_detached_tensor();
        sgd.step(&gradients(&[(&x, itself(&y)), (&y, itself(&x)), (&z, itself(&z))])).unwrap();
        for (found, expected) in [&x, &y, &z].map(|var| values(var)[0]).into_iter().zip([1.7, 2.8, 4.5]) {
            assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
        }
    }
}

/// A safetensors file with these labels.
fn write(path: &Path, labels: &[(&str, &str)], tensors: &[(&str, Tensor)]) {
    let labels: HashMap<_, _> = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor.to_device(&Device::Cpu).unwrap()));
    let labels = (!labels.is_empty()).then_some(labels);
    std::fs::write(path, safetensors::serialize(tensors, labels).unwrap()).unwrap();
}

#[test]
fn what_is_not_a_velocity_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (a, b) = (copy(&tensor(&[3], DType::F32, 1)), copy(&tensor(&[2, 2], DType::BF16, 2)));
    let names = map(&[("a", &a), ("b", &b)]);
    let mut sgd = Sgd::new(vec![a.clone(), b.clone()], CLASSICAL).unwrap();
    let loss = (square(&a) + square(&b).to_dtype(DType::F32).unwrap()).unwrap();
    sgd.backward_step(&loss).unwrap();
    let state = format!("{sgd:?}");

    let of = |dtype| tensor(&[3], dtype, 3);
    let nan = (of(DType::F32) * f64::NAN).unwrap();
    let infinite = (of(DType::F32) * f64::INFINITY).unwrap();
    let own = |var: &Var| var.as_detached_tensor();
    let label = [("kind", "sam-runtime sgd velocities"), ("version", "1")];
    for labels in [&label[..], &[]] {
        for (tensors, words) in [
            (vec![("a", nan.clone())], "`a` is not finite"),
            (vec![("a", infinite.clone())], "`a` is not finite"),
            (vec![("a", of(DType::F32).to_dtype(DType::U8).unwrap())], "`a` is U8"),
            (vec![("a", of(DType::F64))], "`a` is F64, its variable F32: expected F32"),
            (vec![("a", of(DType::BF16))], "`a` is BF16, its variable F32: expected F32"),
            (vec![("b", tensor(&[2, 2], DType::BF16, 3))], "`b` is BF16, its variable BF16: expected F32"),
            (vec![("a", tensor(&[4], DType::F32, 3))], "has shape [4], its variable [3]"),
            (vec![("a", of(DType::F32).reshape((3, 1)).unwrap())], "has shape [3, 1], its variable [3]"),
            (vec![("a", of(DType::F32)), ("c", of(DType::F32))], "`c` belongs to no variable"),
        ] {
            write(&path, labels, &tensors);
            let error = sgd.load(&names, &path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("file"), "{error}, expected {words}");
            assert_eq!(format!("{sgd:?}"), state, "{words}");
        }
    }

    // The weights, saved by candle, which says nothing of kinds.
    write(&path, &[], &[("a", own(&a))]);
    let error = sgd.load(&names, &path).unwrap_err().to_string();
    assert!(error.contains("found weights"), "{error}");
    names.save(&path).unwrap();
    assert!(sgd.load(&names, &path).is_err());
    // Files of others, and of a later release.
    for (labels, words) in [
        (vec![("format", "pt")], "found a file of another program"),
        (vec![("kind", "sam-runtime sam state"), ("version", "1")], "kind `sam-runtime sam state`"),
        (vec![label[0], ("version", "2")], "version `2`"),
        (vec![label[0]], "version ``"),
    ] {
        write(&path, &labels, &[("a", of(DType::F32))]);
        let error = sgd.load(&names, &path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}, expected {words}");
    }
    sam_runtime::Sam::new(0.05).save(&names, &path).unwrap();
    let error = sgd.load(&names, &path).unwrap_err().to_string();
    assert!(error.contains("expected the velocities of an `Sgd`"), "{error}");
    assert_eq!(format!("{sgd:?}"), state);
}

/// From before files had labels; see `fixtures/README.md`.
#[test]
fn files_without_labels_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sgd");
    let file = |name: String| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/unlabelled").join(name);
    for (name, dtype) in [("f32", DType::F32), ("f64", DType::F64), ("bf16", DType::BF16)] {
        let new = || {
            let var = |n| Var::zeros(n, dtype, device()).unwrap();
            let vars = [var(3), var(2)];
            (map(&[("a", &vars[0]), ("b", &vars[1])]), vars)
        };
        let (mut names, vars) = new();
        names.load(file(format!("{name}-weights.safetensors"))).unwrap();
        let params = ParamsSgd { lr: 0.03125, momentum: 0.5, ..Default::default() };
        let mut sgd = Sgd::new(names.all_vars(), params).unwrap();
        sgd.load(&names, file(format!("{name}-sgd.safetensors"))).unwrap();
        for _ in 0..2 {
            let [a, b] = &vars;
            let loss = (square(a) + (b.sqr().unwrap().sqr().unwrap() * 0.5).unwrap().sum_all().unwrap()).unwrap();
            sgd.backward_step(&loss).unwrap();
        }
        let (mut later, expected) = new();
        later.load(file(format!("{name}-weights-two-steps-later.safetensors"))).unwrap();
        for (found, expected) in vars.iter().zip(&expected) {
            if device().is_cpu() {
                assert_eq!(bits(found), bits(expected), "{name}");
            }
        }
        // The velocities have labels when they are saved again.
        sgd.save(&names, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["kind"], "sam-runtime sgd velocities");
    }
}
