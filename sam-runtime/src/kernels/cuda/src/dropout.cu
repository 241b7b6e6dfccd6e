// Dropout.
#include "elementwise.cuh"
#include "random.cuh"

template <typename T> struct Dropout {
  const T *x;
  T *y;
  u64 plane, step, seed;
  float drop;
  Wide<T> scale;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> pack = load<N>(x + i);
    const u64 first = seed + nchw_index(i), next = step == 1 ? 1 : plane;
    for (u32 k = 0; k < N; k++) {
      const bool keeps = is_kept(first + k * next, drop);
      pack.at[k] = Number<T>::narrow(keeps ? Number<T>::widen(pack.at[k]) * scale : Wide<T>(0));
    }
    store<N>(y + i, pack);
  }

  // The index of element i in NCHW. The lanes of a vector are channels of one pixel.
  __device__ __forceinline__ u64 nchw_index(u64 i) const {
    return step == 1 ? i : (i / (plane * step) * step + i % step) * plane + i / step % plane;
  }
};

// Bitwise the mask of kernels/cpu/dropout.rs. In NHWC `step` is the number of channels of `plane` pixels; in NCHW it is
// 1.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout(u32 type, const void *x, void *y, u64 n, u64 plane, u64 step, u64 seed, double drop, double scale) {
  WITH_TYPE(type, {
    const Wide<T> rounded = Number<T>::widen(Number<T>::narrow(Wide<T>(scale)));
    const Dropout<T> dropout = {
        static_cast<const T *>(x), static_cast<T *>(y), plane, step, seed, float(drop), rounded};
    if (aligned(x) && aligned(y) && (step == 1 || step % LANES<T> == 0)) for_each_element<LANES<T>>(n, dropout);
    else for_each_element<1>(n, dropout);
  });
}
