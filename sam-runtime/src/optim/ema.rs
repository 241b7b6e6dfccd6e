//! The exponential moving average of variables.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor, Var};
use candle_nn::VarMap;

use super::state_file::{self, Kind, Owners, StateFile, checked};
use crate::core::dtype::wide;
use crate::core::identity::storage_of;
use crate::core::names::{Names, describe};
use crate::core::overlap::{check_may_move, note_moved};
use crate::core::storage::swap_storage;
use crate::kernels;

type Result<T, E = candle_core::Error> = std::result::Result<T, E>;

const FILE: Kind = Kind { label: "sam-runtime ema", what: "the averages of an `Ema`", version: 1 };

const STEPS: &str = "steps";
const AVERAGE: &str = "average";

/// The exponential moving average of variables: a ← d a + (1 - d) w after each step of the optimizer.
///
/// The averages begin as the variables are. With [`warm_up`](Self::warm_up) the decay d of step t is at most (1 + t) / (10 + t), so
/// that the first values are soon forgotten. On the CPU an update reads a and w once and writes a once; on CUDA it is one
/// launch for all. Variables in half precision have their averages in f32.
///
/// Average the running statistics of batch normalizations too: those of the last weights do not fit the averaged ones. Variables
/// that are not of a floating point type are ignored, one that is listed several times is one.
///
/// ```
/// use candle_core::{Device, Result, Var};
/// use sam_runtime::optim::Ema;
///
/// # fn main() -> Result<()> {
/// let w = Var::new(&[0f64, 4.], &Device::Cpu)?;
/// let mut ema = Ema::new(vec![w.clone()], 0.75)?;
/// w.set(&w.ones_like()?)?;                                     // a step of an optimizer
/// ema.update()?;
/// let averaged = ema.apply(|| w.to_vec1::<f64>())?;            // evaluation
/// assert_eq!(averaged, [0.25, 3.25]);
/// assert_eq!(w.to_vec1::<f64>()?, [1., 1.]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    warms_up: bool,
    steps: u64,
    /// Each variable with its average.
    averages: Vec<(Var, Tensor)>,
}

