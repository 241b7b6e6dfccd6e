//! What a [`Sam`] keeps from step to step, and how it is saved and loaded.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Write as _};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor, TensorId, Var};
use candle_nn::VarMap;
use safetensors::tensor::TensorView;

use super::factor::LossFactor;
use super::{Combination, Direction, Mask, Schedule};
use crate::Sam;
use crate::checkpoint::{Contents, Kind, StateFile, checked, parse};
use crate::gradient::Gradient;
use crate::kernels::wide;
use crate::names::{Names, describe};

/// Changes when a step ends, and never halfway.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Steps so far.
    pub(crate) steps: u64,
    /// The learning rate, where somebody has said it.
    pub(crate) rate: Option<f64>,
    /// The mean of gradients that a direction follows.
    pub(crate) average: Kept,
    /// The last gradient, or what LookSAM adds to the plain ones.
    pub(crate) kept: Kept,
    /// The mean and variance of ‖g‖².
    pub(crate) moments: Option<(f64, f64)>,
    /// What is perturbed.
    pub(crate) mask: Kept,
    /// What a decoupled step is still to do.
    pub(crate) remainder: Kept,
    /// What the loss that it belongs to was multiplied by.
    pub(crate) factor: LossFactor,
}

/// A tensor for some variables, in an order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    pairs: Gradient,
    places: HashMap<TensorId, usize>,
}

impl Kept {
    pub(crate) fn new(pairs: Gradient) -> Self {
        let places = pairs.iter().enumerate().map(|(place, (var, _))| (var.id(), place)).collect();
        Self { pairs, places }
    }

    pub(crate) fn get(&self, var: &Var) -> Option<&Tensor> {
        self.places.get(&var.id()).map(|place| &self.pairs[*place].1)
    }

    /// This, with other tensors for these variables.
    pub(crate) fn with(&self, newer: Gradient) -> Self {
        let mut all = self.clone();
        for (var, value) in newer {
            if let Some(place) = all.places.get(&var.id()) {
                all.pairs[*place].1 = value;
            } else {
                all.places.insert(var.id(), all.pairs.len());
                all.pairs.push((var, value));
            }
        }
        all
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Var, Tensor)> {
        self.pairs.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What of this is finite, and in place of the rest what was there before, or zeros. Asks no device to answer.
    fn finite_or(self, before: &Self) -> Result<Self> {
        let choose = |(var, value): (Var, Tensor)| {
            if value.elem_count() == 0 {
                return Ok((var, value));
            }
            // 0 for finite numbers, and NaN for the others.
            let flag = (&value * 0.0)?.sum_all()?.broadcast_as(value.shape())?;
            let old = before.get(&var).map_or_else(|| value.zeros_like(), |old| old.to_dtype(value.dtype()))?;
            Ok((var, flag.eq(&flag)?.where_cond(&value, &old)?))
        };
        self.pairs.into_iter().map(choose).collect::<Result<_>>().map(Self::new)
    }

    fn is_on_cpu(&self) -> bool {
        self.pairs.iter().all(|(_, value)| value.device().is_cpu())
    }
}

const FILE: Kind = Kind { label: "sam-runtime sam state", what: "the state of a `Sam`", version: 1 };

const STEPS: &str = "steps";
const SEED: &str = "seed";
const RATE: &str = "rate";
const MOMENTS: &str = "moments";

const AVERAGE: &str = "average";
const KEPT: &str = "kept";
const MASK: &str = "mask";
const REMAINDER: &str = "remainder";

/// A counter beyond this is damaged: a step a microsecond would take it three centuries.
const MOST_STEPS: u64 = 1 << 53;

impl State {
    /// This state, after a step from `before`. On the CPU a step with numbers that are not finite was an error; elsewhere
    /// nobody looks, and such numbers would stay for good.
    pub(crate) fn after(self, before: &Self) -> Result<Self> {
        let gate = |new: Kept, old: &Kept| if new.is_on_cpu() { Ok(new) } else { new.finite_or(old) };
        Ok(Self {
            average: gate(self.average, &before.average)?,
            kept: gate(self.kept, &before.kept)?,
            remainder: gate(self.remainder, &Kept::default())?,
            ..self
        })
    }

