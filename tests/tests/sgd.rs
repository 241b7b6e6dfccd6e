//! `optim::Sgd` is PyTorch's, in every type, on the disk and back.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Optimizer, VarBuilder, VarMap};
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_tests::{copy, device, tensor, values};

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

/// Half of a run, the disk, and the other half in a new process's objects: the same bits as the whole.
#[test]
fn goes_on_where_it_was_saved() {
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
