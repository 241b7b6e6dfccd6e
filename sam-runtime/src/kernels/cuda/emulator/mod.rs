//! Tests of the kernels without a GPU. A C++ compiler compiles their source, with `emulate.h` included first; blocks
//! run one by one, and results are compared with f64. Skipped, with a message, if there is no compiler.

mod activation;
mod attention;
mod batch_norm;
mod branch_mix;
mod channels;
mod cross_entropy;
mod depthwise;
mod dropout;
mod elementwise;
mod embedding;
mod group_norm;
mod im2col;
mod layer_norm;
mod optim;
mod params;
mod pool;
mod rnn;
mod rotary_emb;
mod softmax_dim;
mod upsample;

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Shape};
use half::{bf16, f16};
use libloading::{Library, Symbol};

use super::launch::{KernelArg, Launcher, Scratch, to_u32};
use crate::core::image_layout::ImageLayout;

type Run = unsafe extern "C" fn(*const c_char, c_uint, *mut *mut c_void, *const c_uint, c_uint, c_int) -> c_int;

/// None if there is no compiler.
static LIBRARY: LazyLock<Option<Library>> = LazyLock::new(compile);

fn compile() -> Option<Library> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda/src");
    let mut program = String::new();
    let mut entries = String::new();
    for file in kernel_files(&sources) {
        writeln!(program, "#include \"{}\"", file.display()).expect("a string can be written to");
        for name in kernels(&std::fs::read_to_string(file).expect("a source can be read")) {
            write!(entries, "{{\"{name}\", Call<{name}>::count, Call<{name}>::with, Call<{name}>::sizes}},")
                .expect("likewise");
        }
    }
    write!(
        program,
        "static const Entry entries[] = {{{entries}}};\n\
         extern \"C\" int run(const char *name, unsigned blocks, void **arguments, const unsigned *sizes,\n\
         unsigned count, int descending) {{\n\
         return launch(entries, sizeof entries / sizeof *entries, name, blocks, arguments, count, descending, sizes); }}\n"
    )
    .expect("likewise");
    let [source, library] = ["kernels.cpp", "kernels.so"].map(|name| folder.path().join(name));
    std::fs::write(&source, program).expect("a file in a fresh folder can be written");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-include"])
        .arg(sources.join("../emulator/emulate.h"))
        .arg("-I")
        .arg(&sources)
        .arg("-o")
        .args([&library, &source])
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: there is no C++ compiler `{compiler}` to run the CUDA kernels with");
        return None;
    };
    assert!(output.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the library's initializers are only those of its static data.
    Some(unsafe { Library::new(&library) }.expect("what has just been compiled can be loaded"))
}

/// Every `.cu` file of the folder, in order.
fn kernel_files(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).expect("the sources are there");
    let mut files: Vec<_> = files.map(|file| file.expect("the sources are there").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    files
}

/// The names of the kernels in a source.
fn kernels(source: &str) -> Vec<&str> {
    let names = source.split("__global__ void ").skip(1).map(|rest| {
        let name =
            rest.strip_prefix("__launch_bounds__").and_then(|rest| rest.split_once(')')).map_or(rest, |(_, name)| name);
        name.trim_start().split('(').next().unwrap_or_default()
    });
    names.collect()
}

/// Runs the threads of a block, and the blocks, in ascending or descending order.
struct Emulator {
    run: Symbol<'static, Run>,
    scratch: HashMap<Scratch, Vec<u64>>,
    descending: bool,
}

/// One emulator for each order, or none without a compiler.
fn emulators() -> Vec<Emulator> {
    let Some(library) = &*LIBRARY else { return Vec::new() };
    let launcher = |descending| Emulator {
        // SAFETY: `compile` defines the function with this type.
        run: unsafe { library.get(b"run") }.expect("the library has the function that was written for it"),
        scratch: HashMap::new(),
        descending,
    };
    vec![launcher(false), launcher(true)]
}

/// The address and the size of an argument.
fn argument<T>(x: &mut T) -> (*mut c_void, c_uint) {
    (std::ptr::from_mut(x).cast(), size_of::<T>() as c_uint)
}

impl Launcher for Emulator {
    fn launch(&mut self, kernel: &'static str, blocks: usize, args: &[KernelArg<'_>]) -> Result<()> {
        // Shared memory is static data of the library, so only one launch may run at a time.
        static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut args = args.to_vec();
        let of = |arg: &mut KernelArg<'_>| match arg {
            KernelArg::U32(x) => argument(x),
            KernelArg::U64(x) => argument(x),
            KernelArg::F64(x) => argument(x),
            KernelArg::TableChunk(x) => (std::ptr::from_ref(*x).cast_mut().cast(), size_of_val(*x) as c_uint),
            KernelArg::Channels(x) => argument(x),
            KernelArg::Affine(x) => argument(x),
            KernelArg::Pool(x) => argument(x),
            KernelArg::Group(x) => argument(x),
            KernelArg::Conv(x) => argument(x),
            KernelArg::Attention(x) => argument(x),
            KernelArg::Heads(x) => argument(x),
            KernelArg::Mask(x) => argument(x),
        };
        let (mut pointers, sizes): (Vec<*mut c_void>, Vec<c_uint>) = args.iter_mut().map(of).unzip();
        let (name, blocks) = (CString::new(kernel).expect("a kernel's name has no 0"), to_u32(blocks)?);
        let (pointers, count) = (pointers.as_mut_ptr(), to_u32(args.len())?);
        // SAFETY: the arguments are alive, and the callee checks their number and sizes. That the addresses are valid
        // for what the kernel accesses is what the tests check, with guards around the memory.
        match unsafe { (self.run)(name.as_ptr(), blocks, pointers, sizes.as_ptr(), count, self.descending.into()) } {
            0 => Ok(()),
            1 => candle_core::bail!("there is no kernel {kernel}"),
            2 => candle_core::bail!("{kernel} does not take {count} arguments"),
            4 => candle_core::bail!("an argument of {kernel} has another size"),
            _ => candle_core::bail!("some threads of {kernel} ended where others wait"),
        }
    }

    fn scratch(&mut self, purpose: Scratch, words: usize) -> Result<u64> {
        let scratch = self.scratch.entry(purpose).or_default();
        if scratch.len() < words + GUARD.len() {
            *scratch = [&vec![0; words][..], &GUARD].concat();
        }
        Ok(scratch.as_ptr() as u64)
    }
}

