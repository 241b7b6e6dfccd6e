// Batch normalization, fused with the residual sum and the ReLU that follow it.
#include "channels.cuh"

// The statistics of all channels, array after array: mean, 1/σ, γ/σ and β.
struct Statistics {
  double *mean, *inverse, *scale, *shift;

  __device__ Statistics(double *all, u32 channels)
      : mean(all), inverse(all + channels), scale(all + 2 * channels), shift(all + 3 * channels) {}

  __device__ void set(u32 channel, double center, double var, double eps, const AffineArgs &affine) const {
    mean[channel] = center;
    inverse[channel] = 1 / sqrt(var + eps);
    scale[channel] = (affine.weight ? read(affine.weight, affine.dtype, channel) : 1) * inverse[channel];
    shift[channel] = affine.bias ? read(affine.bias, affine.dtype, channel) : 0;
  }
};

// Statistics of the batch. Updates the running statistics, if there are any.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_batch_statistics(u32 type, ChannelArgs of, const void *x, AffineArgs affine, u32 centered, double count,
                        double eps, const double *partials, double *statistics, double momentum, u32 running_type,
                        void *running_mean, void *running_var) {
  const ChannelSums totals(partials, of.channels, of.splits);
  if (!totals.mine) return;
  const u32 channel = totals.channel;
  const double origin = centered ? read(x, type, u64(channel) * (of.across ? 1 : of.plane)) : 0;
  const double distance = centered ? totals.sum / count : 0;
  const double spread = totals.moment / count - distance * distance;
  const double mean = origin + distance;
  // Not max(), which would hide NaN.
  const double var = spread < 0 ? 0 : spread;
  Statistics(statistics, of.channels).set(channel, mean, var, eps, affine);
  if (running_mean && centered) {
    const double old = read(running_mean, running_type, channel);
    write(running_mean, running_type, channel, old * (1 - momentum) + mean * momentum);
  }
  if (running_var) {
    const double old = read(running_var, running_type, channel), unbiased = count / (count - 1);
    write(running_var, running_type, channel, old * (1 - momentum) + var * momentum * unbiased);
  }
}

// Evaluation mode: the running statistics take the place of those of the batch.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_running_statistics(u32 type, const void *mean, const void *var, u32 channels, AffineArgs affine, double eps,
                          double *statistics) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  Statistics(statistics, channels).set(channel, read(mean, type, channel), read(var, type, channel), eps, affine);
}

// γ (x - mean) / σ + β for each channel. Forward and backward compute bitwise identical values, so the sign agrees.
template <typename T, u32 C> struct AffineCoefficients {
  Wide<T> center[C], scale[C], shift[C];

  __device__ AffineCoefficients(double *all, u32 channels, u32 channel) {
    const Statistics statistics(all, channels);
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      center[c] = Wide<T>(statistics.mean[channel + c]);
      scale[c] = Wide<T>(statistics.scale[channel + c]);
      shift[c] = Wide<T>(statistics.shift[channel + c]);
    }
  }
  __device__ __forceinline__ Wide<T> of(Wide<T> x, u32 c) const { return mul_add(x - center[c], scale[c], shift[c]); }
  __device__ __forceinline__ void flush() const {}
};

template <typename T, u32 N, u32 C> struct Normalize : AffineCoefficients<T, C> {
  struct In {
    Pack<T, N> x, residual;
  };
  const T *x, *residual;
  T *y;
  bool relu;

  __device__ Normalize(const AffineCoefficients<T, C> &coefficients, const void *x, const void *residual, void *y,
                       bool relu)
      : AffineCoefficients<T, C>(coefficients), x(static_cast<const T *>(x)),
        residual(static_cast<const T *>(residual)), y(static_cast<T *>(y)), relu(relu) {}
  __device__ __forceinline__ In read(u64 i) const {
    In in;
    in.x = load<N>(x + i);
    in.residual = residual ? load<N>(residual + i) : in.x;
    return in;
  }
  __device__ __forceinline__ void use(u64 i, const In &in) {
    Pack<T, N> out;
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      Wide<T> value = this->of(Number<T>::widen(in.x.at[k]), k % C);
      if (residual) value += Number<T>::widen(in.residual.at[k]);
      if (relu && value < 0) value = 0;
      out.at[k] = Number<T>::narrow(value);
    }
    store<N>(y + i, out);
  }
};

// y = relu(γ (x - mean) / σ + β + residual)
// Four blocks per multiprocessor: more would spill registers.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    bn_forward(u32 type, ChannelArgs of, const void *x, const void *residual, double *statistics, u32 relu, void *y) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    Normalize<T, N, C> each(AffineCoefficients<T, C>(statistics, of.channels, part.channel), x, residual, y, relu != 0);
    sweep(part, each);
  });
}

