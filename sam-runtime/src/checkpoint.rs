//! Tensors in safetensors files, which are there whole or not at all.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;

use candle_core::{Device, Result, Tensor, TensorId, safetensors};
use candle_nn::VarMap;

/// Writes the file beside itself and then moves it into its place.
pub(crate) fn write(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        // Made like any other file, where tempfile's own would be for nobody else to read.
        let file = tempfile::Builder::new().make_in(folder, |path| File::create_new(path))?;
        safetensors::save(tensors, file.path())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| error.with_path(path))
}

/// Reads a file and makes something of it; an error of either says which file.
pub(crate) fn read<T>(path: &Path, make: impl FnOnce(HashMap<String, Tensor>) -> Result<T>) -> Result<T> {
    safetensors::load(path, &Device::Cpu).and_then(make).map_err(|error| error.with_path(path))
}

/// The names of variables.
pub(crate) fn names_of(vars: &VarMap) -> HashMap<TensorId, String> {
    let vars = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    vars.iter().map(|(name, var)| (var.id(), name.clone())).collect()
}
