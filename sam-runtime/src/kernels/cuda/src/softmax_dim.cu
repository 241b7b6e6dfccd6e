// Softmax and its logarithm along a dimension, forward and backward.
#include "rows.cuh"

// -∞
__device__ __forceinline__ double least() { return __longlong_as_double(0xfff0000000000000ull); }

// What is subtracted from x - max, and what the exponential is multiplied by.
template <typename T> struct SoftmaxRow {
  Wide<T> max, shift, scale;

  __device__ SoftmaxRow(double max, double sum) : max(Wide<T>(max)), shift(Wide<T>(log(sum))), scale(Wide<T>(1 / sum)) {}
  __device__ __forceinline__ T of(T x, bool logarithm) const {
    const Wide<T> distance = Number<T>::widen(x) - max;
    return Number<T>::narrow(logarithm ? distance - shift : exp_of(distance) * scale);
  }
};

// What an element of the output adds to the sum of the backward pass, and the gradient that this gives.
template <typename T> __device__ __forceinline__ Wide<T> softmax_term(T y, T dy, bool logarithm) {
  const Wide<T> gradient = Number<T>::widen(dy);
  return logarithm ? gradient : Number<T>::widen(y) * gradient;
}

template <typename T> __device__ __forceinline__ T softmax_gradient(T y, T dy, Wide<T> sum, bool logarithm) {
  const Wide<T> value = Number<T>::widen(y), gradient = Number<T>::widen(dy);
  return Number<T>::narrow(logarithm ? gradient - exp_of(value) * sum : value * (gradient - sum));
}

template <u32 N, typename T> __device__ void softmax_row(const RowPart &part, const T *x, bool logarithm, T *y) {
  x += part.row * part.columns;
  y += part.row * part.columns;
  double most = least();
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> in = load<N>(x + c);
#pragma unroll
    for (u32 k = 0; k < N; k++) most = Largest::of(most, double(Number<T>::widen(in.at[k])));
  }
  most = over_row<Largest>(most, part.width);
  const Wide<T> max = Wide<T>(most);
  double sum = 0;
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> in = load<N>(x + c);
    Wide<T> powers = 0;
#pragma unroll
    for (u32 k = 0; k < N; k++) powers += exp_of(Number<T>::widen(in.at[k]) - max);
    sum += double(powers);
  }
  const SoftmaxRow<T> row(most, over_row<Add>(sum, part.width));
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    Pack<T, N> pack = load<N>(x + c);
#pragma unroll
    for (u32 k = 0; k < N; k++) pack.at[k] = row.of(pack.at[k], logarithm);
    store<N>(y + c, pack);
  }
}

// Along the last dimension: `width` threads to a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_rows(u32 type, const void *x, u64 rows, u32 columns, u32 width, u32 vectors, u32 logarithm, void *y) {
  const RowPart part(rows, columns, width);
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x);
    if (vectors) softmax_row<LANES<T>>(part, from, logarithm, static_cast<T *>(y));
    else softmax_row<1>(part, from, logarithm, static_cast<T *>(y));
  });
}

template <u32 N, typename T>
__device__ void softmax_row_backward(const RowPart &part, const T *y, const T *dy, bool logarithm, T *dx) {
  const u64 start = part.row * part.columns;
  double sum = 0;
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> value = load<N>(y + start + c), gradient = load<N>(dy + start + c);
    Wide<T> terms = 0;
#pragma unroll
    for (u32 k = 0; k < N; k++) terms += softmax_term(value.at[k], gradient.at[k], logarithm);
    sum += double(terms);
  }
  const Wide<T> all = Wide<T>(over_row<Add>(sum, part.width));
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> value = load<N>(y + start + c);
    Pack<T, N> gradient = load<N>(dy + start + c);
#pragma unroll
    for (u32 k = 0; k < N; k++) gradient.at[k] = softmax_gradient(value.at[k], gradient.at[k], all, logarithm);
    store<N>(dx + start + c, gradient);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_rows_backward(u32 type, const void *y, const void *dy, u64 rows, u32 columns, u32 width, u32 vectors,
                          u32 logarithm, void *dx) {
  const RowPart part(rows, columns, width);
  WITH_TYPE(type, {
    const T *value = static_cast<const T *>(y), *gradient = static_cast<const T *>(dy);
    if (vectors) softmax_row_backward<LANES<T>>(part, value, gradient, logarithm, static_cast<T *>(dx));
    else softmax_row_backward<1>(part, value, gradient, logarithm, static_cast<T *>(dx));
  });
}

// Along another dimension: a thread to a row, whose elements are `inner` apart, so that neighbors read neighbors.
extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_strided(u32 type, const void *x, u64 outer, u32 size, u64 inner, u32 logarithm, void *y) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= outer * inner) return;
  const u64 start = i / inner * size * inner + i % inner;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + start;
    double most = least(), sum = 0;
    for (u32 k = 0; k < size; k++) most = Largest::of(most, double(Number<T>::widen(from[k * inner])));
    for (u32 k = 0; k < size; k++) sum += double(exp_of(Number<T>::widen(from[k * inner]) - Wide<T>(most)));
    const SoftmaxRow<T> row(most, sum);
    for (u32 k = 0; k < size; k++) static_cast<T *>(y)[start + k * inner] = row.of(from[k * inner], logarithm);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_strided_backward(u32 type, const void *y, const void *dy, u64 outer, u32 size, u64 inner, u32 logarithm,
                             void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= outer * inner) return;
  const u64 start = i / inner * size * inner + i % inner;
  WITH_TYPE(type, {
    const T *value = static_cast<const T *>(y) + start, *gradient = static_cast<const T *>(dy) + start;
    double sum = 0;
    for (u32 k = 0; k < size; k++) sum += double(softmax_term(value[k * inner], gradient[k * inner], logarithm));
    for (u32 k = 0; k < size; k++) {
      static_cast<T *>(dx)[start + k * inner] =
          softmax_gradient(value[k * inner], gradient[k * inner], Wide<T>(sum), logarithm);
    }
  });
}
