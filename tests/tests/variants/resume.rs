//! A run that was saved and loaded has the same bits as one that was not.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};
use sam_runtime::Sam;
use sam_runtime::optim::{ParamsSgd, Sgd};
use sam_tests::{Net, device};

use crate::promises::{Variant, all};
use crate::reference::*;

fn steps(range: std::ops::Range<u64>, net: &Net, sam: &Sam, sgd: &mut Sgd) {
    for number in range {
        let Step { x, y, .. } = Step::new(number);
        sgd.backward_step(&sam.loss(|| net.loss(&x, &y)).unwrap()).unwrap();
        sam.finish(0.05).unwrap();
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
            let sam = if name == "m-sam" { Sam::m_sam(sgd.velocities()) } else { make(&net) };
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
