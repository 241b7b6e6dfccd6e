// Rows that are shared by neighboring threads of a block.
#pragma once
#include "device.cuh"

// `width` neighboring threads, a power of two, take each row of `columns` elements.
struct RowPart {
  u32 columns, lane, width;
  u64 row;
  bool active;

  __device__ RowPart(u64 rows, u32 columns, u32 width)
      : columns(columns), lane(threadIdx.x % width), width(width),
        row(u64(blockIdx.x) * (THREADS / width) + threadIdx.x / width), active(row < rows) {}

  // The first element of this thread, and the distance to its next, in loads of N; without elements past the last row.
  template <u32 N> __device__ __forceinline__ u32 begin() const { return active ? lane * N : columns; }
  template <u32 N> __device__ __forceinline__ u32 step() const { return width * N; }
};

// The larger; NaN is ignored.
struct Largest {
  static __device__ __forceinline__ double of(double a, double b) { return b > a ? b : a; }
};

// Tree reduction over the threads of each row, in a fixed order; all of them get the result.
template <typename Fold> __device__ __noinline__ double over_row(double x, u32 width) {
  __shared__ double parts[THREADS];
  parts[threadIdx.x] = x;
  __syncthreads();
  for (u32 half = width / 2; half > 0; half /= 2) {
    if (threadIdx.x % width < half) parts[threadIdx.x] = Fold::of(parts[threadIdx.x], parts[threadIdx.x + half]);
    __syncthreads();
  }
  const double all = parts[threadIdx.x / width * width];
  __syncthreads();
  return all;
}

// Mean, or 0, and 1/σ of a row, as they are stored for the backward pass.
struct RowMoments {
  double mean, inverse;
};

// The distance from a mean, which is subtracted in two parts: the first difference is exact where x is near.
template <typename T> struct Center {
  Wide<T> high, low;

  __device__ explicit Center(double mean) : high(Wide<T>(mean)), low(Wide<T>(mean - high)) {}
  __device__ __forceinline__ Wide<T> of(T x) const { return (Number<T>::widen(x) - high) - low; }
};

// The moments of a row: two readings, each added up in f64.
template <u32 N, typename T>
__device__ RowMoments row_moments(const RowPart &part, const T *x, double eps, bool centered) {
  RowMoments moments = {0, 0};
  if (centered) {
    double sum = 0;
    for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
      const Pack<T, N> in = load<N>(x + c);
#pragma unroll
      for (u32 k = 0; k < N; k++) sum += double(Number<T>::widen(in.at[k]));
    }
    moments.mean = over_row<Add>(sum, part.width) / part.columns;
  }
  const Center<T> center(moments.mean);
  double square = 0;
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> in = load<N>(x + c);
    Wide<T> squares = 0;
#pragma unroll
    for (u32 k = 0; k < N; k++) squares = mul_add(center.of(in.at[k]), center.of(in.at[k]), squares);
    square += double(squares);
  }
  moments.inverse = 1 / sqrt(over_row<Add>(square, part.width) / part.columns + eps);
  return moments;
}

// dx = scale γ dy - shift - slope (x - mean), given Σ γ dy and Σ γ dy (x - mean).
template <typename T> struct RowGradient {
  Center<T> center;
  Wide<T> scale, shift, slope;

  __device__ RowGradient(const RowMoments &moments, double sum, double moment, double count, bool centered)
      : center(moments.mean), scale(Wide<T>(moments.inverse)),
        shift(Wide<T>(centered ? moments.inverse * sum / count : 0)),
        slope(Wide<T>(moments.inverse * moments.inverse * moments.inverse * moment / count)) {}
  __device__ __forceinline__ T of(T x, Wide<T> weighted) const {
    return Number<T>::narrow(mul_add(weighted, scale, -shift) - center.of(x) * slope);
  }
};
