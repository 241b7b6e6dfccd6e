//! Generates `shared.rs` from what the CUDA kernels share with the host. With the feature `cuda` it also compiles the
//! kernels to PTX, for the oldest architecture that CUDA 13 knows: the driver compiles that for the GPU that it finds.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = "src/kernels/cuda/src";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCES}");
    println!("cargo::rerun-if-env-changed=NVCC");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("shared.rs"), to_rust(&std::fs::read_to_string(format!("{SOURCES}/shared.h"))?)?)?;
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile(&out)?;
    }
    Ok(())
}

/// Compiles every `.cu` file, and writes `modules.rs`: a table of their names, kernels and PTX.
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
        let source = std::fs::read_to_string(&file)?;
        let kernels: Vec<_> = kernels(&source).collect();
        let ptx = format!(r#"include_str!(concat!(env!("OUT_DIR"), "/{name}.ptx"))"#);
        writeln!(modules, "    (\"{name}\", &{kernels:?}, {ptx}),")?;
    }
    std::fs::write(out.join("modules.rs"), format!("const MODULES: &[(&str, &[&str], &str)] = &[\n{modules}];\n"))?;
    Ok(())
}

/// The names of the kernels of a source.
fn kernels(source: &str) -> impl Iterator<Item = &str> {
    source.split("__global__ void ").skip(1).filter_map(|rest| {
        let rest = rest.strip_prefix("__launch_bounds__(").map_or(Some(rest), |rest| Some(rest.split_once(')')?.1))?;
        Some(rest.trim_start().split_once('(')?.0)
    })
}

/// The declarations of `shared.h` in Rust: sizes become `usize`, enumerators `u32`, pointers in structs `u64`.
fn to_rust(header: &str) -> Result<String, Box<dyn Error>> {
    let (mut rust, mut docs) = (String::new(), String::new());
    for line in header.lines().map(str::trim) {
        if line.is_empty() || line == "#pragma once" || line.starts_with("typedef ") {
            docs.clear();
        } else if let Some(comment) = line.strip_prefix("//") {
            writeln!(docs, "///{comment}")?;
        } else {
            let declaration = declaration(line).ok_or_else(|| format!("shared.h: unknown form: {line}"))?;
            rust.extend([&*std::mem::take(&mut docs), &declaration]);
        }
    }
    Ok(rust)
}

fn declaration(line: &str) -> Option<String> {
    let mut rust = String::new();
    if let Some(constant) = line.strip_prefix("constexpr ") {
        let (name, value) = constant.strip_suffix(';')?.split_once(' ')?.1.split_once(" = ")?;
        writeln!(rust, "pub(crate) const {name}: usize = {value};").ok()?;
    } else if let Some(enumeration) = line.strip_prefix("enum ") {
        let names = enumeration.split_once(" : u32 { ")?.1.strip_suffix(" };")?;
        for (code, name) in names.split(", ").enumerate() {
            writeln!(rust, "pub(crate) const {name}: u32 = {code};").ok()?;
        }
    } else if let Some(name) = line.strip_prefix("struct ") {
        let name = name.strip_suffix(" {")?;
        writeln!(rust, "#[derive(Clone, Copy, Debug)]\n#[repr(C)]\npub(crate) struct {name} {{").ok()?;
    } else if line == "};" {
        rust.push_str("}\n");
    } else {
        let types = [("u32 ", "u32"), ("u64 ", "u64"), ("double ", "f64"), ("const void ", "u64")];
        let (prefix, ty) = types.into_iter().find(|(prefix, _)| line.starts_with(prefix))?;
        for name in line[prefix.len()..].strip_suffix(';')?.split(", ") {
            writeln!(rust, "pub(crate) {}: {ty},", name.trim_start_matches('*')).ok()?;
        }
    }
    Some(rust)
}
