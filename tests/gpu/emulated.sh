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
    local features
    features=sam-runtime/cudnn$(and_nccl sam-runtime/nccl)
    tests_on_stub() { cargo_with_libraries "$out" test -p sam-tests --features "$features" "$@" --test-threads 1; }
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
    if [[ $features == *nccl* ]]; then ranks_on_stub "$out"; else echo "without NCCL: there is no MPI"; fi
}

# Several ranks, each with a stub GPU of its own, which NCCL connects.
ranks_on_stub() { # folder of the stub driver
    local out=$1 n mode
    cargo_with_libraries "$out" build -p sam-tests --features "$features" --example ranks
    . tests/mpi/mpirun.sh
    export LD_LIBRARY_PATH=$out:$CUDA_STUBS
    for n in 1 2 3; do
        for mode in sgd adamw; do EMULATED_TRACE=1 ranks_end $n $mode 0 "trained on $n ranks"; done
        [ $n = 1 ] || grep -q "^all-reduce" "$out/trace.0" || { echo "failed: NCCL was not called"; exit 1; }
    done
    ranks_end 2 stop error "no answer from rank 1 for 3 s"
    EMULATED_STUCK=1 ranks_end 2 sleep error "no answer from the other ranks for 3 s, in an all-reduce of GPUs"
    SAME_GPU=1 ranks_end 3 sgd error "rank 0 and rank 1 cannot be connected: they are on the same GPU"
    EMULATED_GPUS=3 ranks_end 3 gpus 0 "rank 2 has .*gpu_id: 2"
    EMULATED_GPUS=2 ranks_end 3 gpus error "the rank number 2 of this machine has no GPU, there are 2"
}

ranks_end() { # ranks, mode, 0 or error, what one of them prints
    local log status=0
    log=$(mktemp)
    # shellcheck disable=SC2016 # the ranks expand it
    timeout -k 5 120 mpirun "${options[@]}" -n "$1" bash -c '
        rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
        if [ -z "${SAME_GPU:-}${EMULATED_GPUS:-}" ]; then export EMULATED_GPU=$rank; fi
        if [ -n "${EMULATED_TRACE:-}" ]; then export EMULATED_TRACE=$0/trace.$rank; fi
        exec target/cuda-emulated/release/examples/ranks "$1"' "$out" "$2" >"$log" 2>&1 </dev/null || status=$?
    if { [ "$3" = 0 ] && [ $status != 0 ]; } || { [ "$3" = error ] && [[ $status =~ ^(0|124)$ ]]; } || ! grep -qE "$4" "$log"; then
        echo "failed: $2 on $1 ranks ended with status $status, expected $3 and: $4"
        cat "$log"
        exit 1
    fi
    echo "$2 on $1 ranks: $(grep -m1 -E "$4" "$log")"
    rm "$log"
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
    for name in cublas.so.13 cublasLt.so.13 curand.so.10 cudnn.so.9 nccl.so.2 nvrtc.so.13; do
        ln -sf libcuda.so.1 "$out/lib$name"
    done
}
