//! Every method of the paper's Table 4 with SAM on top, in small: trained, stopped on the way, and taken up again.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::fs;
use std::path::Path;

use sam_examples::recipe::{RecipePatch, Scale};
use sam_examples::trainer::{Data, Job, Next, Outcome};
use sam_examples::util::device::DeviceConfig;

const METHODS: [&str; 11] = [
    "plain",
    "mixup",
    "bootstrap",
    "bootstrap-mixup",
    "gce",
    "mentornet",
    "mentormix",
    "m-dyr-h",
    "o2u",
    "incv",
    "rog",
];

/// Trains to the end, or to this many steps.
fn train(recipe: &str, folder: &Path, until: usize) -> Option<Outcome> {
    run(recipe, folder, 0, |steps| Ok(if steps == until { Next::Stop } else { Next::GoOn })).unwrap()
}

fn run(
    recipe: &str,
    folder: &Path,
    every: usize,
    tell: impl Fn(usize) -> anyhow::Result<Next>,
) -> anyhow::Result<Option<Outcome>> {
    let recipe = RecipePatch::parse("test", recipe).unwrap().recipe(&Scale::default()).unwrap();
    let data = Data::load(&recipe, None, 1, &DeviceConfig::CPU.device).unwrap();
    let job = Job {
        recipe: &recipe,
        seed: 1,
        data: &data,
        device: &DeviceConfig::CPU,
        weights: None,
        folder,
        every,
        report: 0,
        keep_weights: true,
        scaled: String::new(),
    };
    let mut steps = 0;
    let outcome = job.run(|_| {
        steps += 1;
        tell(steps)
    });
    outcome.map(|outcome| outcome.map(|outcome| Outcome { seconds: 0.0, ..outcome }))
}

fn recipe(method: &str, more: &str) -> String {
    format!(
        "method = \"{method}\"\nmodel = \"mlp-norm-w16\"\nimages = 400.0\nvalidation = 0.2\nbatch = 40\nepochs = 6.0\n\
         noise = 0.4\nalpha = 4.0\nlr = 0.05\n{more}"
    )
}

#[test]
fn all_run_with_sam_and_go_on_with_the_same_bits() {
    for method in METHODS {
        let mut recipe = recipe(method, "rho = 0.05\nm = 10\nclip = 5.0\n");
        // These need a model that has learned something: GCE leaves out what it is not sure of, M-DYR-H learns its own guesses, and
        // INCV selects images by models of a quarter of the epochs, and then trains a new one.
        if ["gce", "m-dyr-h", "incv"].contains(&method) {
            recipe = recipe.replace("epochs = 6.0", "epochs = 30.0");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let whole = train(&recipe, &path("whole"), usize::MAX).unwrap();
        assert!(whole.sharpness.is_some_and(f64::is_finite) && whole.loss.is_finite(), "{method}: {whole:?}");
        // Of ten classes chance is at 0.9.
        assert!(whole.test_error < 0.8, "{method}: {whole:?}");
        // In each of its parts, and between them.
        let times = 5;
        for _ in 0..times {
            assert_eq!(train(&recipe, &path("parts"), whole.steps / times), None, "{method}");
        }
        let parts = train(&recipe, &path("parts"), usize::MAX).unwrap();
        assert_eq!(parts, whole, "{method}");
        let bytes = |name: &str| fs::read(path(name).join("weights.safetensors")).unwrap();
        assert!(bytes("parts") == bytes("whole"), "{method}");
    }
}

/// The checkpoint between two trainings, which none of the steps before or after it writes.
#[test]
fn the_end_of_a_training_is_a_place_to_go_on_from() {
    let recipe = recipe("bootstrap", "rho = 0.05\nm = 10\n");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let whole = train(&recipe, &path("whole"), usize::MAX).unwrap();
    // It is written where checkpoints are asked for; then the next training is stopped before its first of them.
    let stopped = path("stopped");
    run(&recipe, &stopped, 1000, |steps| {
        if steps == whole.steps / 2 + 1 { Err(anyhow::anyhow!("a crash")) } else { Ok(Next::GoOn) }
    })
    .unwrap_err();
    assert_eq!(train(&recipe, &stopped, usize::MAX).unwrap(), whole);
}

/// Steps in place of epochs, as many as are said for each training.
#[test]
fn a_run_of_steps_is_as_long_as_it_says() {
    for (more, steps) in [("", 48), ("steps = 11\n", 11), ("steps = 11\nstretch = 2.0\n", 22)] {
        let folder = tempfile::tempdir().unwrap();
        let text = recipe("plain", more).replace("epochs = 6.0\n", if more.is_empty() { "epochs = 6.0\n" } else { "" });
        let outcome = train(&text, folder.path(), usize::MAX).unwrap();
        assert_eq!((outcome.steps, outcome.sharpness), (steps, None));
        assert!(outcome.top_5_error.unwrap() < outcome.test_error);
    }
}

/// Weights of named epochs, also where a training stops and goes on between them, and right at one of them.
#[test]
fn weights_of_named_epochs_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    // 8 steps an epoch.
    let recipe = recipe("plain", "rho = 0.05\nm = 10\nkeep-epochs = [1.0, 2.5, 6.0]\n");
    let path = |name: &str| folder.path().join(name);
    train(&recipe, &path("whole"), usize::MAX).unwrap();
    assert_eq!(train(&recipe, &path("parts"), 8), None);
    assert!(path("parts").join("weights-epoch-1.safetensors").exists());
    assert!(!path("parts").join("weights-epoch-2.5.safetensors").exists());
    assert_eq!(train(&recipe, &path("parts"), 5), None);
    train(&recipe, &path("parts"), usize::MAX).unwrap();
    let weights = |name: &str, epoch: &str| {
        let file = path(name).join(format!("weights{epoch}.safetensors"));
        let weights = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        let mut weights: Vec<_> = weights.into_iter().collect();
        weights.sort_by(|a, b| a.0.cmp(&b.0));
        let bits = |x: f32| x.to_bits();
        weights
            .into_iter()
            .map(|(name, weight)| {
                (
                    name,
                    weight.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(bits).collect::<Vec<_>>(),
                )
            })
            .collect::<Vec<_>>()
    };
    for epoch in ["-epoch-1", "-epoch-2.5", "-epoch-6", ""] {
        assert!(weights("parts", epoch) == weights("whole", epoch), "{epoch}");
    }
    assert!(weights("whole", "-epoch-6") == weights("whole", ""));
    assert!(weights("whole", "-epoch-1") != weights("whole", "-epoch-2.5"));
    // As many as after a training of one epoch with the same rates would be another thing: they are those of the step.
    assert_eq!(fs::read_dir(path("whole")).unwrap().filter(|entry| is_kept(entry.as_ref().unwrap())).count(), 3);
}

