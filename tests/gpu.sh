#!/usr/bin/env bash
# Everything that takes a GPU, in one call: the kernels load and agree with the CPU, then the figures, beside PyTorch.
#
#   tests/gpu.sh build          where there is a CUDA compiler: leaves all that is needed in target/gpu
#   tests/gpu.sh emulated       where there is neither: the same code on a driver that is none
#   tests/gpu.sh plans          where there is neither: what NVIDIA's cuDNN would do on an H200 (360 MB the first time)
#   tests/gpu.sh run [DIR]      where there is a GPU (and python3 with torch, for the comparison): a log of everything in
#                               DIR/gpu.log (default target/gpu), and a short table last
#
# PARTS="check figures tests compiled training" are those of it that are run, by default all. With CIFAR=FOLDER (the binary
# CIFAR-10) wrn-16-4 is trained. After SECONDS_LEFT (default 540) all ends, so that the table is there in any case.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=target/gpu
# The tests that run on any device: not those of the compiler and of the allocator.
tests="closed_forms compose cuda determinism errors gradient graph layers plain pytorch restore sgd state value variants"

build() {
    local torch=../shared/peers/torch_step.py json stage
    if [ -e ../shared/tools/cuda-env.sh ]; then # a compiler of a release that the driver there knows
        export CUDA_ENV_KERNELS=${CUDA_ENV_KERNELS:-lite} CUDA_ENV_DIR=${CUDA_ENV_DIR:-target/cuda-env}
        eval "$(../shared/tools/cuda-env.sh)"
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda-$CUDA_ENV_KERNELS}
    fi
    rm -rf "$bundle"
    mkdir -p "$bundle"
    json=$(mktemp)
    stage=$(mktemp -d)
    cargo build --locked --release -p sam-examples --bins --features cudnn --message-format json >"$json"
    cargo test --locked --release -p sam-tests --tests --features sam-runtime/cudnn --no-run \
        --message-format json >>"$json"
    python3 - "$json" "$tests" <<'PY' | while read -r name file; do strip -o "$stage/$name" "$file"; done
import json, sys
tests = {"large", *sys.argv[2].split()}
for line in open(sys.argv[1]):
    message = json.loads(line)
    if not message.get("executable"):
        continue
    name, test = message["target"]["name"], message["profile"]["test"]
    if (test and name in tests) or (not test and name in {"arithmetic", "bench", "cifar"}):
        print(("test-" if test else "") + name, message["executable"])
PY
    # They are much alike: together they shrink to a third of what each would.
    python3 -c 'import lzma, sys, tarfile
with tarfile.open(sys.argv[1], "w:xz", preset=9) as bundle: bundle.add(sys.argv[2], ".")' "$bundle/binaries.tar.xz" "$stage"
    rm -r "$json" "$stage"
    if [ -e "$torch" ]; then cp "$torch" "$bundle"; fi
    ls -l "$bundle"
}

# cargo test of a CUDA build that has no kernels, with libraries from these folders in the place of the driver's.
test_beside() { # folders, arguments of cargo's..
    export CUDA_LIB_DIRS=$1 CUDA_ENV_KERNELS=none CUDA_ENV_DIR=target/cuda-env
    shift
    eval "$(../shared/tools/cuda-env.sh)"
    CARGO_TARGET_DIR=target/cuda-emulated cargo test --locked --release --config profile.release.opt-level=0 \
        --config profile.release.debug=false "$@"
}

