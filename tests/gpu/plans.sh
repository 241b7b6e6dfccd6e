# cuDNN makes plans for a GPU that is described to it. NVIDIA's own libraries are asked, of the releases that PyTorch 2.11
# uses. For attention cuDNN compiles kernels, with NVRTC.
# shellcheck shell=bash
plans() {
    local packages="nvidia-cudnn-cu13==9.19.0.56 nvidia-cuda-nvrtc==13.0.88" folder
    cuda_environment none
    mkdir -p target/plans
    folder=$(cd target/plans && pwd)
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$packages" ]; then
        # shellcheck disable=SC2086 # names without spaces
        python3 -m pip install -q --root-user-action=ignore --no-deps --no-cache-dir --upgrade --target "$folder" \
            $packages || skip "cuDNN cannot be installed from PyPI"
        # cuDNN refers to these functions of cuBLAS, and does not call them to make plans.
        grep -aohE 'cublasLt[A-Z][A-Za-z]+' "$folder"/nvidia/cudnn/lib/*.so.9 | sort -u |
            sed 's/.*/int &(void) { return 0; }/' | cc -shared -fPIC -x c - -o "$folder/libcublasLt.so.13"
        echo "$packages" >"$folder/installed"
    fi
    driver_that_takes_kernels "$folder"
    cargo_with_libraries "$folder/nvidia/cudnn/lib:$folder/nvidia/cu13/lib:$folder" test -p sam-runtime --lib --features cudnn -- \
        --include-ignored plans_for_a_device
}

# A stub driver that says yes to what cuDNN does with a kernel that it has compiled for a plan, and to nothing else.
driver_that_takes_kernels() { # folder
    {
        printf 'int %s(void **made) { *made = made; return 0; }\n' cuLibraryLoadData cuLibraryGetKernel cuKernelGetFunction
        printf 'int %s(void) { return 0; }\n' cuLibraryUnload cuFuncSetAttribute cuKernelSetAttribute
        # It looks for these by name, and fails without them.
        printf 'int %s(void) { return 3; }\n' cuCtxPushCurrent cuCtxPopCurrent cuLinkCreate cuLinkAddData
    } | cc -shared -fPIC -x c - -x none "$CUDA_STUBS/cuda.o" -o "$1/libcuda.so.1"
}
