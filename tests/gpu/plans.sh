# cuDNN makes plans for a GPU that is described to it. NVIDIA's own library is asked, of the release that PyTorch 2.11 uses.
# shellcheck shell=bash
plans() {
    local cudnn=nvidia-cudnn-cu13==9.19.0.56 folder
    cuda_environment none
    mkdir -p target/plans
    folder=$(cd target/plans && pwd)
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$cudnn" ]; then
        python3 -m pip install -q --root-user-action=ignore --no-deps --no-cache-dir --upgrade --target "$folder" $cudnn ||
            skip "cuDNN cannot be installed from PyPI"
        # cuDNN refers to these functions of cuBLAS, and does not call them to make plans.
        grep -aohE 'cublasLt[A-Z][A-Za-z]+' "$folder"/nvidia/cudnn/lib/*.so.9 | sort -u |
            sed 's/.*/int &(void) { return 0; }/' | cc -shared -fPIC -x c - -o "$folder/libcublasLt.so.13"
        echo "$cudnn" >"$folder/installed"
    fi
    test_with_libraries "$folder/nvidia/cudnn/lib:$folder" -p sam-runtime --lib --features cudnn -- --include-ignored \
        plans_for_a_device
}
