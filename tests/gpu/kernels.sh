# shellcheck shell=bash
kernels() {
    command -v python3 >/dev/null || skip "no python3"
    python3 tests/gpu/check_kernels.py --install target/nvrtc "$kernels"
}
