// ReLU and sums.
#include "elementwise.cuh"

template <typename T> struct Relu {
  const T *x;
  T *y;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> pack = load<N>(x + i);
    for (u32 k = 0; k < N; k++) {
      if (Number<T>::widen(pack.at[k]) < 0) pack.at[k] = Number<T>::narrow(0);
    }
    store<N>(y + i, pack);
  }
};

// y = max(x, 0); NaN stays NaN.
extern "C" __global__ void __launch_bounds__(THREADS) relu(u32 type, const void *x, void *y, u64 n) {
  WITH_TYPE(type, {
    const Relu<T> relu = {static_cast<const T *>(x), static_cast<T *>(y)};
    if (aligned(x) && aligned(y)) for_each_element<LANES<T>>(n, relu);
    else for_each_element<1>(n, relu);
  });
}

template <typename T> struct ReluBackward {
  const T *y, *dy;
  T *dx;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Pack<T, N> value = load<N>(y + i);
    Pack<T, N> pack = load<N>(dy + i);
    for (u32 k = 0; k < N; k++) {
      if (!(Number<T>::widen(value.at[k]) > 0)) pack.at[k] = Number<T>::narrow(0);
    }
    store<N>(dx + i, pack);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    relu_backward(u32 type, const void *y, const void *dy, void *dx, u64 n) {
  WITH_TYPE(type, {
    const ReluBackward<T> back = {static_cast<const T *>(y), static_cast<const T *>(dy), static_cast<T *>(dx)};
    if (aligned(y) && aligned(dy) && aligned(dx)) for_each_element<LANES<T>>(n, back);
    else for_each_element<1>(n, back);
  });
}

template <typename T> struct Sum {
  const T *a, *b;
  T *y;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> left = load<N>(a + i);
    const Pack<T, N> right = load<N>(b + i);
    for (u32 k = 0; k < N; k++) {
      left.at[k] = Number<T>::narrow(Number<T>::widen(left.at[k]) + Number<T>::widen(right.at[k]));
    }
    store<N>(y + i, left);
  }
};

// y = a + b
extern "C" __global__ void __launch_bounds__(THREADS) add(u32 type, const void *a, const void *b, void *y, u64 n) {
  WITH_TYPE(type, {
    const Sum<T> sum = {static_cast<const T *>(a), static_cast<const T *>(b), static_cast<T *>(y)};
    if (aligned(a) && aligned(b) && aligned(y)) for_each_element<LANES<T>>(n, sum);
    else for_each_element<1>(n, sum);
  });
}
