//! How the state of a [`Sam`] is saved and loaded.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write as _};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarMap;
use safetensors::tensor::TensorView;

use super::Sam;
use crate::core::dtype::wide;
use crate::core::names::{Names, describe};
use crate::core::var_list::VarTensors;
use crate::optim::state_file::{self, Contents, Kind, StateFile, checked, parse};
use crate::variants::{Combination, Direction, Mask, Schedule, State};

impl Sam {
    /// Writes what it remembers from step to step to a safetensors file: counters, means, kept gradients, masks, under the
    /// names that the variables have in `names` (the first in alphabetical order, where one has several; any is found when it
    /// is loaded). Random numbers depend on the seed and the counters, so a run that is resumed from here is bitwise the same
    /// as one that was not interrupted. The file is replaced [atomically](crate::write_atomically).
    ///
    /// The file says which pieces of this `Sam` remember something, such as [`Direction::PreviousGradient`] or [`Combination::LookSam`]. It
    /// can be loaded by a `Sam` in which these are the same; their constants may be others.
    ///
    /// # Errors
    /// If a step of it is under way, a variable has no name, or the file cannot be written.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result, Tensor};
    /// # use candle_nn::VarMap;
    /// use sam_runtime::Sam;
    ///
    /// # fn main() -> Result<()> {
    /// # let file = std::env::temp_dir().join(format!("sam-doc-{}.safetensors", std::process::id()));
    /// let vars = VarMap::new();
    /// let w = vars.get(3, "w", candle_nn::Init::Const(1.), DType::F32, &Device::Cpu)?;
    /// let sam = Sam::f_sam();
    /// sam.loss(|| -> Result<Tensor> { w.sqr()?.sum_all() })?;
    /// sam.save(&vars, &file)?;
    /// let resumed = Sam::f_sam();
    /// resumed.load(&vars, &file)?;
    /// # std::fs::remove_file(file)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn save(&self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        state_file::write(path.as_ref(), &self.to_bytes(names)?)
    }

    /// What [`save`](Self::save) writes, for a checkpoint that holds more than this.
    ///
    /// # Errors
    /// If a step of it is under way, or a variable has no name.
    pub fn to_bytes(&self, names: &VarMap) -> Result<Vec<u8>> {
        self.memory.between_steps()?;
        let mut state = self.memory.state();
        state.remainder = state.factor.applied(&state.remainder)?;
        to_bytes(&state, self, names)
    }

    /// Reads a file of [`save`](Self::save). On an error all is as before. Files that do not say what they hold, from before
    /// 0.1.0 was released, are read as well, if this `Sam` has a use for all that is in them.
    ///
    /// # Errors
    /// If a step of it is under way, the file cannot be read or holds something else, if it is the state of another variant,
    /// of another seed or of other variables, or has numbers that cannot be right, such as NaN.
    pub fn load(&self, names: &VarMap, path: impl AsRef<Path>) -> Result<()> {
        self.memory.between_steps()?;
        state_file::read(path.as_ref(), |bytes| self.load_bytes(names, bytes))
    }

    /// As [`load`](Self::load), from the bytes of such a file.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&self, names: &VarMap, bytes: &[u8]) -> Result<()> {
        self.memory.between_steps()?;
        let state = from_bytes(self, names, bytes)?;
        self.memory.lock().state = state;
        Ok(())
    }
}

const FILE: Kind = Kind { label: "sam-runtime sam state", what: "the state of a `Sam`", version: 1 };

const STEPS: &str = "steps";
const SEED: &str = "seed";
const RATE: &str = "rate";
const MOMENTS: &str = "moments";
/// The label with the rank whose gradients are remembered.
const RANK: &str = "rank";

const AVERAGE: &str = "average";
/// The last gradient, or LookSAM's orthogonal part: a `Sam` has no use for both.
const KEPT: &str = "kept";
const MASK: &str = "mask";
const REMAINDER: &str = "remainder";

/// A counter beyond this is damaged: a step a microsecond would take it three centuries.
const MOST_STEPS: u64 = 1 << 53;

fn parts(state: &State) -> [(&'static str, &VarTensors); 5] {
    [
        (AVERAGE, &state.average),
        (KEPT, &state.previous),
        (KEPT, &state.orthogonal),
        (MASK, &state.mask),
        (REMAINDER, &state.remainder),
    ]
}

fn part_mut<'a>(state: &'a mut State, sam: &Sam, part: &str) -> Option<&'a mut VarTensors> {
    match part {
        AVERAGE => Some(&mut state.average),
        KEPT if matches!(sam.combination, Combination::LookSam { .. }) => Some(&mut state.orthogonal),
        KEPT => Some(&mut state.previous),
        MASK => Some(&mut state.mask),
        REMAINDER => Some(&mut state.remainder),
        _ => None,
    }
}