impl Ema {
    /// The averages of these variables, which begin with their values of now.
    ///
    /// # Errors
    /// If the decay is not from 0 to 1, or a variable holds w + ε̂.
    pub fn new(vars: Vec<Var>, decay: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&decay) {
            candle_core::bail!("the decay of an average is {decay}: expected a number from 0 to 1")
        }
        check_may_move(vars.iter())?;
        let mut seen = HashSet::new();
        let vars = vars.into_iter().filter(|var| var.dtype().is_float() && seen.insert(storage_of(var)));
        let copy = |var: Var| {
            let wide = wide(var.dtype());
            let value = var.as_detached_tensor();
            let value = if value.dtype() == wide { value.copy()? } else { value.to_dtype(wide)?.contiguous()? };
            Ok((var, value.detach()))
        };
        Ok(Self { decay, warms_up: false, steps: 0, averages: vars.map(copy).collect::<Result<_>>()? })
    }

    /// With a decay of at most (1 + t) / (10 + t) in update t.
    #[must_use]
    pub fn warm_up(self) -> Self {
        Self { warms_up: true, ..self }
    }

    /// Follows the variables. Call it after each step of the optimizer.
    ///
    /// # Errors
    /// Inside a loss function, and where a variable holds w + ε̂.
    pub fn update(&mut self) -> Result<()> {
        check_may_move(self.averages.iter().map(|(var, _)| var))?;
        let t = self.steps as f64;
        let decay = if self.warms_up { self.decay.min((1.0 + t) / (10.0 + t)) } else { self.decay };
        kernels::ema(&self.averages.iter().map(|(var, average)| (average, var)).collect::<Vec<_>>(), decay)?;
        self.steps += 1;
        Ok(())
    }

    /// The number of updates so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Each variable with its average, which changes when this is updated: copy it to keep it.
    pub fn averages(&self) -> impl Iterator<Item = (&Var, &Tensor)> {
        self.averages.iter().map(|(var, average)| (var, average))
    }

    /// Runs `f` while the variables hold their averages. Then, also if it fails or panics, they hold their own values again. Nothing
    /// is copied, but for variables in half precision: storages are swapped.
    ///
    /// # Errors
    /// Those of `f`; inside a loss function, and where a variable holds w + ε̂.
    pub fn apply<R, E>(&self, f: impl FnOnce() -> Result<R, E>) -> Result<R, E>
    where
        E: From<candle_core::Error>,
    {
        let exchanged = Exchanged::new(&self.averages)?;
        let result = f()?;
        exchanged.end()?;
        Ok(result)
    }

    /// Sets the variables to their averages.
    ///
    /// # Errors
    /// Inside a loss function, and where a variable holds w + ε̂.
    pub fn copy_to_vars(&self) -> Result<()> {
        check_may_move(self.averages.iter().map(|(var, _)| var))?;
        for (var, average) in &self.averages {
            // `Var::set` copies.
            var.set(&average.to_dtype(var.dtype())?)?;
        }
        note_moved(self.averages.iter().map(|(var, _)| var));
        Ok(())
    }

    /// Goes on from these averages and this number of updates. For checkpoints of your own: [`load`](Self::load) reads those of
    /// [`save`](Self::save).
    ///
    /// # Errors
    /// If a variable of this has no value, or one of another shape or type; all is as before then.
    pub fn resume(&mut self, steps: u64, values: impl IntoIterator<Item = (Var, Tensor)>) -> Result<()> {
        let values: HashMap<_, _> = values.into_iter().map(|(var, value)| (storage_of(&var), value)).collect();
        let new = self.averages.iter().map(|(var, average)| {
            let Some(value) = values.get(&storage_of(var)) else {
                candle_core::bail!("there is no average of {}", describe(var))
            };
            if value.dims() != average.dims() || value.dtype() != average.dtype() {
                candle_core::bail!(
                    "the average of {} is {:?} {:?}: expected {:?} {:?}",
                    describe(var),
                    value.dtype(),
                    value.dims(),
                    average.dtype(),
                    average.dims()
                )
            }
            Ok((var.clone(), value.to_device(var.device())?.force_contiguous()?.detach()))
        });
        self.averages = new.collect::<Result<_>>()?;
        self.steps = steps;
        Ok(())
    }

    /// Writes the averages and the number of updates to a safetensors file, under the names that the variables have in `names`.
    /// The file is replaced [atomically](crate::write_atomically).
    ///
    /// # Errors
    /// If a variable has no name, or the file cannot be written.
    pub fn save(&self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::write(path.as_ref(), &self.to_bytes(names)?)
    }

    /// What [`save`](Self::save) writes, for a checkpoint that holds more than this.
    ///
    /// # Errors
    /// If a variable has no name.
    pub fn to_bytes(&self, names: &VarMap) -> Result<Vec<u8>> {
        let names = Names::of(names);
        let mut file = StateFile::new(&FILE);
        file.insert(STEPS, &Tensor::new(self.steps.cast_signed(), &Device::Cpu)?);
        for (var, average) in &self.averages {
            let key = format!("{AVERAGE}.{}", file.name(&names, var)?);
            file.insert(key, average);
        }
        file.serialize()
    }

    /// Reads a file of [`save`](Self::save). On an error all is as before.
    ///
    /// # Errors
    /// If the file cannot be read or holds something else, or has other variables than this, or of another shape or type, or
    /// numbers that are not finite.
    pub fn load(&mut self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::read(path.as_ref(), |bytes| self.load_bytes(names, bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&mut self, names: &VarMap, bytes: &[u8]) -> Result<()> {
        let names = Names::of(names);
        let (steps, values) = state_file::parse(bytes, &FILE, |mut file| {
            let steps = match file.tensors.remove(STEPS) {
                Some(view) => state_file::count(&view.load(&Device::Cpu)?, "the number of updates")?,
                None => candle_core::bail!("the file has no `{STEPS}`"),
            };
            let owners = Owners::new(&names, &file, self.averages.iter().map(|(var, _)| var), "this average");
            let mut values = HashMap::new();
            for (key, view) in &file.tensors {
                let Some((AVERAGE, name)) = key.split_once('.') else {
                    candle_core::bail!("expected {}, found `{key}`", FILE.what)
                };
                let i = owners.find(name, "the average")?;
                let var = &self.averages[i].0;
                let value = checked(&format!("the average of `{name}`"), view, var, wide(var.dtype()))?;
                if values.insert(i, (var.clone(), value)).is_some() {
                    return Err(state_file::second_entry(name, "average", var));
                }
            }
            Ok((steps, values))
        })?;
        self.resume(steps, values.into_values())
    }
}

/// Variables whose storages are swapped with those of their averages. Dropped, it swaps them back.
struct Exchanged(Vec<(Var, Tensor)>);

impl Exchanged {
    fn new(averages: &[(Var, Tensor)]) -> Result<Self> {
        check_may_move(averages.iter().map(|(var, _)| var))?;
        let values = averages.iter().map(|(var, average)| Ok((var.clone(), average.to_dtype(var.dtype())?)));
        let values = values.collect::<Result<Vec<_>>>()?;
        let mut exchanged = Self(Vec::with_capacity(values.len()));
        for (var, value) in values {
            swap_storage(&var, &value)?;
            exchanged.0.push((var, value));
        }
        note_moved(exchanged.0.iter().map(|(var, _)| var));
        Ok(exchanged)
    }

    fn end(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        note_moved(self.0.iter().map(|(var, _)| var));
        self.0.drain(..).try_for_each(|(var, value)| swap_storage(&var, &value))
    }
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "a variable could not get its own value back from an average");
        }
    }
}