    fn parts(&self) -> [(&'static str, &Kept); 4] {
        [(AVERAGE, &self.average), (KEPT, &self.kept), (MASK, &self.mask), (REMAINDER, &self.remainder)]
    }

    fn part_mut(&mut self, part: &str) -> Option<&mut Kept> {
        match part {
            AVERAGE => Some(&mut self.average),
            KEPT => Some(&mut self.kept),
            MASK => Some(&mut self.mask),
            REMAINDER => Some(&mut self.remainder),
            _ => None,
        }
    }

    pub(crate) fn to_bytes(&self, sam: &Sam, names: &VarMap) -> Result<Vec<u8>> {
        let names = Names::of(names);
        let mut file = StateFile::new(&FILE);
        for (piece, name) in pieces_with_memory(sam) {
            file.label(piece, name);
        }
        for (part, kept) in self.parts() {
            for (index, (var, value)) in kept.iter().enumerate() {
                // The index keeps the order of sums.
                let key = format!("{part}.{index}.{}", file.name(&names, var)?);
                file.insert(key, value);
            }
        }
        let whole = |number: u64| Tensor::new(number.cast_signed(), &Device::Cpu);
        file.insert(STEPS, &whole(self.steps)?);
        file.insert(SEED, &whole(sam.seed)?);
        if let Some(rate) = self.rate {
            file.insert(RATE, &Tensor::new(rate, &Device::Cpu)?);
        }
        if let Some((mean, variance)) = self.moments {
            file.insert(MOMENTS, &Tensor::new(&[mean, variance], &Device::Cpu)?);
        }
        file.serialize()
    }

    pub(crate) fn from_bytes(sam: &Sam, names: &VarMap, bytes: &[u8]) -> Result<Self> {
        let names = Names::of(names);
        parse(bytes, &FILE, |file| Self::from_file(sam, &names, file))
    }

    fn from_file(sam: &Sam, names: &Names, mut file: Contents<'_>) -> Result<Self> {
        check_pieces(sam, &file)?;
        let steps: i64 = required(&mut file, STEPS)?;
        let Some(steps) = u64::try_from(steps).ok().filter(|steps| *steps <= MOST_STEPS) else {
            candle_core::bail!("`{STEPS}` is {steps}: expected a number of steps from 0 to 2^53")
        };
        let seed = i64::cast_unsigned(required(&mut file, SEED)?);
        if seed != sam.seed {
            candle_core::bail!("it is the state of a `Sam` with seed {seed}, this one has {}", sam.seed)
        }
        let mut state = Self { steps, rate: number(&mut file, RATE)?, ..Self::default() };
        if state.rate.is_some_and(|rate| !rate.is_finite()) {
            candle_core::bail!("`{RATE}` is not finite: expected a learning rate")
        }
        if let Some(moments) = file.tensors.remove(MOMENTS) {
            state.moments = Some(moments_of(sam, &moments)?);
        }
        state.load_parts(sam, names, &file)?;
        Ok(state)
    }

    fn load_parts(&mut self, sam: &Sam, names: &Names, file: &Contents<'_>) -> Result<()> {
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
            let Some(kept) = self.part_mut(part) else { candle_core::bail!("expected {}, found `{part}`", FILE.what) };
            if !uses(sam, part) {
                candle_core::bail!("the file has `{part}`, which this `Sam` does not use: it is of another variant")
            }
            if !entries.keys().copied().eq(0..entries.len()) {
                candle_core::bail!("entries of `{part}` are missing: the file is damaged")
            }
            let mut seen = HashSet::new();
            if let Some((var, _)) = entries.values().find(|(var, _)| !seen.insert(var.id())) {
                candle_core::bail!("`{part}` has two entries for {}", describe(var))
            }
            *kept = Kept::new(entries.into_values().collect());
        }
        Ok(())
    }
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
    if !file.is_labelled() {
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
fn uses(sam: &Sam, part: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_not_remembered() {
        let vars = [1.0, 2.0, 3.0].map(|x| Var::new(&[x, x], &Device::Cpu).unwrap());
        let kept = |values: [[f64; 2]; 3]| {
            let pairs = vars.iter().zip(values);
            Kept::new(pairs.map(|(var, value)| (var.clone(), Tensor::new(&value, &Device::Cpu).unwrap())).collect())
        };
        let values = |kept: &Kept| kept.iter().map(|(_, value)| value.to_vec1().unwrap()).collect::<Vec<Vec<f64>>>();
        let new = kept([[1.0, 2.0], [f64::NAN, 4.0], [5.0, f64::INFINITY]]);
        let old = Kept::new(vec![(vars[1].clone(), Tensor::new(&[7.0, 8.0], &Device::Cpu).unwrap())]);
        assert_eq!(values(&new.finite_or(&old).unwrap()), [[1.0, 2.0], [7.0, 8.0], [0.0, 0.0]]);
    }
}