fn to_bytes(state: &State, sam: &Sam, names: &VarMap) -> Result<Vec<u8>> {
    let names = Names::of(names);
    let mut file = StateFile::new(&FILE);
    for (piece, name) in pieces_with_memory(sam) {
        file.label(piece, name);
    }
    for (part, kept) in parts(state) {
        for (index, (var, value)) in kept.iter().enumerate() {
            // The index keeps the order of sums.
            let key = format!("{part}.{index}.{}", file.name(&names, var)?);
            file.insert(key, value);
        }
    }
    if let Some(rank) = rank_of_state(sam) {
        file.label(RANK, rank);
    }
    let whole = |number: u64| Tensor::new(number.cast_signed(), &Device::Cpu);
    file.insert(STEPS, &whole(state.steps)?);
    file.insert(SEED, &whole(sam.seed)?);
    if let Some(rate) = state.rate {
        file.insert(RATE, &Tensor::new(rate, &Device::Cpu)?);
    }
    if let Some((mean, variance)) = state.moments {
        file.insert(MOMENTS, &Tensor::new(&[mean, variance], &Device::Cpu)?);
    }
    file.serialize()
}

fn from_bytes(sam: &Sam, names: &VarMap, bytes: &[u8]) -> Result<State> {
    let names = Names::of(names);
    parse(bytes, &FILE, |file| from_file(sam, &names, file))
}

fn from_file(sam: &Sam, names: &Names, mut file: Contents<'_>) -> Result<State> {
    check_pieces(sam, &file)?;
    if let Some(found) = file.label(RANK)
        && rank_of_state(sam).as_deref() != Some(found)
    {
        tracing::warn!(
            "the state of a `Sam` is that of rank {found}, which remembered the gradients of its own samples"
        );
    }
    let steps: i64 = required(&mut file, STEPS)?;
    let Some(steps) = u64::try_from(steps).ok().filter(|steps| *steps <= MOST_STEPS) else {
        candle_core::bail!("`{STEPS}` is {steps}: expected a number of steps from 0 to 2^53")
    };
    let seed = i64::cast_unsigned(required(&mut file, SEED)?);
    if seed != sam.seed {
        candle_core::bail!("it is the state of a `Sam` with seed {seed}, this one has {}", sam.seed)
    }
    let mut state = State { steps, rate: number(&mut file, RATE)?, ..State::default() };
    if state.rate.is_some_and(|rate| !rate.is_finite()) {
        candle_core::bail!("`{RATE}` is not finite: expected a learning rate")
    }
    if let Some(moments) = file.tensors.remove(MOMENTS) {
        state.moments = Some(moments_of(sam, &moments)?);
    }
    load_parts(&mut state, sam, names, &file)?;
    Ok(state)
}

fn load_parts(state: &mut State, sam: &Sam, names: &Names, file: &Contents<'_>) -> Result<()> {
    let mut parts: BTreeMap<&str, BTreeMap<usize, (Var, Tensor)>> = BTreeMap::new();
    for (key, view) in &file.tensors {
        let mut words = key.splitn(3, '.');
        let (part, index, name) = (words.next(), words.next(), words.next());
        let (Some(part), Some(Ok(index)), Some(name)) = (part, index.map(str::parse), name) else {
            candle_core::bail!("expected {}, found `{key}`", FILE.what)
        };
        let Some(var) = names.find(&file.all_names(name))? else {
            candle_core::bail!("the state of `{name}` belongs to no variable")
        };
        let dtype = if part == AVERAGE { wide(var.dtype()) } else { var.dtype() };
        let value = checked(&format!("the state of `{name}`"), view, var, dtype)?.to_device(var.device())?;
        if parts.entry(part).or_default().insert(index, (var.clone(), value)).is_some() {
            candle_core::bail!("there are two entries `{part}.{index}`: the file is damaged")
        }
    }
    for (part, entries) in parts {
        let Some(kept) = part_mut(state, sam, part) else {
            candle_core::bail!("expected {}, found `{part}`", FILE.what)
        };
        if !uses_part(sam, part) {
            candle_core::bail!("the file has `{part}`, which this `Sam` does not use: it is of another variant")
        }
        if !entries.keys().copied().eq(0..entries.len()) {
            candle_core::bail!("entries of `{part}` are missing: the file is damaged")
        }
        let mut seen = HashSet::new();
        if let Some((var, _)) = entries.values().find(|(var, _)| !seen.insert(var.id())) {
            candle_core::bail!("`{part}` has two entries for {}", describe(var))
        }
        *kept = VarTensors::new(entries.into_values().collect());
    }
    Ok(())
}

