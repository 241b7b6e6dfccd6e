# The CUDA side without a GPU: the tests on the stub driver of driver.cpp. Building it takes some minutes.
# shellcheck shell=bash
emulated() {
    local out compiler=${CXX:-c++} kernels_of name only
    command -v "$compiler" >/dev/null || skip "no C++ compiler to build the stub driver with"
    cuda_environment none
    mkdir -p target/emulated
    out=$(cd target/emulated && pwd)
    stub_driver "$compiler" "$out"

    export SAM_TEST_DEVICE=cuda PROPTEST_CASES=20 RUST_BACKTRACE=0
    tests_on_stub() { test_with_libraries "$out" -p sam-tests --features sam-runtime/cudnn "$@" --test-threads 1; }
    for kernels_of in ours cudnn; do
        if [ "$kernels_of" = cudnn ]; then export EMULATED_CUDNN=1; fi
        only=
        for name in $device_tests; do
            # With cuDNN nothing but convolutions and attention is different.
            if [ "$kernels_of" = cudnn ] && [[ " $without_cudnn " == *" $name "* ]]; then continue; fi
            only+=" --test $name"
        done
        # Left out: comparisons with candle's convolutions, and tests that start other processes.
        # shellcheck disable=SC2086 # names without spaces
        tests_on_stub $only -- --skip of_candle --skip under_rust_backtrace
    done
    EMULATED_TRACE=$out/trace tests_on_stub --test cuda -- --exact a_step_does_not_synchronize attention_is_cudnns
}

# Builds the driver and NVIDIA's other libraries as one library with several names. Functions of the CUDA interface that
# driver.cpp does not define come from the stubs, which return an error.
stub_driver() { # compiler, folder
    local compiler=$1 out=$2 name
    for name in "$kernels"/*.cu; do echo "#include \"$(basename "$name")\""; done >"$out/kernels.inc"
    cat "$kernels"/*.cu | tr '\n' ' ' | grep -oE '__global__ void +(__launch_bounds__\([^)]*\) +)?[a-z0-9_]+' |
        awk '{ printf "{\"%s\", Call<%s>::count, Call<%s>::with},\n", $NF, $NF, $NF }' >"$out/entries.inc"
    "$compiler" -std=c++17 -O2 -w -ffp-contract=off -U_FORTIFY_SOURCE -fPIC -shared -include "$emulator/emulate.h" \
        -I "$kernels" -I "$emulator" -I "$out" -o "$out/libcuda.so.1" tests/gpu/driver.cpp "$CUDA_STUBS"/*.o
    for name in cublas.so.13 cublasLt.so.13 curand.so.10 cudnn.so.9 nvrtc.so.13; do
        ln -sf libcuda.so.1 "$out/lib$name"
    done
}
