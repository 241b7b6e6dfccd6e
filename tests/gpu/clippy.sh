# shellcheck shell=bash
clippy() {
    cuda_environment none
    CARGO_TARGET_DIR=target/cuda-none cargo clippy --locked -p sam-runtime -p sam-examples --all-targets \
        --features "sam-examples/cudnn$(and_nccl sam-examples/nccl)" -- -D warnings
}