/// A guard after scratch memory: no kernel may write to it.
const GUARD: [u64; 8] = [0xa5a5_a5a5_a5a5_a5a5; 8];

impl Drop for Emulator {
    fn drop(&mut self) {
        let whole = self.scratch.values().all(|scratch| scratch.ends_with(&GUARD));
        assert!(whole || std::thread::panicking(), "a kernel has written past the end of its scratch memory");
    }
}

/// Memory with a guard after it that no kernel may write to.
struct Buffer {
    dtype: DType,
    len: usize,
    /// Elements before the first: one of them breaks the alignment to 16 bytes.
    before: usize,
    bytes: Vec<u128>,
}

const UNTOUCHED: u8 = 0xa5;

impl Buffer {
    fn new(dtype: DType, values: &[f64]) -> Self {
        Self::shifted(dtype, values, 0)
    }

    /// Elements that no kernel has written yet.
    fn empty(dtype: DType, len: usize) -> Self {
        Self::new(dtype, &vec![f64::NAN; len])
    }

    fn shifted(dtype: DType, values: &[f64], before: usize) -> Self {
        let size = dtype.size_in_bytes();
        let encode = |x: f64| match dtype {
            DType::F32 => (x as f32).to_le_bytes().to_vec(),
            DType::F64 => x.to_le_bytes().to_vec(),
            DType::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
            DType::I64 => (x as i64).to_le_bytes().to_vec(),
            dtype => panic!("{dtype:?}"),
        };
        let mut bytes = vec![u128::from_le_bytes([UNTOUCHED; 16]); ((before + values.len()) * size).div_ceil(16) + 4];
        let data: Vec<u8> = values.iter().flat_map(|x| encode(*x)).collect();
        Self::raw(&mut bytes)[before * size..][..data.len()].copy_from_slice(&data);
        Self { dtype, len: values.len(), before, bytes }
    }

    fn raw(bytes: &mut [u128]) -> &mut [u8] {
        // SAFETY: u128 has no padding, and any bytes are valid u8.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), 16 * bytes.len()) }
    }

    fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64 + (self.before * self.dtype.size_in_bytes()) as u64
    }

    fn values(&self) -> Vec<f64> {
        let mut bytes = self.bytes.clone();
        let size = self.dtype.size_in_bytes();
        let bytes = &Self::raw(&mut bytes)[self.before * size..];
        let (data, behind) = bytes.split_at(self.len * size);
        assert!(behind.iter().all(|byte| *byte == UNTOUCHED), "a kernel has written past the end of its buffer");
        let decode = |x: &[u8]| match self.dtype {
            DType::F32 => f32::from_le_bytes(x.try_into().unwrap()).into(),
            DType::F64 => f64::from_le_bytes(x.try_into().unwrap()),
            DType::F16 => f16::from_le_bytes(x.try_into().unwrap()).to_f64(),
            DType::BF16 => bf16::from_le_bytes(x.try_into().unwrap()).to_f64(),
            dtype => panic!("{dtype:?}"),
        };
        data.chunks(size).map(decode).collect()
    }
}

/// From the uniform distribution on [-1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f64> {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// The tolerance of a result in this dtype, relative to f64.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-13,
        DType::F32 => 1e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    }
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a} and {b} at {i} of {}", found.len());
    }
}

const FLOATS: [DType; 4] = [DType::F32, DType::F64, DType::F16, DType::BF16];

const LAYOUTS: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// (images, channels, plane) in the memory order of this layout.
fn in_layout(values: &[f64], [_, channels, plane]: [usize; 3], format: ImageLayout) -> Vec<f64> {
    match format {
        ImageLayout::Nchw => values.to_vec(),
        ImageLayout::Nhwc => values.chunks(channels * plane).flat_map(|x| transposed(x, plane)).collect(),
    }
}

/// The inverse of [`in_layout`].
fn to_nchw(values: &[f64], [images, channels, plane]: [usize; 3], format: ImageLayout) -> Vec<f64> {
    in_layout(values, [images, plane, channels], format)
}

/// The transpose of a matrix with this many columns.
fn transposed(x: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| x.iter().skip(column).step_by(columns).copied()).collect()
}

/// Runs `run` in both thread orders and checks that the results are bitwise identical.
fn in_both_orders(run: impl Fn(&mut Emulator) -> Result<Vec<Buffer>>) -> Option<Vec<Vec<f64>>> {
    let results = emulators().into_iter().map(|mut launcher| run(&mut launcher).unwrap());
    let mut results = results.map(|buffers| buffers.iter().map(Buffer::values).collect::<Vec<_>>());
    let (first, second) = (results.next()?, results.next()?);
    let bits = |x: &[Vec<f64>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first), bits(&second), "the order of threads shows: a barrier is missing");
    Some(first)
}
/// The elements of a result on the CPU.
fn on_cpu((storage, shape): &(CpuStorage, Shape)) -> Vec<f64> {
    let values = storage.to_dtype(&Layout::contiguous(shape), DType::F64).unwrap();
    values.as_slice::<f64>().unwrap().to_vec()
}
