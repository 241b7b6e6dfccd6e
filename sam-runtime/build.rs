//! Compiles the CUDA kernels to PTX, with the feature `cuda`: for the oldest architecture that CUDA 13 knows, which the
//! driver compiles for the GPU that it finds.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

const SOURCES: &str = "src/kernels/cuda/src";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=NVCC");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let nvcc = std::env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for name in ["sam", "nn"] {
        let status = Command::new(&nvcc)
            .args(["--ptx", "-O3", "-std=c++17", "-arch=compute_75", "-o"])
            .arg(out.join(name).with_extension("ptx"))
            .arg(format!("{SOURCES}/{name}.cu"))
            .status()
            .map_err(|error| format!("the CUDA compiler `{nvcc}` does not run ({error}): set NVCC to where it is"))?;
        if !status.success() {
            return Err(format!("`{nvcc}` cannot compile {name}.cu: {status}").into());
        }
    }
    Ok(())
}
