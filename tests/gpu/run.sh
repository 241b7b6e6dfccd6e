# Tests and measures on a GPU what build.sh has packed.
# shellcheck shell=bash
run() { # folder for the log
    local log=${1:-$bundle}/gpu.log
    mkdir -p "$(dirname "$log")"
    measure >"$log" 2>&1 || { tail -1 "$log"; exit 1; }
    python3 tests/gpu/report.py "$log" | tee -a "$log"
    if grep -q '"failed": [1-9]' "$log"; then exit 1; fi
}

measure() {
    local work failed=0 ran=0 skipped=0 end=$((SECONDS + ${SECONDS_LEFT:-540}))
    nvidia-smi || { echo "no GPU here"; return 1; }
    work=$(mktemp -d)
    python3 tests/gpu/bundle.py unpack "$bundle/binaries.tar.xz" "$work"
    LD_LIBRARY_PATH="$(python3 tests/gpu/bundle.py libraries)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export LD_LIBRARY_PATH
    python3 tests/gpu/bundle.py missing "$work/stubs"
    LD_LIBRARY_PATH+=":$work/stubs"

    # cuBLAS is deterministic with this setting, and for one thread at a time.
    export CUBLAS_WORKSPACE_CONFIG=:4096:8 RUST_TEST_THREADS=1 PROPTEST_CASES=30
    # Later programs find the machine code that the driver has compiled for earlier ones.
    export CUDA_CACHE_PATH=${TMPDIR:-/tmp}/sam-gpu-cache CUDA_CACHE_MAXSIZE=4294967296

    # The most important parts come first, and torch.compile, which takes longest, last.
    if does check; then
        try 60 "$work/test-cuda"
        rm "$work/test-cuda"
    fi
    if does figures; then figures; fi
    if does tests; then try 120 "$work"/test-*; fi
    if does compiled; then compiled; fi
    if does training && [ -n "${CIFAR:-}" ]; then training; fi
}

does() { [[ " ${PARTS:-check figures tests compiled training} " == *" $1 "* ]]; }

# At most this many seconds, and at most those that are left.
within() { # seconds, command..
    local most=$1 left=$((end - SECONDS))
    shift
    if [ $left -le 0 ]; then
        echo "no time left" >&2
        return 1
    fi
    timeout $((left < most ? left : most)) "$@" </dev/null
}

try() { # seconds, tests..
    local most=$1 test
    shift
    for test; do
        if [ $SECONDS -ge $end ]; then
            skipped=$((skipped + 1))
            continue
        fi
        echo "== $(basename "$test")"
        ran=$((ran + 1))
        # Left out: tests of candle's own convolutions, and tests that start other processes.
        (cd tests && SAM_TEST_DEVICE=cuda within "$most" "$test" --skip of_candle --skip under_rust_backtrace) ||
            failed=$((failed + 1))
    done
    echo "RESULT {\"tests\": {\"failed\": $failed, \"run\": $ran, \"without time\": $skipped}}"
}

# Runs a program whose last line is JSON, and writes that down.
note() { # name, command..
    local name=$1 line
    shift
    echo "== $name: $*"
    line=$(within 75 "$@" | tail -1) || line=null
    echo "RESULT {\"name\": \"$name\", \"line\": ${line:-null}}"
}

ours() { # network, batch, flags..
    note "ours $1 ${*:3}" "$work/bench" "$1" --batch "$2" --device cuda --iters 20 --verbose "${@:3}"
}

peer() { # network, batch, flags..
    note "torch $1 ${*:3}" python3 examples/peers/torch_step.py "$1" --batch "$2" --device cuda --channels-last --iters 20 \
        "${@:3}"
}

networks=("wrn-28-10 256" "resnet18 512")

figures() {
    local dtype network parameters
    # shellcheck disable=SC2086 # network and batch
    for dtype in --bf16 --tf32; do
        for network in "${networks[@]}"; do
            ours $network "$dtype" --channels-last
            peer $network "$dtype"
        done
    done
    for parameters in 36479194 1000000000; do
        note "arithmetic $parameters" "$work/arithmetic" "$parameters" --device cuda
    done
    # shellcheck disable=SC2086
    for dtype in --bf16 --tf32; do
        for network in "${networks[@]}"; do ours $network "$dtype"; done
    done
}

compiled() {
    local dtype network
    # shellcheck disable=SC2086 # network and batch
    for dtype in --bf16 --tf32; do
        for network in "${networks[@]}"; do peer $network "$dtype" --compile; done
    done
}

training() {
    peer wrn-16-4 128 --bf16
    within 600 "$work/cifar" --data "$CIFAR" --model wrn-16-4 --only sam --seeds 1 --epochs 30 --augment --quiet \
        --device cuda --bf16 --channels-last --out "$work/run" || true
    sed 's/^/EPOCH /' "$work/run/log.jsonl" || true
}
