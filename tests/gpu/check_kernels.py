#!/usr/bin/env python3
"""Compiles CUDA sources with NVRTC, NVIDIA's compiler library: it needs no GPU, no driver and no toolkit.

  check_kernels.py [--install FOLDER] SOURCES

Every `.cu` below the folder SOURCES is compiled to PTX for the oldest architecture, and to machine code for the others. An
error is: what NVRTC refuses, a kernel without an entry of its name in the PTX, a kernel that spills registers to memory.
--install puts NVRTC into FOLDER from PyPI (24 MB), if it is not there. The status is 77 if there is no NVRTC to be had.
"""
import argparse
import ctypes
import re
import subprocess
import sys
import time
from pathlib import Path

PACKAGE = "nvidia-cuda-nvrtc-cu12==12.6.85"  # a quarter of the size of CUDA 13's
PTX_ONLY = ["compute_75"]
MACHINE_CODE = ["sm_80", "sm_90"]


class Nvrtc:
    """The library's C interface."""

    def __init__(self, folder):
        found = next(iter(sorted(folder.glob("nvidia/*/lib/libnvrtc.so.*"))), None)
        if found is None:
            raise FileNotFoundError(f"no NVRTC in {folder}")
        # NVRTC opens its built-in functions by name only. Loaded first, they are found without a search path.
        for builtins in found.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(found))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(self, name, *arguments):
        status = getattr(self.library, f"nvrtc{name}")(*arguments)
        if status != 0:
            raise RuntimeError(self.library.nvrtcGetErrorString(status).decode())

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("Version", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def compile(self, source, options):
        """What NVRTC says, the PTX, and the size of the machine code. The PTX is None where it refuses the source."""
        program = ctypes.c_void_p()
        self.call("CreateProgram", ctypes.byref(program), source.read_bytes(), str(source).encode(), 0, None, None)
        try:
            encoded = [text.encode() for text in options]
            try:
                self.call("CompileProgram", program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
            except RuntimeError as error:
                return f"{self.result('ProgramLog', program).decode(errors='replace')}\n{error}", None, 0
            log = self.result("ProgramLog", program).decode(errors="replace")
            is_code = any("=sm_" in text for text in options)
            code = len(self.result("CUBIN", program)) if is_code else 0
            return log, self.result("PTX", program).decode(), code
        finally:
            self.call("DestroyProgram", ctypes.byref(program))

    def result(self, what, program):
        size = ctypes.c_size_t()
        self.call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"Get{what}", program, buffer)
        return buffer.value if what != "CUBIN" else buffer.raw


def kernels(source):
    """The names of the kernels in a source."""
    text = re.sub(r"//.*|/\*[\s\S]*?\*/", "", source.read_text())
    return set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(", text))


def check(nvrtc, source, root, architecture):
    """Prints a line, and what is wrong. True if nothing is."""
    options = [f"--gpu-architecture={architecture}", "--std=c++17", f"--include-path={root}",
               f"--include-path={source.parent}"]
    if architecture in MACHINE_CODE:
        options.append("--ptxas-options=--verbose")
    start = time.monotonic()
    log, ptx, code = nvrtc.compile(source, options)
    took = time.monotonic() - start
    problems = []
    if ptx is None:
        problems.append("does not compile")
    else:
        entries = set(re.findall(r"\.entry\s+(\w+)", ptx))
        problems += [f"no entry for the kernel {name}" for name in sorted(kernels(source) - entries)]
        problems += [f"a kernel spills {count} bytes" for count in re.findall(r"(\d+) bytes spill stores", log) if int(count)]
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    at_most = f", at most {max(registers)} registers" if registers else ""
    print(f"{'FAILED' if problems else 'ok'}: {source} for {architecture}: {len(ptx or '')} bytes of PTX, "
          f"{code} of machine code{at_most}, {took:.1f} s")
    if problems or "warning" in log:
        print("\n".join([*problems, log]))
    return not problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--install", type=Path, default=Path("target/nvrtc"))
    options = parser.parse_args()
    if not list(options.install.glob("nvidia/*/lib/libnvrtc.so.*")):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--no-deps", "--no-cache-dir",
               "--only-binary=:all:", "--target", str(options.install), PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            print("skipped: NVRTC cannot be installed from PyPI")
            sys.exit(77)
    nvrtc = Nvrtc(options.install)
    sources = sorted(options.sources.rglob("*.cu"))
    print(f"NVRTC {nvrtc.version()}, {len(sources)} files in {options.sources}")
    results = [check(nvrtc, source, options.sources, architecture)
               for source in sources for architecture in PTX_ONLY + MACHINE_CODE]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
