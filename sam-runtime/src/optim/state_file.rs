//! Safetensors files that say what they hold.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Error, Result, Tensor, Var};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorInfo, TensorView};

use crate::core::atomic_file::write_atomically;
use crate::core::identity::storage_of;
use crate::core::names::{Names, describe};
use crate::kernels::cpu::reduce::is_finite;

/// What a file holds. Files of other kinds are refused.
pub(crate) struct Kind {
    /// For the file.
    pub(crate) label: &'static str,
    /// For errors.
    pub(crate) what: &'static str,
    /// The newest version, and the one that is written. All from 1 on can be read.
    pub(crate) version: u32,
}

const KIND: &str = "kind";
const VERSION: &str = "version";
/// The prefix of the label that names a variable's other names; its value is the name that it is saved under.
const ALSO: &str = "also:";

/// A state file to be written.
pub(crate) struct StateFile {
    labels: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl StateFile {
    pub(crate) fn new(kind: &Kind) -> Self {
        let labels = [(KIND, kind.label.to_owned()), (VERSION, kind.version.to_string())];
        Self { labels: labels.map(|(key, value)| (key.to_owned(), value)).into(), tensors: BTreeMap::new() }
    }

    /// Says something about the contents.
    pub(crate) fn label(&mut self, key: &str, value: String) {
        self.labels.insert(key.to_owned(), value);
    }

    pub(crate) fn insert(&mut self, key: impl Into<String>, value: &Tensor) {
        self.tensors.insert(key.into(), value.detach());
    }

    /// The name that the state of a variable is saved under. Its other names are noted in the file.
    pub(crate) fn name<'a>(&mut self, names: &'a Names, var: &Var) -> Result<&'a str> {
        let Some((name, others)) = names.names(var) else {
            candle_core::bail!(
                "{} has no name to save its state under: expected a map with all variables",
                describe(var)
            )
        };
        for other in others {
            self.label(&format!("{ALSO}{other}"), name.clone());
        }
        Ok(name)
    }

    /// The same contents give the same bytes: the header is written here, since safetensors gives labels in an order that
    /// changes from process to process.
    pub(crate) fn serialize(self) -> Result<Vec<u8>> {
        // The widest first, so that all are aligned.
        let mut tensors: Vec<_> = self.tensors.into_iter().collect();
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
        let labels = serde_json::to_string(&self.labels).map_err(Error::wrap)?;
        let mut header = format!("{{\"__metadata__\":{labels}");
        let mut end = 0;
        for (key, tensor) in &tensors {
            let start = end;
            end += tensor.elem_count() * tensor.dtype().size_in_bytes();
            let (dtype, shape) = (tensor.dtype().into(), tensor.dims().to_vec());
            let key = serde_json::to_string(key).map_err(Error::wrap)?;
            let info =
                serde_json::to_string(&TensorInfo { dtype, shape, data_offsets: (start, end) }).map_err(Error::wrap)?;
            header.extend([",", &key, ":", &info]);
        }
        header.push('}');
        let padding = header.len().next_multiple_of(8) - header.len();
        header.extend(std::iter::repeat_n(' ', padding));

        let mut file = Vec::with_capacity(8 + header.len() + end);
        file.extend_from_slice(&(header.len() as u64).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        for (_, tensor) in &tensors {
            file.extend_from_slice(&safetensors::View::data(&tensor.to_device(&Device::Cpu)?));
        }
        Ok(file)
    }
}

/// A state file that is being read.
pub(crate) struct Contents<'a> {
    /// None in files from before there were labels.
    labels: Option<HashMap<String, String>>,
    /// In the order of their keys.
    pub(crate) tensors: BTreeMap<String, TensorView<'a>>,
}

/// Replaces the file at this path. The error says which file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes).map_err(|error| Error::from(error).with_path(path))
}

/// Calls `make` with the bytes of a file. Every error says which file.
pub(crate) fn read<T>(path: &Path, make: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    let read = || make(&std::fs::read(path)?);
    read().map_err(|error: Error| error.with_path(path))
}

/// Makes something of the bytes of a file of a kind.
pub(crate) fn parse<T>(bytes: &[u8], kind: &Kind, make: impl FnOnce(Contents<'_>) -> Result<T>) -> Result<T> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let labels = header.metadata().clone();
    let tensors = SafeTensors::deserialize(bytes)?.tensors().into_iter().collect();
    let contents = Contents { labels, tensors };
    contents.check_kind(kind)?;
    make(contents)
}

impl Contents<'_> {
    fn check_kind(&self, kind: &Kind) -> Result<()> {
        let Some(labels) = &self.labels else { return Ok(()) };
        match labels.get(KIND) {
            Some(found) if found == kind.label => {}
            Some(found) => candle_core::bail!("expected {}, found a file of kind `{found}`", kind.what),
            None => candle_core::bail!("expected {}, found a file of another program", kind.what),
        }
        let found = labels.get(VERSION).map_or("", String::as_str);
        match found.parse::<u32>() {
            Ok(version) if (1..=kind.version).contains(&version) => Ok(()),
            _ => candle_core::bail!(
                "the file is of version `{found}`, this release reads versions 1 to {}: it was written by a newer \
                 release, or is damaged",
                kind.version
            ),
        }
    }

    /// Whether the file says what it holds.
    pub(crate) fn is_labeled(&self) -> bool {
        self.labels.is_some()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// This name, and the others that its variable had when the file was saved.
    pub(crate) fn all_names<'b>(&'b self, name: &'b str) -> Vec<&'b str> {
        let labels = self.labels.iter().flatten();
        let mut others: Vec<_> =
            labels.filter(|(_, saved)| *saved == name).filter_map(|(key, _)| key.strip_prefix(ALSO)).collect();
        others.sort_unstable();
        [&[name], &others[..]].concat()
    }
}

/// Finds the variables that the tensors of a file belong to.
pub(crate) struct Owners<'a> {
    names: &'a Names,
    file: &'a Contents<'a>,
    indices: HashMap<usize, usize>,
    whose: &'static str,
}

