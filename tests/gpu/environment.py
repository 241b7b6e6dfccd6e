#!/usr/bin/env python3
"""Prints the variables with which cargo builds the CUDA features without the CUDA toolkit, as lines for a shell.

  environment.py COMPILER FOLDER

COMPILER is `nvidia`: NVIDIA's nvcc from PyPI (105 MB, 272 MB on disk); of candle's kernels those of quantized and
mixture-of-experts models are left out, which takes minutes off the build. Or `none`: all kernels are left empty, which is
enough to check, lint and link, and for the stub driver. FOLDER gets the compiler, and stubs of NVIDIA's libraries: for the
linker, and for programs that start on a machine without them (CUDA_STUBS, for LD_LIBRARY_PATH). A stub's functions return
the error "not initialized".

Each COMPILER wants its own CARGO_TARGET_DIR, because build scripts do not notice the exchange.
"""
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# Of one release of CUDA: that of the oldest driver that is supported, because a driver refuses PTX that is newer than itself.
CUDA_VERSION = (13, 0)
PACKAGES = {
    "nvidia-cuda-nvcc": "13.0.88",
    "nvidia-cuda-crt": "13.0.88",
    "nvidia-nvvm": "13.0.88",
    "nvidia-cuda-cccl": "13.0.85",
    "nvidia-cuda-runtime": "13.0.96",
}
COMPUTE_CAPABILITY = "90"  # H100, H200

# The libraries that cudarc links: the module of its bindings, the name for the linker, the file, and the error code.
LIBRARIES = [
    ("driver", "cuda", "libcuda.so.1", 100),
    ("nvrtc", "nvrtc", "libnvrtc.so.13", 11),
    ("curand", "curand", "libcurand.so.10", 101),
    ("cublas", "cublas", "libcublas.so.13", 1),
    ("cublaslt", "cublasLt", "libcublasLt.so.13", 1),
    ("cudnn", "cudnn", "libcudnn.so.9", 1001),
    ("nccl", "nccl", "libnccl.so.2", 3),
]
HERE = Path(__file__).resolve().parent


def log(text):
    print(f"environment.py: {text}", file=sys.stderr)


def once(folder, key, make):
    """Calls make(folder) on an empty folder, unless the folder is there, made with the same key."""
    stamp = folder / "made-with"
    if stamp.exists() and stamp.read_text() == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    stamp.write_text(key)


def install_compiler(folder):
    pins = [f"{name}=={version}" for name, version in PACKAGES.items()]
    log("installing " + " ".join(pins))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-deps", "--no-cache-dir",
           "--only-binary=:all:", "--target", str(folder)]
    subprocess.run(pip + pins, check=True, stdout=sys.stderr)


def bindings():
    """The folder of cudarc's sources, of the version in the lock file."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--features", "sam-runtime/cudnn",
               "--filter-platform", "x86_64-unknown-linux-gnu"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    for package in json.loads(output)["packages"]:
        if package["name"] == "cudarc":
            return Path(package["manifest_path"]).parent
    sys.exit("environment.py: cudarc is not among the dependencies of sam-runtime with the feature cudnn")


def stub_source(names, code):
    """C with a function of each name. They are weak, so that another object file may define some of them."""
    lines = ["#define STUB __attribute__((weak))"]
    for name in names:
        if name in ("cuGetErrorName", "cuGetErrorString"):
            body = '(int code, const char **text) { *text = "NVIDIA\'s driver is not installed"; return 0; }'
        elif name.endswith("ErrorString"):
            lines.append(f'STUB const char *{name}(void) {{ return "the library is not installed"; }}')
            continue
        else:
            body = f"(void) {{ return {code}; }}"
        lines.append(f"STUB int {name}{body}")
    return "\n".join(lines) + "\n"


def build_stubs(cudarc, folder):
    for module, link_name, file, code in LIBRARIES:
        text = (cudarc / "src" / module / "sys" / "mod.rs").read_text()
        names = sorted(set(re.findall(r'extern "C" \{\s*fn (\w+)', text)))
        if not names:
            sys.exit(f"environment.py: no functions found in cudarc's bindings of {module}")
        item = folder / f"{link_name}.o"
        compile_ = ["cc", "-O1", "-fPIC", "-w", "-x", "c", "-c", "-", "-o", str(item)]
        subprocess.run(compile_, input=stub_source(names, code).encode(), check=True)
        subprocess.run(["cc", "-shared", f"-Wl,-soname,{file}", "-o", str(folder / file), str(item)], check=True)


def build_home(stubs, toolkit, folder):
    """What CUDA_HOME names: the compiler, its headers, and `lib` for the linker."""
    (folder / "bin").mkdir()
    (folder / "bin" / "nvcc").symlink_to(HERE / "nvcc.py")
    if toolkit:
        (folder / "bin" / "real-nvcc").symlink_to(toolkit / "bin" / "nvcc")
        (folder / "include").symlink_to(toolkit / "include")
    (folder / "lib").mkdir()
    for _, link_name, file, _ in LIBRARIES:
        (folder / "lib" / f"lib{link_name}.so").symlink_to(stubs / file)
    # candle-kernels links CUDA's runtime for the kernels that are left out.
    subprocess.run(["ar", "rc", str(folder / "lib" / "libcudart.a")], check=True)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("nvidia", "none"):
        sys.exit(__doc__)
    compiler, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        toolkit = None
        if compiler == "nvidia":
            once(folder / "packages", str(PACKAGES), install_compiler)
            toolkit = folder / "packages" / "nvidia" / f"cu{CUDA_VERSION[0]}"
        cudarc = bindings()
        # Whoever changes this file gets new stubs.
        key = f"{cudarc} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()} {HERE}"
        once(folder / "stubs", key, lambda stubs: build_stubs(cudarc, stubs))
        home = folder / compiler
        once(home, key, lambda home: build_home(folder / "stubs", toolkit, home))
    variables = {
        "CUDA_HOME": home,
        "CUDA_PATH": home,
        "NVCC": home / "bin" / "nvcc",
        "CUDARC_CUDA_VERSION": f"{CUDA_VERSION[0]}0{CUDA_VERSION[1]}0",
        "CUDA_COMPUTE_CAP": os.environ.get("CUDA_COMPUTE_CAP", COMPUTE_CAPABILITY),
        "CUDAFORGE_THREADS": os.environ.get("CUDAFORGE_THREADS", os.cpu_count()),
        "CUDA_STUBS": folder / "stubs",
    }
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(str(value))}")


if __name__ == "__main__":
    main()
