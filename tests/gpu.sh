#!/usr/bin/env bash
# The checks of the CUDA side. Those in the first group need neither a GPU nor the CUDA toolkit, but the network once.
#
#   tests/gpu.sh kernels      compiles every kernel with NVRTC for all architectures; a spilled register is an error
#   tests/gpu.sh clippy       lints the Rust code of the CUDA features
#   tests/gpu.sh emulated     runs the tests on a stub driver that executes the kernels on the CPU
#   tests/gpu.sh plans        asks NVIDIA's cuDNN for its plans for an H200 (downloads 450 MB the first time)
#
#   tests/gpu.sh build        builds for a GPU, and leaves all that is needed on the GPU machine in target/gpu
#   tests/gpu.sh run [DIR]    on the GPU machine: tests, then SAM steps beside PyTorch's (python3 with torch); a log of
#                             everything in DIR/gpu.log (default target/gpu), and a short table last
#
# `run` does the parts that PARTS names, by default "check figures tests compiled training". With CIFAR=FOLDER (the binary
# CIFAR-10) it trains wrn-16-4. It stops after SECONDS_LEFT (default 540), so that there is a table in any case.
# `build` takes NVIDIA's compiler from PyPI; with CUDA_COMPILER=toolkit it takes the installed CUDA toolkit.
# The status is 77 where a check cannot run, after a line that says why.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/gpu/common.sh

case ${1:-} in
kernels | clippy | emulated | plans | build | run)
    . "tests/gpu/$1.sh"
    "$@"
    ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