# The CUDA side without a GPU: the tests on a driver that is none (gpu/driver.cpp). Some minutes to build.
emulated() {
    local kernels=sam-runtime/src/kernels/device dir
    if ! command -v "${CXX:-c++}" >/dev/null || [ ! -e ../shared/tools/cuda-env.sh ]; then
        echo "skipped: there is no C++ compiler to make the driver with, or no ../shared/tools/cuda-env.sh"
        return
    fi
    mkdir -p target/emulated
    dir=$(cd target/emulated && pwd)
    cat "$kernels"/*.cu | tr '\n' ' ' | grep -oE '__global__ void +(__launch_bounds__\([^)]*\) +)?[a-z_]+' |
        awk '{ printf "{\"%s\", Call<%s>::count, Call<%s>::with},\n", $NF, $NF, $NF }' >"$dir/entries.inc"
    "${CXX:-c++}" -std=c++17 -O2 -w -ffp-contract=off -U_FORTIFY_SOURCE -fPIC -shared -include "$kernels/emulate.h" \
        -I "$kernels" -I "$dir" -o "$dir/libcuda.so.1" tests/gpu/driver.cpp
    for name in cublas.so.13 cublasLt.so.13 curand.so.10 cudnn.so.9; do ln -sf libcuda.so.1 "$dir/lib$name"; done
    export SAM_TEST_DEVICE=cuda PROPTEST_CASES=20 RUST_BACKTRACE=0
    run() { test_beside "$dir" -p sam-tests --features sam-runtime/cudnn "$@" --test-threads 1; }
    for convolutions in patches cudnn; do
        if [ "$convolutions" = cudnn ]; then export EMULATED_CUDNN=1; fi
        # Left out: what compares with convolutions of candle's, and what starts other processes.
        # shellcheck disable=SC2046,SC2086 # names without spaces
        run $(printf -- '--test %s ' $tests) -- --skip of_candle --skip under_rust_backtrace
    done
    EMULATED_TRACE=$dir/trace run --test cuda -- --exact a_step_waits_for_nothing
}

# cuDNN makes plans for a GPU that it is told of. Its own library is asked, of the release that PyTorch 2.11 brings.
plans() {
    local cudnn=nvidia-cudnn-cu13==9.19.0.56 dir
    if [ ! -e ../shared/tools/cuda-env.sh ]; then
        echo "skipped: no ../shared/tools/cuda-env.sh"
        return
    fi
    mkdir -p target/plans
    dir=$(cd target/plans && pwd)
    if [ "$(cat "$dir/installed" 2>/dev/null)" != "$cudnn" ]; then
        if ! python3 -m pip install -q --root-user-action=ignore --no-deps --no-cache-dir --upgrade --target "$dir" $cudnn ||
            # Of cuBLAS it wants the names alone.
            ! grep -aohE 'cublasLt[A-Z][A-Za-z]+' "$dir"/nvidia/cudnn/lib/*.so.9 | sort -u |
                sed 's/.*/int &(void) { return 0; }/' | "${CC:-cc}" -shared -fPIC -x c - -o "$dir/libcublasLt.so.13"; then
            echo "skipped: no cuDNN to be had"
            return
        fi
        echo "$cudnn" >"$dir/installed"
    fi
    export LD_LIBRARY_PATH="$dir/nvidia/cudnn/lib:$dir"
    test_beside "$LD_LIBRARY_PATH" -p sam-runtime --lib --features cudnn -- --include-ignored plans_for_a_device
}

# NVIDIA's libraries, where pip, the driver and a toolkit put them.
libraries() {
    python3 -c 'import glob, os, sys
print(":".join(sorted({os.path.dirname(f) for p in sys.path for f in glob.glob(p + "/nvidia/*/lib/lib*.so*")})))'
}

measure() {
    local work numbers network parameters failed=0 ran=0 skipped=0 end=$((SECONDS + ${SECONDS_LEFT:-540}))
    work=$(mktemp -d)
    python3 -c 'import sys, tarfile
tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$bundle/binaries.tar.xz" "$work"
    CUDA_LIB_DIRS="$(libraries):/usr/local/nvidia/lib64:/usr/local/cuda/lib64"
    export CUDA_LIB_DIRS LD_LIBRARY_PATH="$CUDA_LIB_DIRS${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    nvidia-smi || { echo "no GPU here"; return 1; }

    # At most so many seconds, and what is left.
    within() {
        local most=$1 left=$((end - SECONDS))
        shift
        if [ $left -le 0 ]; then
            echo "no time left" >&2
            return 1
        fi
        timeout $((left < most ? left : most)) "$@" </dev/null
    }
    does() { [[ " ${PARTS:-check figures tests compiled training} " == *" $1 "* ]]; }

    # cuBLAS gives the same bits to one thread at a time only, and with this. What the driver has compiled serves later calls.
    export CUBLAS_WORKSPACE_CONFIG=:4096:8 RUST_TEST_THREADS=1 PROPTEST_CASES=30
    export CUDA_CACHE_PATH=${TMPDIR:-/tmp}/sam-gpu-cache CUDA_CACHE_MAXSIZE=4294967296
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
            # Left out: what is about candle's own convolutions there, and what starts other processes.
            (cd tests && SAM_TEST_DEVICE=cuda within "$most" "$test" --skip of_candle --skip under_rust_backtrace) ||
                failed=$((failed + 1))
        done
        echo "RESULT {\"tests\": {\"failed\": $failed, \"run\": $ran, \"without time\": $skipped}}"
    }
    note() { # name, command..: its last line, which is JSON
        local name=$1 line
        shift
        echo "== $name: $*"
        line=$(within 75 "$@" | tail -1) || line=null
        echo "RESULT {\"name\": \"$name\", \"line\": ${line:-null}}"
    }
    ours() { # network, batch, flags..
        note "ours $1 ${*:3}" "$work/bench" "$1" --batch "$2" --device cuda --iters 20 --verbose "${@:3}"
    }
    peer() {
        note "torch $1 ${*:3}" python3 "$bundle/torch_step.py" "$1" --batch "$2" --device cuda --channels-last --iters 20 \
            "${@:3}"
    }
    # What matters most comes first, and what takes longest, compiling, last.
    local networks=("wrn-28-10 256" "resnet18 512")
    if does check; then
        try 60 "$work/test-cuda"
        rm "$work/test-cuda"
    fi
    if does figures; then
        for numbers in --bf16 --tf32; do
            for network in "${networks[@]}"; do
                # shellcheck disable=SC2086 # network and batch
                ours $network "$numbers" --channels-last
                # shellcheck disable=SC2086
                peer $network "$numbers"
            done
        done
        for parameters in 36479194 1000000000; do
            note "arithmetic $parameters" "$work/arithmetic" "$parameters" --device cuda
        done
        for numbers in --bf16 --tf32; do
            # shellcheck disable=SC2086
            for network in "${networks[@]}"; do ours $network "$numbers"; done
        done
    fi
    if does tests; then try 120 "$work"/test-*; fi
    if does compiled; then
        for numbers in --bf16 --tf32; do
            # shellcheck disable=SC2086
            for network in "${networks[@]}"; do peer $network "$numbers" --compile; done
        done
    fi
    if does training && [ -n "${CIFAR:-}" ]; then
        peer wrn-16-4 128 --bf16
        within 600 "$work/cifar" --data "$CIFAR" --model wrn-16-4 --only sam --seeds 1 --epochs 30 --augment --quiet \
            --device cuda --bf16 --channels-last --out "$work/run" || true
        sed 's/^/EPOCH /' "$work/run/log.jsonl" || true
    fi
}

