//! The names of variables: for errors, and for files that are read and written by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, MutexGuard};

use candle_core::{Result, Tensor, TensorId, Var};
use candle_nn::VarMap;

use crate::core::lock::lock;

/// How many names are kept. Beyond it the oldest registrations are forgotten.
const LIMIT: usize = 1 << 17;

/// Registers the names of variables, so that errors can say `layer1.weight` where they could only say "variable 21 of 152".
///
/// Everything that is given a [`VarMap`] does this itself: [`Sgd::save`](crate::optim::Sgd::save) and
/// [`load`](crate::optim::Sgd::load), [`Sam::save`](crate::Sam::save) and [`load`](crate::Sam::load),
/// [`Sam::asam`](crate::Sam::asam), [`variants::named`](crate::variants::named). Otherwise call it once, when the model is
/// complete.
///
/// The names belong to the process. A variable with several names, such as tied weights, goes by the first of them in
/// alphabetical order. Registering a variable again replaces its name. The registry holds names only, it does not keep
/// variables alive; it remembers about 130,000 of them (at least those of the latest map) and forgets the oldest beyond that.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use sam_runtime::{Sam, name_variables};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let scale = vb.pp("layer1").get_with_hints(3, "scale", candle_nn::Init::Const(0.))?;
/// name_variables(&vars);
///
/// let error = Sam::new(0.05).loss(|| -> Result<Tensor> { scale.sqrt()?.sum_all() }).unwrap_err();
/// assert!(error.to_string().contains("`layer1.scale` (F32 [3])")); // the gradient of a square root at 0 is infinite
/// # Ok(())
/// # }
/// ```
pub fn name_variables(names: &VarMap) {
    Names::of(names);
}

/// How an error calls a variable: by its name if it has one, and by its type and shape.
pub(crate) fn describe(var: &Tensor) -> String {
    let kind = format!("{:?} {:?}", var.dtype(), var.dims());
    name_of(var).map_or_else(|| format!("a variable of {kind}"), |name| format!("`{name}` ({kind})"))
}

/// The registered name of a variable.
pub(crate) fn name_of(var: &Tensor) -> Option<String> {
    registry().names.get(&var.id()).map(|(_, name)| name.clone())
}

#[derive(Default)]
struct Registry {
    /// Each name with the number of the registration that it is from.
    names: HashMap<TensorId, (u64, String)>,
    registrations: u64,
}

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    lock(&REGISTRY)
}

impl Registry {
    fn register(&mut self, names: impl Iterator<Item = (TensorId, String)>, limit: usize) {
        self.registrations += 1;
        let newest = self.registrations;
        self.names.extend(names.map(|(id, name)| (id, (newest, name))));
        while self.names.len() > limit {
            let oldest = self.names.values().map(|(number, _)| *number).min().unwrap_or(newest);
            if oldest == newest {
                return;
            }
            self.names.retain(|_, (number, _)| *number != oldest);
        }
    }
}

/// The variables of a map by name, as they were when it was read.
pub(crate) struct Names {
    vars: BTreeMap<String, Var>,
    /// The names of each variable, in order.
    of: HashMap<TensorId, Vec<String>>,
}

impl Names {
    /// Reads a map, and registers its names.
    pub(crate) fn of(map: &VarMap) -> Self {
        let vars: BTreeMap<String, Var> = {
            let vars = lock(map.data());
            vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
        };
        let mut of: HashMap<TensorId, Vec<String>> = HashMap::with_capacity(vars.len());
        for (name, var) in &vars {
            of.entry(var.id()).or_default().push(name.clone());
        }
        registry().register(of.iter().map(|(id, names)| (*id, names[0].clone())), LIMIT);
        Self { vars, of }
    }

    /// All variables, in the order of their names.
    pub(crate) fn into_vars(self) -> BTreeMap<String, Var> {
        self.vars
    }

    /// The names of a variable, in order: its state is saved under the first.
    pub(crate) fn names(&self, var: &Var) -> Option<(&String, &[String])> {
        self.of.get(&var.id())?.split_first()
    }

    /// The variable that has any of these names. They were names of one variable when they were saved, and it is an error if
    /// they are names of several here.
    pub(crate) fn find(&self, names: &[&str]) -> Result<Option<&Var>> {
        let mut found: Option<(&str, &Var)> = None;
        for name in names {
            match (found, self.vars.get(*name)) {
                (_, None) => {}
                (Some((first, known)), Some(var)) if known.id() != var.id() => candle_core::bail!(
                    "`{first}` and `{name}` were one variable when the file was saved, and are two here: expected the \
                     model that it was saved from"
                ),
                (_, Some(var)) => found = Some((*name, var)),
            }
        }
        Ok(found.map(|(_, var)| var))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn map(vars: &[(&str, &Var)]) -> VarMap {
        let map = VarMap::new();
        for (name, var) in vars {
            map.data().lock().unwrap().insert((*name).to_owned(), (*var).clone());
        }
        map
    }

    #[test]
    fn the_first_name_counts_and_the_latest_registration() {
        let w = Var::zeros((3, 4), DType::BF16, &Device::Cpu).unwrap();
        assert_eq!(describe(&w), "a variable of BF16 [3, 4]");
        name_variables(&map(&[("head.weight", &w), ("embedding.weight", &w), ("lm.weight", &w)]));
        assert_eq!(describe(&w), "`embedding.weight` (BF16 [3, 4])");
        name_variables(&map(&[("tail", &w)]));
        assert_eq!(describe(&w), "`tail` (BF16 [3, 4])");
    }

    #[test]
    fn a_map_whose_lock_is_poisoned_is_read_all_the_same() {
        let w = Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let map = map(&[("poisoned", &w)]);
        let panicking = map.clone();
        let panicked = std::thread::spawn(move || {
            let _guard = panicking.data().lock().unwrap();
            panic!("while the map is locked");
        });
        assert!(panicked.join().is_err() && map.data().is_poisoned());
        name_variables(&map);
        assert_eq!(describe(&w), "`poisoned` (F32 [2])");
    }

    #[test]
    fn the_oldest_names_are_forgotten_first() {
        let vars: Vec<_> = (0..7).map(|_| Var::zeros(1, DType::F32, &Device::Cpu).unwrap()).collect();
        let mut registry = Registry::default();
        let mut register = |range: std::ops::Range<usize>| {
            registry.register(vars[range.clone()].iter().map(|var| (var.id(), "x".to_owned())), 4);
            vars.iter().map(|var| registry.names.contains_key(&var.id())).collect::<Vec<_>>()
        };
        assert_eq!(register(0..2), [true, true, false, false, false, false, false]);
        assert_eq!(register(2..4), [true, true, true, true, false, false, false]);
        assert_eq!(register(4..5), [false, false, true, true, true, false, false]);
        assert_eq!(register(0..6), [true, true, true, true, true, true, false], "the latest map is kept whole");
    }
}
