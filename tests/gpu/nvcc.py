#!/usr/bin/env python3
"""Takes the place of nvcc while cargo builds the CUDA features without the CUDA toolkit (see environment.py).

PTX is compiled by `real-nvcc` beside the link by which this file is called, or is empty if there is none. candle-kernels also
compiles a static library, of the kernels of quantized and mixture-of-experts models: its functions are replaced by ones that
say so and abort.
"""
import os
import re
import subprocess
import sys
import tempfile

VERSION = "Cuda compilation tools, release 13.0, V13.0.0 (a stand-in that compiles nothing)"


def option(arguments, name):
    return arguments[arguments.index(name) + 1] if name in arguments else None


def static_library(output):
    # cargo runs a build script in the folder of its package.
    with open("src/ffi.rs", encoding="utf-8") as file:
        names = sorted(set(re.findall(r"\bfn (\w+)\s*\(", file.read())))
    functions = (f'void {name}(void) {{ fputs("{name} is left out of this build\\n", stderr); abort(); }}' for name in names)
    source = "#include <stdio.h>\n#include <stdlib.h>\n" + "\n".join(functions) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        item = os.path.join(folder, "left_out.o")
        subprocess.run(["cc", "-O1", "-fPIC", "-w", "-x", "c", "-c", "-", "-o", item], input=source.encode(), check=True)
        if os.path.exists(output):
            os.remove(output)  # `ar` would add to it
        subprocess.run(["ar", "rcs", output, item], check=True)


def main():
    arguments = sys.argv[1:]
    output = option(arguments, "-o")
    real = os.path.join(os.path.dirname(sys.argv[0]), "real-nvcc")
    if "--lib" in arguments:
        static_library(output)
    elif "-c" in arguments:
        open(output, "wb").close()
    elif os.path.exists(real):
        real = os.path.realpath(real)
        os.execv(real, [real, *arguments])
    elif "--version" in arguments:
        print(VERSION)
    elif "--ptx" in arguments:
        source = next(argument for argument in arguments if argument.endswith(".cu"))
        name = os.path.splitext(os.path.basename(source))[0] + ".ptx"
        open(output or os.path.join(option(arguments, "--output-directory") or ".", name), "wb").close()


if __name__ == "__main__":
    main()
