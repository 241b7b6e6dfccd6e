// Shake-Shake and ShakeDrop: sums of branches with a factor for each sample.
#include "elementwise.cuh"

template <typename T> struct BranchMix {
  const T *a, *b;
  const Wide<T> *of_a, *of_b;
  T *y;
  u64 sample;

  // A vector stays within one sample.
  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Pack<T, N> left = load<N>(a + i), right = load<N>((b ? b : a) + i);
    const Wide<T> f = of_a[i / sample], g = b ? of_b[i / sample] : 0;
    Pack<T, N> pack;
    for (u32 k = 0; k < N; k++) {
      Wide<T> value = Number<T>::widen(left.at[k]) * f;
      if (b) value += Number<T>::widen(right.at[k]) * g;
      pack.at[k] = Number<T>::narrow(value);
    }
    store<N>(y + i, pack);
  }
};

// y = f a + g b, with factors f and g for each sample of `sample` elements. If b is null, y = f a.
extern "C" __global__ void __launch_bounds__(THREADS) branch_mix(u32 type, const void *a, const void *b, void *y, u64 n,
                                                                 u64 sample, const void *of_a, const void *of_b) {
  WITH_TYPE(type, {
    typedef Wide<T> W;
    const BranchMix<T> mix = {static_cast<const T *>(a),    static_cast<const T *>(b), static_cast<const W *>(of_a),
                              static_cast<const W *>(of_b), static_cast<T *>(y),       sample};
    if (aligned(a) && aligned(b) && aligned(y) && sample % LANES<T> == 0) for_each_element<LANES<T>>(n, mix);
    else for_each_element<1>(n, mix);
  });
}