table() {
    python3 - "$1" <<'PY'
import itertools, json, statistics, sys
results, epochs, tests, refused = {}, [], None, 0
for line in open(sys.argv[1]):
    refused += "cuDNN has no plan" in line
    if line.startswith("RESULT "):
        result = json.loads(line[7:])
        if "tests" in result:
            tests = result["tests"]
        else:
            results[result["name"].strip()] = result["line"]
    elif line.startswith("EPOCH "):
        epochs.append(json.loads(line[6:]))


def step(name):
    line = results.get(name)
    return line["median_ms"]["sam"] if line else None


def ratio(a, b):
    return f"{a / b:.3f}" if a and b else "-"


def show(number):
    return f"{number:.2f}" if number else "-"


print("\ntest binaries:", ", ".join(f"{name} {count}" for name, count in tests.items()) if tests else "not run")
print("SAM step in ms; overhead: SAM / (2 passes + optimizer); back: when the host is\n")
row = "{:10} {:7} {:13} {:>8} {:>8} {:>9} {:>11} {:>14} {:>9} {:>8}".format
print(row("network", "numbers", "images", "ours", "PyTorch", "compiled", "ours/eager", "ours/compiled", "overhead", "back"))
for model, flags, order in itertools.product(["wrn-28-10", "resnet18"], ["--tf32", "--bf16"], ["", "--channels-last"]):
    names = [f"ours {model} {flags} {order}".strip(), f"torch {model} {flags}", f"torch {model} {flags} --compile"]
    ours, eager, compiled = map(step, names)
    line = results.get(names[0])
    print(row(model, flags[2:], order[2:] or "planes", show(ours), show(eager), show(compiled), ratio(ours, eager),
              ratio(ours, compiled), show(line and line["sam_overhead"]), show(line and line["sam_enqueued_ms"])))
if refused:
    print("cuDNN had no plan for", refused, "convolutions: the log says why")
for name in results:
    if name.startswith("arithmetic") and results[name]:
        print(name, "of a copy's pace:", round(results[name]["of_copy"], 3))
if epochs:
    torch = step("torch wrn-16-4 --bf16")
    seconds = statistics.median(epoch["seconds"] for epoch in epochs)
    print("wrn-16-4:", seconds, "s an epoch; 390 of PyTorch's steps:", torch and torch * 0.39, "s; last test error",
          epochs[-1]["test_error"])
PY
}

case ${1:-} in
build) build ;;
emulated) emulated ;;
plans) plans ;;
run)
    log=${2:-$bundle}/gpu.log
    mkdir -p "$(dirname "$log")"
    measure >"$log" 2>&1 || { tail -1 "$log"; exit 1; }
    table "$log" | tee -a "$log"
    if grep -q '"failed": [1-9]' "$log"; then exit 1; fi
    ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
