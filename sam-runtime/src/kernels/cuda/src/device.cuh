// What all kernels share: dtypes, vectors, and reductions over a block.
//
// nvcc, NVRTC and, in the tests, a C++ compiler read these files. They need no header of CUDA. Sums run over a few
// elements in the accumulation dtype (f32 for half precision), then in f64 in a fixed order and without atomics:
// results are deterministic.
#pragma once

#include "shared.h"

struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

// The emulator brings its own.
#ifndef EMULATED
__device__ __forceinline__ float f16_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ __forceinline__ unsigned short float_to_f16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

// A storage dtype: its accumulation dtype `Wide`, and the conversions.
template <typename T> struct Number;

template <> struct Number<float> {
  typedef float Wide;
  static __device__ __forceinline__ float widen(float x) { return x; }
  static __device__ __forceinline__ float narrow(float x) { return x; }
};

template <> struct Number<double> {
  typedef double Wide;
  static __device__ __forceinline__ double widen(double x) { return x; }
  static __device__ __forceinline__ double narrow(double x) { return x; }
};

template <> struct Number<f16> {
  typedef float Wide;
  static __device__ __forceinline__ float widen(f16 x) { return f16_to_float(x.bits); }
  static __device__ __forceinline__ f16 narrow(float x) { return {float_to_f16(x)}; }
};

template <> struct Number<bf16> {
  typedef float Wide;
  static __device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

  // Round to nearest, ties to even. (cvt.rn.bf16.f32 needs sm_80.)
  static __device__ __forceinline__ bf16 narrow(float x) {
    const u32 bits = __float_as_uint(x);
    bf16 narrow;
    narrow.bits = x != x ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return narrow;
  }
};

template <typename T> using Wide = typename Number<T>::Wide;

// Runs code with T as the type of a dtype code, which is the same for all threads of a block.
#define WITH_TYPE(type, ...)                                                                                           \
  switch (type) {                                                                                                      \
  case DTYPE_F32: { typedef float T; __VA_ARGS__; } break;                                                             \
  case DTYPE_F64: { typedef double T; __VA_ARGS__; } break;                                                            \
  case DTYPE_F16: { typedef f16 T; __VA_ARGS__; } break;                                                               \
  case DTYPE_BF16: { typedef bf16 T; __VA_ARGS__; } break;                                                             \
  }

// One element of a tensor of any dtype.
__device__ __noinline__ inline double read(const void *from, u32 type, u64 i) {
  double x = 0;
  WITH_TYPE(type, x = Number<T>::widen(static_cast<const T *>(from)[i]));
  return x;
}

__device__ inline void write(void *to, u32 type, u64 i, double x) {
  WITH_TYPE(type, static_cast<T *>(to)[i] = Number<T>::narrow(Wide<T>(x)));
}

// N neighboring elements in one load or store: LANES of them have 16 bytes.
template <typename T, u32 N> struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <typename T> constexpr u32 LANES = VECTOR_BYTES / sizeof(T);

template <u32 N, typename T> __device__ __forceinline__ Pack<T, N> load(const T *from) {
  return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <u32 N, typename T> __device__ __forceinline__ void store(T *to, const Pack<T, N> &pack) {
  *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

__device__ __forceinline__ bool aligned(const void *pointer) { return reinterpret_cast<u64>(pointer) % VECTOR_BYTES == 0; }

// fma, sqrt and so on for both types. Not every version of NVRTC has the overloads of CUDA's C++.
__device__ __forceinline__ float mul_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double mul_add(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ float size_of(float x) { return fabsf(x); }
__device__ __forceinline__ double size_of(double x) { return fabs(x); }
__device__ __forceinline__ float root_of(float x) { return sqrtf(x); }
__device__ __forceinline__ double root_of(double x) { return sqrt(x); }
__device__ __forceinline__ float power_of(float x, float e) { return powf(x, e); }
__device__ __forceinline__ double power_of(double x, double e) { return pow(x, e); }
__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float exp_less_one(float x) { return expm1f(x); }
__device__ __forceinline__ double exp_less_one(double x) { return expm1(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float erfc_of(float x) { return erfcf(x); }
__device__ __forceinline__ double erfc_of(double x) { return erfc(x); }

// The larger of two non-negative numbers. Compares their bits, where infinity and NaN are the largest, so neither is
// lost.
__device__ __forceinline__ double larger(double a, double b) {
  return __double_as_longlong(a) > __double_as_longlong(b) ? a : b;
}

struct Add {
  static __device__ __forceinline__ double of(double a, double b) { return a + b; }
};

struct Larger {
  static __device__ __forceinline__ double of(double a, double b) { return larger(a, b); }
};

// Tree reduction over the threads of a block, in a fixed order; all threads get the result. With `apart`, a power of
// two: over each group of threads whose indices differ by multiples of it.
template <typename Fold> __device__ __noinline__ double over_block(double x, u32 apart = 1) {
  __shared__ double parts[THREADS];
  parts[threadIdx.x] = x;
  __syncthreads();
  for (u32 half = THREADS / 2; half >= apart; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] = Fold::of(parts[threadIdx.x], parts[threadIdx.x + half]);
    __syncthreads();
  }
  const double all = parts[threadIdx.x % apart];
  __syncthreads();
  return all;
}

// Reduces `n` numbers in memory, by one block.
template <typename Fold> __device__ double over_memory(const double *from, u32 n) {
  double x = 0;
#pragma unroll 8
  for (u32 i = threadIdx.x; i < n; i += THREADS) x = Fold::of(x, from[i]);
  return over_block<Fold>(x);
}
