//! Compiles the CUDA kernels to PTX, with the feature `cuda`: for the oldest architecture that CUDA 13 knows, which the
//! driver compiles for the GPU that it finds.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "src/kernels/cuda/src";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=NVCC");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile(&PathBuf::from(std::env::var("OUT_DIR")?))?;
    }
    Ok(())
}

/// Compiles every `.cu` file, and writes `modules.rs`: a table of their names and PTX.
fn compile(out: &Path) -> Result<(), Box<dyn Error>> {
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let mut files = std::fs::read_dir(SOURCES)?.map(|file| Ok(file?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    let mut modules = String::new();
    for file in files {
        let name = file.file_stem().and_then(|name| name.to_str()).ok_or("expected an ASCII file name")?;
        let ptx = out.join(name).with_extension("ptx");
        let status = Command::new(&nvcc)
            .args(["--ptx", "-O3", "-std=c++17", "-arch=compute_75", "-o"])
            .args([&ptx, &file])
            .status()
            .map_err(|error| format!("the CUDA compiler `{nvcc}` does not run ({error}): set NVCC to its path"))?;
        if !status.success() {
            return Err(format!("`{nvcc}` cannot compile {}: {status}", file.display()).into());
        }
        writeln!(modules, r#"    ("{name}", include_str!(concat!(env!("OUT_DIR"), "/{name}.ptx"))),"#)?;
    }
    std::fs::write(out.join("modules.rs"), format!("const MODULES: &[(&str, &str)] = &[\n{modules}];\n"))?;
    Ok(())
}
