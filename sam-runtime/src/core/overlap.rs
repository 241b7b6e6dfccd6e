//! Steps and optimizers that meet on the same variables.
//!
//! While the second pass of a step runs, its variables hold w + ε̂. Another step that perturbed them too would take the
//! wrong weights for w and put them back in the wrong order, and the move of an optimizer would be lost when w returns. So
//! every variable that holds w + ε̂ is in one list of the process, and each pass looks there for the variables of its graph.
//! Variables are told apart by their storage: a view of one is the same variable.

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex, MutexGuard};

use candle_core::{Result, Var};

use crate::core::error::Error;
use crate::core::identity::storage_of;
use crate::core::lock::lock;
use crate::core::names::describe;
use crate::core::pass::{Step, is_inside_a_pass};

#[derive(Default)]
struct List {
    /// The variables that hold w + ε̂, and the number of the step that has put it there.
    displaced: HashMap<usize, u64>,
    /// When a variable was last changed or put back, and by which step; 0 for an optimizer. Entries stay while passes run.
    changed: HashMap<usize, (u64, u64)>,
    now: u64,
    /// Since when the passes that run have been running.
    watches: BTreeMap<u64, usize>,
    /// The length of `changed` at which to look for entries that are not needed any more.
    limit: usize,
}

fn list() -> MutexGuard<'static, List> {
    static LIST: LazyLock<Mutex<List>> = LazyLock::new(Mutex::default);
    lock(&LIST)
}

impl List {
    fn note(&mut self, storage: usize, step: u64) {
        if !self.watches.is_empty() {
            self.now += 1;
            self.changed.insert(storage, (self.now, step));
        }
    }

    fn forget(&mut self) {
        let Some((&oldest, _)) = self.watches.first_key_value() else {
            self.changed.clear();
            return;
        };
        if self.changed.len() > self.limit {
            self.changed.retain(|_, (when, _)| *when > oldest);
            self.limit = (2 * self.changed.len()).max(4096);
        }
    }
}

/// Looks, from the beginning of a pass on, at what others do to its variables.
#[derive(Debug)]
pub(crate) struct Watch {
    step: u64,
    since: u64,
}

impl Watch {
    pub(crate) fn begin(step: &Step) -> Self {
        let mut list = list();
        let since = list.now;
        *list.watches.entry(since).or_default() += 1;
        Self { step: step.number(), since }
    }

    /// An error if another step has moved one of these variables meanwhile, or an optimizer.
    pub(crate) fn check<'a>(&self, vars: impl Iterator<Item = &'a Var>) -> Result<()> {
        let vars: Vec<_> = vars.map(|var| (var, storage_of(var))).collect();
        let list = list();
        for (var, storage) in vars {
            if list.displaced.get(&storage).is_some_and(|step| *step != self.step) {
                Err(Error::Displaced { variable: describe(var) })?;
            }
            match list.changed.get(&storage) {
                Some((when, 0)) if *when > self.since => Err(Error::Moved { variable: describe(var) })?,
                Some((when, step)) if *when > self.since && *step != self.step => {
                    Err(Error::Displaced { variable: describe(var) })?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut list = list();
        if let Some(count) = list.watches.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                list.watches.remove(&self.since);
            }
        }
        list.forget();
    }
}

/// The entries of variables in the list. Dropped, it removes them.
#[derive(Debug)]
pub(crate) struct Claim {
    step: u64,
    storages: Vec<usize>,
}

impl Claim {
    pub(crate) fn new(step: &Step) -> Self {
        Self { step: step.number(), storages: Vec::new() }
    }

    /// Puts variables into the list: all, or none where one is there already.
    pub(crate) fn add<'a>(&mut self, vars: impl Iterator<Item = &'a Var>) -> Result<()> {
        let vars: Vec<_> = vars.map(|var| (var, storage_of(var))).collect();
        let mut list = list();
        for (index, (var, storage)) in vars.iter().enumerate() {
            if list.displaced.contains_key(storage) {
                for (_, added) in &vars[..index] {
                    list.displaced.remove(added);
                }
                Err(Error::Displaced { variable: describe(var) })?;
            }
            list.displaced.insert(*storage, self.step);
        }
        self.storages.extend(vars.into_iter().map(|(_, storage)| storage));
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut list = list();
        for storage in &self.storages {
            list.displaced.remove(storage);
            list.note(*storage, self.step);
        }
    }
}

/// An error where an optimizer must not move these variables: inside a loss function, and while they hold w + ε̂.
pub(crate) fn check_may_move<'a>(vars: impl Iterator<Item = &'a Var>) -> Result<()> {
    if is_inside_a_pass() {
        Err(Error::OptimizerInPass)?;
    }
    let vars: Vec<_> = vars.map(|var| (var, storage_of(var))).collect();
    let list = list();
    match vars.iter().find(|(_, storage)| list.displaced.contains_key(storage)) {
        Some((var, _)) => Err(Error::Displaced { variable: describe(var) }.into()),
        None => Ok(()),
    }
}

/// Says that an optimizer has moved these variables.
pub(crate) fn note_moved<'a>(vars: impl Iterator<Item = &'a Var>) {
    let vars: Vec<_> = vars.map(|var| storage_of(var)).collect();
    let mut list = list();
    for storage in vars {
        list.note(storage, 0);
    }
}