/// The pieces of a `Sam` that remember something, each with the name of what it is. State is for the same pieces only.
fn pieces_with_memory(sam: &Sam) -> BTreeMap<&'static str, String> {
    let pieces = [
        ("direction", sam.direction.has_memory().then(|| variant_name(&sam.direction))),
        ("mask", sam.mask.filter(|mask| mask.has_memory()).map(|mask| variant_name(&mask))),
        ("schedule", sam.schedule.has_memory().then(|| variant_name(&sam.schedule))),
        ("combination", sam.combination.has_memory().then(|| variant_name(&sam.combination))),
    ];
    pieces.into_iter().filter_map(|(piece, name)| Some((piece, name?))).collect()
}

/// Which rank's gradients this remembers, if each has its own.
fn rank_of_state(sam: &Sam) -> Option<String> {
    let comm = sam.comm.as_ref().filter(|comm| comm.size() > 1)?;
    (sam.has_memory() && !sam.has_synchronized_ascent).then(|| format!("{} of {}", comm.rank(), comm.size()))
}

/// `LookSam` of `LookSam { every: 5, alpha: 0.7 }`.
fn variant_name(piece: &impl fmt::Debug) -> String {
    struct FirstWord(String);
    impl fmt::Write for FirstWord {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            self.0.push_str(word);
            // Ends here: what the variant holds may be a whole model.
            if word.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut name = FirstWord(String::new());
    let _ended_early = write!(name, "{piece:?}");
    name.0
}

const PIECES: [&str; 4] = ["direction", "mask", "schedule", "combination"];

/// The name of a piece, given one that a file may have from before the pieces got the names of today.
fn current_name(name: &str) -> &str {
    match name {
        "Average" => "Ema",
        "Residual" => "MinusEma",
        "Last" => "PreviousGradient",
        "Largest" => "TopK",
        "Sharp" => "GradNormAdaptive",
        "Look" => "LookSam",
        name => name,
    }
}

fn check_pieces(sam: &Sam, file: &Contents<'_>) -> Result<()> {
    if !file.is_labeled() {
        return Ok(());
    }
    let own = pieces_with_memory(sam);
    for piece in PIECES {
        let found = file.label(piece).or_else(|| (piece == "schedule").then(|| file.label("when")).flatten());
        let (found, expected) = (found.map(current_name), own.get(piece).map(String::as_str));
        if found != expected {
            let say = |name: Option<&str>| {
                name.map_or_else(|| "none that remembers anything".to_owned(), |name| format!("`{name}`"))
            };
            candle_core::bail!(
                "it is the state of another variant: its {piece} is {}, that of this `Sam` {}",
                say(found),
                say(expected)
            )
        }
    }
    Ok(())
}

/// Whether a `Sam` has a piece that keeps its memory there.
fn uses_part(sam: &Sam, part: &str) -> bool {
    match part {
        AVERAGE => matches!(sam.direction, Direction::Ema { .. } | Direction::MinusEma { .. }),
        KEPT => {
            matches!(sam.direction, Direction::PreviousGradient)
                || matches!(sam.combination, Combination::LookSam { .. })
        }
        MASK => matches!(sam.mask, Some(Mask::TopK { .. })),
        REMAINDER => matches!(sam.combination, Combination::WsamDecoupled { .. }),
        _ => false,
    }
}

/// Takes a number out of a file.
fn number<T: candle_core::WithDType>(file: &mut Contents<'_>, key: &str) -> Result<Option<T>> {
    let Some(view) = file.tensors.remove(key) else { return Ok(None) };
    if !view.shape().is_empty() || view.dtype() != T::DTYPE.into() {
        candle_core::bail!(
            "`{key}` is {:?} of shape {:?}: expected one number of type {:?}",
            view.dtype(),
            view.shape(),
            T::DTYPE
        )
    }
    view.load(&Device::Cpu)?.to_scalar().map(Some)
}

fn required<T: candle_core::WithDType>(file: &mut Contents<'_>, key: &str) -> Result<T> {
    match number(file, key)? {
        Some(number) => Ok(number),
        None => candle_core::bail!("there is no `{key}`: expected {}", FILE.what),
    }
}

fn moments_of(sam: &Sam, view: &TensorView<'_>) -> Result<(f64, f64)> {
    if !matches!(sam.schedule, Schedule::GradNormAdaptive { .. }) {
        candle_core::bail!("the file has `{MOMENTS}`, which this `Sam` does not use: it is of another variant")
    }
    if view.shape() != [2] || view.dtype() != DType::F64.into() {
        candle_core::bail!(
            "`{MOMENTS}` is {:?} of shape {:?}: expected two numbers of type F64",
            view.dtype(),
            view.shape()
        )
    }
    match view.load(&Device::Cpu)?.to_vec1::<f64>()?[..] {
        [mean, variance] if [mean, variance].iter().all(|x| x.is_finite() && *x >= 0.0) => Ok((mean, variance)),
        ref found => {
            candle_core::bail!("`{MOMENTS}` are {found:?}: expected a mean and a variance, finite and 0 or more")
        }
    }
}
