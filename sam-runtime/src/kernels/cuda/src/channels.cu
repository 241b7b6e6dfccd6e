// Moments of channels, and a bias for each channel.
#include "channels.cuh"

template <typename T, u32 N, u32 C> struct Moments : PartialSums<T, C> {
  typedef Pack<T, N> In;
  const T *x;
  Wide<T> origin[C] = {};

  __device__ explicit Moments(const void *x) : x(static_cast<const T *>(x)) {}
  __device__ __forceinline__ In read(u64 i) const { return load<N>(x + i); }
  __device__ __forceinline__ void use(u64, const In &in) {
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> distance = Number<T>::widen(in.at[k]) - origin[k % C];
      this->add(k % C, distance, distance);
    }
  }
};

// Σ(x - origin) and Σ(x - origin)² of each part. The origin is the channel's first element, so that a large mean does
// not cancel the variance's digits.
extern "C" __global__ void __launch_bounds__(THREADS)
    channel_moments(u32 type, ChannelArgs of, const void *x, u32 centered, double *partials) {
  WITH_PART(type, of, {
    Moments<T, N, C> moments(x);
    if (part.active()) {
      const u64 first = u64(part.channel) * (of.across ? 1 : of.plane);
      for (u32 c = 0; centered && c < C; c++) moments.origin[c] = Number<T>::widen(moments.x[first + c]);
      sweep(part, moments);
    }
    moments.store_partials(part, partials);
  });
}

template <typename T, u32 N, u32 C> struct AddBias {
  typedef Pack<T, N> In;
  T *y;
  Wide<T> by[C];

  __device__ __forceinline__ In read(u64 i) const { return load<N>(y + i); }
  __device__ __forceinline__ void use(u64 i, const In &in) {
    Pack<T, N> out;
#pragma unroll
    for (u32 k = 0; k < N; k++) out.at[k] = Number<T>::narrow(Number<T>::widen(in.at[k]) + by[k % C]);
    store<N>(y + i, out);
  }
  __device__ __forceinline__ void flush() const {}
};

// y ← y + bias
extern "C" __global__ void __launch_bounds__(THREADS)
    channel_bias(u32 type, ChannelArgs of, void *y, u32 bias_type, const void *bias) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    AddBias<T, N, C> shift;
    shift.y = static_cast<T *>(y);
    for (u32 c = 0; c < C; c++) shift.by[c] = Wide<T>(read(bias, bias_type, part.channel + c));
    sweep(part, shift);
  });
}

// The gradient of the bias: the first of the moments of dy, with origin 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    channel_bias_backward(ChannelArgs of, const double *partials, u32 bias_type, void *d_bias) {
  const ChannelSums totals(partials, of.channels, of.splits);
  if (totals.mine) write(d_bias, bias_type, totals.channel, totals.sum);
}