fn is_kept(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with("weights-epoch-")
}

/// The log has what Figures 4 and 5 show.
#[test]
fn both_orders_are_compared_along_a_training() {
    let folder = tempfile::tempdir().unwrap();
    for second_order in [false, true] {
        let path = folder.path().join(second_order.to_string());
        let of = |more: &str| recipe("plain", &format!("rho = 0.05\nm = 10\nsecond-order = {second_order}\n{more}"));
        let compared = train(&of("compare-orders = true\n"), &path, usize::MAX).unwrap();
        let log = fs::read_to_string(path.join("log.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let cosines: Vec<f64> = lines.iter().filter_map(|line| line["cosine"].as_f64()).collect();
        assert_eq!(cosines.len(), 48);
        assert!(cosines.iter().all(|cosine| *cosine > 0.0 && *cosine < 1.0 + 1e-6), "{cosines:?}");
        let errors: Vec<f64> = lines.iter().filter_map(|line| line["perturbed error"].as_f64()).collect();
        assert!(errors.len() == 48 && errors[47] < errors[0], "{errors:?}");
        // It only looks.
        let alone = train(&of(""), &folder.path().join(format!("{second_order}-alone")), usize::MAX).unwrap();
        assert_eq!(alone, compared);
    }
}

/// SGD and SAM of a radius that does nothing leave the same statistics behind, in shards or not.
#[test]
fn statistics_are_alike_with_and_without_sam() {
    let folder = tempfile::tempdir().unwrap();
    let statistics = |name: &str, more: &str| {
        let folder = folder.path().join(name);
        train(&recipe("plain", more), &folder, usize::MAX).unwrap();
        let weights =
            candle_core::safetensors::load(folder.join("weights.safetensors"), &candle_core::Device::Cpu).unwrap();
        let (name, mean) = weights.into_iter().find(|(name, _)| name.ends_with("running_mean")).unwrap();
        assert_eq!(mean.dims(), [16], "{name}");
        mean.to_vec1::<f32>().unwrap()
    };
    let (sgd, sam) = (statistics("sgd", "m = 10\n"), statistics("sam", "m = 10\nrho = 1e-7\n"));
    for (sgd, sam) in sgd.iter().zip(&sam) {
        assert!((sgd - sam).abs() < 1e-3 * (1.0 + sgd.abs()), "{sgd} {sam}");
    }
}