impl<'a> Owners<'a> {
    /// Among these variables. `whose`: for errors.
    pub(crate) fn new<'v>(
        names: &'a Names,
        file: &'a Contents<'a>,
        vars: impl Iterator<Item = &'v Var>,
        whose: &'static str,
    ) -> Self {
        let indices = vars.enumerate().map(|(i, var)| (storage_of(var), i)).collect();
        Self { names, file, indices, whose }
    }

    /// The index of the variable that has this name, or had it as one of several. `what`: what the file has of it.
    pub(crate) fn find(&self, name: &str, what: &str) -> Result<usize> {
        let var = self.names.find(&self.file.all_names(name))?;
        match var.and_then(|var| self.indices.get(&storage_of(var))) {
            Some(i) => Ok(*i),
            None => candle_core::bail!("{what} of `{name}` belongs to no variable of {}", self.whose),
        }
    }
}

/// The error for a second entry of one variable.
pub(crate) fn second_entry(name: &str, what: &str, var: &Var) -> Error {
    let var = describe(var);
    Error::msg(format!("`{name}` is the second {what} of {var}: its names are those of two variables in the file")).bt()
}

/// A number of steps from a file. A counter beyond 2^53 is damaged: a step a microsecond would take it three centuries.
pub(crate) fn count(value: &Tensor, what: &str) -> Result<u64> {
    let number = if value.rank() == 0 && value.dtype() == DType::I64 { value.to_scalar::<i64>()? } else { -1 };
    match u64::try_from(number) {
        Ok(number) if number <= 1 << 53 => Ok(number),
        _ => candle_core::bail!("{what} is not a number from 0 to 2^53: the file is damaged"),
    }
}

/// A tensor of a file, on the CPU, once it is known to have this shape and type and to be finite. `what`: for errors.
pub(crate) fn checked(what: &str, view: &TensorView<'_>, var: &Tensor, dtype: DType) -> Result<Tensor> {
    if view.shape() != var.dims() {
        candle_core::bail!("{what} has shape {:?}, its variable {:?}", view.shape(), var.dims())
    }
    match DType::try_from(view.dtype()) {
        Ok(found) if found == dtype => {}
        Ok(found) => candle_core::bail!("{what} is {found:?}, its variable {:?}: expected {dtype:?}", var.dtype()),
        Err(_) => {
            candle_core::bail!("{what} is {:?}, its variable {:?}: expected {dtype:?}", view.dtype(), var.dtype())
        }
    }
    let value = view.load(&Device::Cpu)?;
    if !is_finite([&value].into_iter())? {
        candle_core::bail!("{what} is not finite: the run that saved it had diverged, or the file is damaged")
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: Kind = Kind { label: "test", what: "a test", version: 2 };

    #[test]
    fn the_same_contents_give_the_same_bytes_and_can_be_read_back() {
        let make = || {
            let mut file = StateFile::new(&TEST);
            for i in 0..20 {
                file.label(&format!("label {i}"), format!("\"{i}\"\n"));
            }
            file.insert("h", &Tensor::new(&[half::f16::ONE; 3], &Device::Cpu).unwrap());
            file.insert("f", &Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap().t().unwrap());
            file.insert("count", &Tensor::new(7i64, &Device::Cpu).unwrap());
            file.insert("nothing", &Tensor::zeros((0, 3), DType::F64, &Device::Cpu).unwrap());
            file.serialize().unwrap()
        };
        let bytes = make();
        assert_eq!(bytes, make());
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["label 3"], "\"3\"\n");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| file.tensor(name).unwrap().load(&Device::Cpu).unwrap();
        assert_eq!(tensor("f").to_vec2::<f32>().unwrap(), [[1., 3.], [2., 4.]]);
        assert_eq!(tensor("count").to_scalar::<i64>().unwrap(), 7);
        assert_eq!(tensor("h").to_vec1::<half::f16>().unwrap(), [half::f16::ONE; 3]);
        assert_eq!(tensor("nothing").dims(), [0, 3]);
    }

    #[test]
    fn kinds_and_versions_are_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let write = |file: StateFile| write(&path, &file.serialize().unwrap()).unwrap();
        let load = |kind: &Kind| read(&path, |bytes| parse(bytes, kind, |_| Ok(()))).map_err(|error| error.to_string());
        write(StateFile::new(&TEST));
        load(&TEST).unwrap();
        load(&Kind { version: 3, ..TEST }).unwrap();
        let error = load(&Kind { version: 1, ..TEST }).unwrap_err();
        assert!(error.contains("version `2`") && error.contains("1 to 1"), "{error}");
        let error = load(&Kind { label: "other", what: "the other", ..TEST }).unwrap_err();
        assert!(error.contains("expected the other, found a file of kind `test`"), "{error}");
        for version in ["0", "-1", "", "two", "99999999999999999999"] {
            let mut file = StateFile::new(&TEST);
            file.label(VERSION, version.to_owned());
            write(file);
            assert!(load(&TEST).unwrap_err().contains(&format!("version `{version}`")));
        }
    }
}
