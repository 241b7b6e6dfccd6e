# What the scripts of this folder share. Sourced by ../gpu.sh, which has changed to the root of the repository.
# shellcheck shell=bash disable=SC2034 # variables are used by the scripts

# Where the CUDA sources (.cu, .cuh) are, and `emulate.h`, with which a C++ compiler reads them. These two lines are the
# only place of tests/ and .ci/ that names the folders.
kernels=sam-runtime/src/kernels/cuda/src
emulator=sam-runtime/src/kernels/cuda/emulator

# The tests that run on any device: all but those of the compiler and of the allocator.
device_tests="closed_forms compose cuda determinism errors gradient graph inputs large layers nn_attention nn_convs
    nn_elementwise nn_norms optim plain pytorch restore sgd sharpness state value variants"

# Those for which cuDNN has no plan: without a convolution and without attention.
without_cudnn="large nn_elementwise nn_norms optim"

# What `build` makes and `run` runs.
bundle=target/gpu

# Ends the script: this check cannot run here. The caller tells it by the status.
skip() { # reason..
    echo "skipped: $*"
    exit 77
}

# A comma and this feature, where there is an MPI to build it with.
and_nccl() { # feature
    if command -v mpicc >/dev/null && command -v mpirun >/dev/null && ldconfig -p | grep -qE 'libclang(-[0-9]+)?\.so'; then echo ",$1"; fi
}

# Sets the variables with which cargo builds the CUDA features on a machine without the CUDA toolkit. `compiler` is
# nvidia (NVIDIA's compiler from PyPI) or none (kernels are left empty).
cuda_environment() { # compiler
    local settings
    command -v python3 >/dev/null || skip "no python3"
    command -v cc >/dev/null || skip "no C compiler"
    settings=$(python3 tests/gpu/environment.py "$1" "${CUDA_ENV_DIR:-target/cuda-env}")
    eval "$settings"
}

# cargo for a CUDA build without kernels. The folders are searched for NVIDIA's libraries before the stubs.
cargo_with_libraries() { # folders, command and arguments of cargo's..
    local folders=$1 command=$2
    shift 2
    LD_LIBRARY_PATH="$folders:$CUDA_STUBS" CARGO_TARGET_DIR=target/cuda-emulated cargo "$command" --locked --release \
        --config profile.release.opt-level=0 --config profile.release.debug=false "$@"
}
