//! What has been measured so far, a line for each, so that interrupted work goes on where it was.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::util::hex::hex;
use crate::util::sha256::sha256;
use crate::util::stop::Stop;

/// A file of measured values by name. The first line says what they are of.
#[derive(Debug)]
pub struct PointLog {
    /// None: nothing is kept.
    file: Option<(File, PathBuf)>,
    known: HashMap<String, Value>,
    stop: Stop,
}

impl PointLog {
    /// Without a file, for work that takes seconds.
    #[must_use]
    pub fn in_memory(stop: &Stop) -> Self {
        Self { file: None, known: HashMap::new(), stop: stop.clone() }
    }

    /// Opens a file, or starts it. `about` is what the values depend on.
    ///
    /// # Errors
    /// If it cannot be written, or its values are of something else.
    pub fn open(path: &Path, about: &Value, stop: &Stop) -> Result<Self> {
        let cannot = || format!("cannot use {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(cannot)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(cannot)?;
        file.try_lock().with_context(|| format!("{} is in use by another process", path.display()))?;
        let text = fs::read_to_string(path).with_context(cannot)?;
        // A line that was not written to its end is measured again.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).with_context(cannot)?;
        }
        let known = known(path, &text, about)?;
        if whole == 0 {
            writeln!(file, "{about}").with_context(cannot)?;
        }
        Ok(Self { file: Some((file, path.to_owned())), known, stop: stop.clone() })
    }

    /// The values of a file, without writing to it; none, if there is no file.
    ///
    /// # Errors
    /// If it cannot be read, or its values are of something else than `about`.
    pub fn read(path: &Path, about: &Value) -> Result<HashMap<String, Value>> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(HashMap::new()),
            text => known(path, &text.with_context(|| format!("cannot read {}", path.display()))?, about),
        }
    }

    /// The value of this name: as it was measured before, or now. `None` if the process was told to stop.
    ///
    /// # Errors
    /// Those of `measure`, and if the file cannot be written.
    pub fn value(&mut self, name: &str, measure: impl FnOnce() -> Result<Value>) -> Result<Option<Value>> {
        if let Some(value) = self.known.get(name) {
            return Ok(Some(value.clone()));
        }
        if self.stop.is_told() {
            return Ok(None);
        }
        let value = measure().with_context(|| format!("cannot measure {name}"))?;
        if let Some((file, path)) = &mut self.file {
            let line = json!({ "name": name, "value": value });
            writeln!(file, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.known.insert(name.to_owned(), value.clone());
        Ok(Some(value))
    }
}

/// The values of the whole lines of a file.
fn known(path: &Path, text: &str, about: &Value) -> Result<HashMap<String, Value>> {
    let cannot = || format!("cannot use {}", path.display());
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut lines = text[..whole].lines().map(serde_json::from_str::<Value>);
    if let Some(first) = lines.next() {
        let first = first.with_context(cannot)?;
        ensure!(
            first == *about,
            "{} has values of other networks or settings: choose another --out, or remove it; it has {first}, expected {about}",
            path.display()
        );
    }
    lines
        .map(|line| {
            let line = line.with_context(cannot)?;
            Ok((line["name"].as_str().with_context(cannot)?.to_owned(), line["value"].clone()))
        })
        .collect()
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn digest_of(path: &Path) -> Result<String> {
    let read = || sha256(File::open(path)?);
    let (_, digest) = read().with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_work_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/points.jsonl");
        let open = |about: i32| PointLog::open(&path, &json!(about), &Stop::default());
        let mut log = open(1).unwrap();
        assert_eq!(log.value("a", || Ok(json!(0.1))).unwrap(), Some(json!(0.1)));
        assert!(open(1).unwrap_err().to_string().contains("in use by another process"));
        drop(log);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"name\": \"b\", \"val")).unwrap();
        let mut log = open(1).unwrap();
        assert_eq!(log.value("a", || panic!("it is known")).unwrap(), Some(json!(0.1)));
        assert_eq!(log.value("b", || Ok(json!(null))).unwrap(), Some(json!(null)));
        drop(log);
        assert!(open(2).unwrap_err().to_string().contains("other networks or settings"));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
