# Builds the tests and the measuring programs for a GPU, and packs them into $bundle.
# shellcheck shell=bash
build() {
    local messages stage name file
    if [ "${CUDA_COMPILER:-nvidia}" != toolkit ]; then
        cuda_environment nvidia
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda-nvidia}
    fi
    rm -rf "$bundle"
    mkdir -p "$bundle"
    messages=$(mktemp)
    stage=$(mktemp -d)
    cargo build --locked --release -p sam-examples --bins --features cudnn --message-format json >"$messages"
    cargo test --locked --release -p sam-tests --tests --features sam-runtime/cudnn --no-run \
        --message-format json >>"$messages"
    # shellcheck disable=SC2086 # names without spaces
    python3 tests/gpu/bundle.py executables "$messages" --tests $device_tests --programs arithmetic bench cifar |
        while read -r name file; do strip -o "$stage/$name" "$file"; done
    mkdir "$stage/stubs"
    if [ -n "${CUDA_STUBS:-}" ]; then cp "$CUDA_STUBS"/*.so.* "$stage/stubs"; fi
    python3 tests/gpu/bundle.py pack "$stage" "$bundle/binaries.tar.xz"
    rm -r "$messages" "$stage"
    ls -l "$bundle"
}