// The gradient of y before the ReLU. The mask is y > 0: y is kept if there was a residual, otherwise recomputed from x.
template <typename T, u32 N, u32 C> struct ReluMaskedGrad : AffineCoefficients<T, C> {
  struct In {
    Pack<T, N> x, y, dy;
  };
  const T *x, *y, *dy;
  bool relu;

  __device__ ReluMaskedGrad(const AffineCoefficients<T, C> &coefficients, const void *x, const void *y, const void *dy,
                            bool relu)
      : AffineCoefficients<T, C>(coefficients), x(static_cast<const T *>(x)), y(static_cast<const T *>(y)),
        dy(static_cast<const T *>(dy)), relu(relu) {}
  __device__ __forceinline__ In read(u64 i) const {
    In in;
    in.x = load<N>(x + i);
    in.y = y ? load<N>(y + i) : in.x;
    in.dy = load<N>(dy + i);
    return in;
  }
  __device__ __forceinline__ Wide<T> distance(const In &in, u32 k) const {
    return Number<T>::widen(in.x.at[k]) - this->center[k % C];
  }
  __device__ __forceinline__ Wide<T> grad(const In &in, u32 k) const {
    const Wide<T> sign = y ? Number<T>::widen(in.y.at[k]) : this->of(Number<T>::widen(in.x.at[k]), k % C);
    return !relu || sign > 0 ? Number<T>::widen(in.dy.at[k]) : Wide<T>(0);
  }
};

template <typename T, u32 N, u32 C> struct GradSums : ReluMaskedGrad<T, N, C> {
  typedef typename ReluMaskedGrad<T, N, C>::In In;
  PartialSums<T, C> sums;

  __device__ explicit GradSums(const ReluMaskedGrad<T, N, C> &masked) : ReluMaskedGrad<T, N, C>(masked) {}
  __device__ __forceinline__ void use(u64, const In &in) {
#pragma unroll
    for (u32 k = 0; k < N; k++) sums.add(k % C, this->grad(in, k), this->distance(in, k));
  }
  __device__ __forceinline__ void flush() { sums.flush(); }
};

// Σ dy and Σ dy (x - mean) of each part, with dy before the ReLU.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_backward_reduce(u32 type, ChannelArgs of, const void *x, const void *y, const void *dy, double *statistics,
                       u32 relu, double *partials) {
  WITH_PART(type, of, {
    PartialSums<T, C> sums;
    if (part.active()) {
      const AffineCoefficients<T, C> coefficients(statistics, of.channels, part.channel);
      GradSums<T, N, C> grad_sums(ReluMaskedGrad<T, N, C>(coefficients, x, y, dy, relu != 0));
      sweep(part, grad_sums);
      sums = grad_sums.sums;
    }
    sums.store_partials(part, partials);
  });
}

// The gradients of γ and β, and the two coefficients of dx for each channel: a shift, and the slope of x - mean.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_backward_coefficients(ChannelArgs of, double *all, u32 centered, u32 fixed, double count, const double *partials,
                             double *coefficients, u32 affine_type, void *d_weight, void *d_bias) {
  const ChannelSums totals(partials, of.channels, of.splits);
  if (!totals.mine) return;
  const u32 channel = totals.channel;
  const Statistics statistics(all, of.channels);
  const double inverse = statistics.inverse[channel], scale = statistics.scale[channel];
  coefficients[channel] = fixed || !centered ? 0 : scale * totals.sum / count;
  coefficients[of.channels + channel] = fixed ? 0 : scale * inverse * inverse * totals.moment / count;
  if (d_weight) write(d_weight, affine_type, channel, totals.moment * inverse);
  if (d_bias) write(d_bias, affine_type, channel, totals.sum);
}

template <typename T, u32 N, u32 C> struct NormalizeBackward : ReluMaskedGrad<T, N, C> {
  typedef typename ReluMaskedGrad<T, N, C>::In In;
  Wide<T> grad_shift[C], grad_slope[C];
  T *dx, *d_residual;

  __device__ NormalizeBackward(const ReluMaskedGrad<T, N, C> &masked, const double *coefficients, u32 channels,
                               u32 channel, void *dx, void *d_residual)
      : ReluMaskedGrad<T, N, C>(masked), dx(static_cast<T *>(dx)), d_residual(static_cast<T *>(d_residual)) {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      grad_shift[c] = Wide<T>(coefficients[channel + c]);
      grad_slope[c] = Wide<T>(coefficients[channels + channel + c]);
    }
  }
  __device__ __forceinline__ void use(u64 i, const In &in) {
    Pack<T, N> out, residual_out;
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> grad = this->grad(in, k),
                    offset = mul_add(this->distance(in, k), grad_slope[k % C], grad_shift[k % C]);
      out.at[k] = Number<T>::narrow(mul_add(grad, this->scale[k % C], -offset));
      residual_out.at[k] = Number<T>::narrow(grad);
    }
    store<N>(dx + i, out);
    if (d_residual) store<N>(d_residual + i, residual_out);
  }
};

// dx = γ/σ (dy - mean of dy - (x - mean) · mean of dy (x - mean) / σ²), and for the residual dy before the ReLU.
extern "C" __global__ void __launch_bounds__(THREADS)
    bn_backward(u32 type, ChannelArgs of, const void *x, const void *y, const void *dy, double *statistics, u32 relu,
                const double *coefficients, void *dx, void *d_residual) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    const ReluMaskedGrad<T, N, C> masked(AffineCoefficients<T, C>(statistics, of.channels, part.channel), x, y, dy,
                                         relu != 0);
    NormalizeBackward<T, N, C> back(masked, coefficients, of.channels, part.channel, dx, d_residual);
    sweep(part, back);
  });
}
