//! Any bytes as a state file: no panic, nothing changed by what fails, nothing lost by what succeeds.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a failure is a panic here")]

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};
use libfuzzer_sys::{Corpus, fuzz_target};
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};

/// What is loaded.
enum Subject {
    Sgd(Sgd),
    Sam(Sam),
}

impl Subject {
    fn new(choice: u8, vars: &[Var; 2]) -> Self {
        let with_rate = || {
            let sam = Sam::gsam(0.0..=1.0);
            sam.set_learning_rate(0.5);
            sam
        };
        Self::Sam(match choice % 16 {
            0 => Sam::new(0.05),
            1 => Sam::f_sam(),
            2 => Sam::vasso(),
            3 => Sam::look_sam(),
            4 => Sam::previous_gradient(),
            5 => Sam::wsam(),
            6 => Sam::ae_sam(100),
            7 => Sam::sparse_sam(10),
            8 => with_rate(),
            9 => Sam::rst().seed(u64::MAX),
            _ => return Self::Sgd(Sgd::new(vars.to_vec(), ParamsSgd::default()).unwrap()),
        })
    }

    /// May fail, and must not panic.
    fn step(&mut self, vars: &[Var; 2]) -> Result<()> {
        match self {
            Self::Sgd(sgd) => sgd.backward_step(&loss(vars)?),
            Self::Sam(sam) => {
                sam.apply_decoupled(0.01)?;
                sam.loss(|| loss(vars)).map(drop)
            }
        }
    }

    fn load(&mut self, names: &VarMap, path: &Path) -> Result<()> {
        match self {
            Self::Sgd(sgd) => sgd.load(names, path),
            Self::Sam(sam) => sam.load(names, path),
        }
    }

    fn saved(&self, names: &VarMap, path: &Path) -> Vec<u8> {
        match self {
            Self::Sgd(sgd) => sgd.save(names, path).unwrap(),
            Self::Sam(sam) => sam.save(names, path).unwrap(),
        }
        fs::read(path).unwrap()
    }
}

fn loss([a, b]: &[Var; 2]) -> Result<Tensor> {
    a.sqr()?.sum_all()?.to_dtype(DType::F64)? + b.sqr()?.sum_all()?.to_dtype(DType::F64)?
}

/// One variable has two names.
fn model(choice: u8) -> (VarMap, [Var; 2]) {
    let dtype = [DType::F32, DType::F64, DType::BF16, DType::F16][usize::from(choice / 16 % 4)];
    let var = |values: &[f64]| {
        Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()).unwrap()
    };
    let vars = [var(&[1.0, -2.0, 0.5]), var(&[0.25, 3.0])];
    let names = VarMap::new();
    for (name, var) in [("a", &vars[0]), ("b", &vars[1]), ("c", &vars[1])] {
        names.data().lock().unwrap().insert(name.to_owned(), var.clone());
    }
    (names, vars)
}

fn values(vars: &[Var; 2]) -> Vec<Vec<f64>> {
    vars.iter().map(|var| var.to_dtype(DType::F64).unwrap().to_vec1().unwrap()).collect()
}

fn file(input: &[u8]) -> Vec<u8> {
    match input {
        [mode, rest @ ..] if mode % 2 == 1 => {
            let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
            let (header, data) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
            [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
        }
        [_, rest @ ..] => rest.to_vec(),
        [] => Vec::new(),
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((choice, input)) = input.split_first() else { return Corpus::Reject };
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("state"), folder.path().join("copy"));
    fs::write(&path, file(input)).unwrap();

    let (names, vars) = model(*choice);
    let mut subject = Subject::new(*choice, &vars);
    subject.step(&vars).unwrap();
    let before = (subject.saved(&names, &copy), values(&vars));
    let outcome = subject.load(&names, &path);
    if outcome.is_err() {
        assert_eq!((subject.saved(&names, &copy), values(&vars)), before, "changed by {outcome:?}");
        return Corpus::Keep;
    }
    assert_eq!(values(&vars), before.1);
    let once = subject.saved(&names, &copy);
    let mut twin = Subject::new(*choice, &vars);
    twin.load(&names, &copy).unwrap();
    assert_eq!(twin.saved(&names, &copy), once);
    let _may_fail = subject.step(&vars);
    Corpus::Keep
});
