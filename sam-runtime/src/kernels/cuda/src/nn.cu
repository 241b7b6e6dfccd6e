// The layers' kernels: what is around the matrix products of training, forward and backward.
//
// Images lie in planes, (n, channels, height, width), or in rows, (n, height, width, channels), without gaps. Sums run in
// short stretches of the tensor's own arithmetic (f32 for halves), which are added up in f64 in a fixed order. No atomics:
// the same bits every time.
#include "device.cuh"

// Elements that one block takes where each is by itself.
constexpr u64 STRETCH = 1 << 12;

template <u32 N, typename Each> __device__ __forceinline__ void stretch(u64 n, const Each &each) {
  const u64 begin = blockIdx.x * STRETCH, end = min(begin + STRETCH, n), whole = begin + (end - begin) / N * N;
  for (u64 i = begin + threadIdx.x * N; i < whole; i += THREADS * N) each.template at<N>(i);
  for (u64 i = whole + threadIdx.x; i < end; i += THREADS) each.template at<1>(i);
}

// ---- ReLU, sums, dropout, mixtures ----

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
extern "C" __global__ void __launch_bounds__(THREADS) nn_relu(u32 type, const void *x, void *y, u64 n) {
  WITH_TYPE(type, {
    const Relu<T> relu = {static_cast<const T *>(x), static_cast<T *>(y)};
    if (aligned(x) && aligned(y)) stretch<LANES<T>>(n, relu);
    else stretch<1>(n, relu);
  });
}

template <typename T> struct ReluBack {
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

extern "C" __global__ void __launch_bounds__(THREADS) nn_relu_back(u32 type, const void *y, const void *dy, void *dx,
                                                                   u64 n) {
  WITH_TYPE(type, {
    const ReluBack<T> back = {static_cast<const T *>(y), static_cast<const T *>(dy), static_cast<T *>(dx)};
    if (aligned(y) && aligned(dy) && aligned(dx)) stretch<LANES<T>>(n, back);
    else stretch<1>(n, back);
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
extern "C" __global__ void __launch_bounds__(THREADS) nn_add(u32 type, const void *a, const void *b, void *y, u64 n) {
  WITH_TYPE(type, {
    const Sum<T> sum = {static_cast<const T *>(a), static_cast<const T *>(b), static_cast<T *>(y)};
    if (aligned(a) && aligned(b) && aligned(y)) stretch<LANES<T>>(n, sum);
    else stretch<1>(n, sum);
  });
}

// The finaliser of SplitMix64, as in variants/noise.rs.
__device__ __forceinline__ u64 mix(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

template <typename T> struct Dropout {
  const T *x;
  T *y;
  u64 plane, step, seed;
  float drop;
  Wide<T> scale;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> pack = load<N>(x + i);
    const u64 first = seed + place(i), next = step == 1 ? 1 : plane;
    for (u32 k = 0; k < N; k++) {
      const bool keeps = float(mix(first + k * next) >> 40) / 16777216.f >= drop;
      pack.at[k] = Number<T>::narrow(keeps ? Number<T>::widen(pack.at[k]) * scale : Wide<T>(0));
    }
    store<N>(y + i, pack);
  }

  // Where an element would be in planes. The lanes of a vector are channels of one pixel.
  __device__ __forceinline__ u64 place(u64 i) const {
    return step == 1 ? i : (i / (plane * step) * step + i % step) * plane + i / step % plane;
  }
};

// The mask of nn/dropout.rs, bit for bit. In rows `step` channels of `plane` pixels lie side by side; in planes that is 1.
extern "C" __global__ void __launch_bounds__(THREADS) nn_dropout(u32 type, const void *x, void *y, u64 n, u64 plane,
                                                                 u64 step, u64 seed, double drop, double scale) {
  WITH_TYPE(type, {
    const Wide<T> rounded = Number<T>::widen(Number<T>::narrow(Wide<T>(scale)));
    const Dropout<T> dropout = {static_cast<const T *>(x), static_cast<T *>(y), plane, step, seed, float(drop),
                                rounded};
    if (aligned(x) && aligned(y) && (step == 1 || step % LANES<T> == 0)) stretch<LANES<T>>(n, dropout);
    else stretch<1>(n, dropout);
  });
}

template <typename T> struct Mixture {
  const T *a, *b;
  const Wide<T> *of_a, *of_b;
  T *y;
  u64 example;

  // Of one example.
  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Pack<T, N> left = load<N>(a + i), right = load<N>((b ? b : a) + i);
    const Wide<T> f = of_a[i / example], g = b ? of_b[i / example] : 0;
    Pack<T, N> pack;
    for (u32 k = 0; k < N; k++) {
      Wide<T> value = Number<T>::widen(left.at[k]) * f;
      if (b) value += Number<T>::widen(right.at[k]) * g;
      pack.at[k] = Number<T>::narrow(value);
    }
    store<N>(y + i, pack);
  }
};

// y = f a + g b, f and g a number for each example of so many elements; without b, f a.
extern "C" __global__ void __launch_bounds__(THREADS) nn_mixture(u32 type, const void *a, const void *b, void *y, u64 n,
                                                                 u64 example, const void *of_a, const void *of_b) {
  WITH_TYPE(type, {
    typedef Wide<T> W;
    const Mixture<T> mixture = {static_cast<const T *>(a),    static_cast<const T *>(b), static_cast<const W *>(of_a),
                                static_cast<const W *>(of_b), static_cast<T *>(y),       example};
    if (aligned(a) && aligned(b) && aligned(y) && example % LANES<T> == 0) stretch<LANES<T>>(n, mixture);
    else stretch<1>(n, mixture);
  });
}

// ---- channels: the part of them that a block takes ----

// How images lie in memory, and how they are shared out. In planes, (n, channels, height, width), a vector lies within a
// channel, and a block takes some images of one. In rows, (n, height, width, channels), each lane of a vector is another
// channel, `across` threads lie side by side, and a block takes some rows of as many channels. Of planes `across` is 0.
struct Channels {
  u32 images, channels, plane, splits, across, lanes;
};

// Elements that are read as one in rows: as many channels have sums of their own, in registers.
template <typename T> constexpr u32 ROW_LANES = LANES<T> < 4 ? LANES<T> : 4;

// Vectors that a thread asks for before it uses the first: 32 bytes, up to four.
template <typename T, u32 N> constexpr u32 AT_ONCE = sizeof(T) * N < 16 ? 4 : 2;

template <typename T, u32 N_> struct Planes {
  static constexpr u32 N = N_, C = 1;
  u32 channels, plane, splits, split, channel, first, last;

  __device__ explicit Planes(const Channels &of)
      : channels(of.channels), plane(of.plane), splits(of.splits), split(blockIdx.x % splits),
        channel(blockIdx.x / splits), first(u64(of.images) * split / splits),
        last(u64(of.images) * (split + 1) / splits) {}

  // Threads whose elements are of different channels.
  __device__ u32 across() const { return 1; }
  __device__ bool active() const { return true; }
  __device__ u32 begin() const { return threadIdx.x * N; }
  __device__ u32 end() const { return (last - first) * plane; }
  __device__ u32 step() const { return THREADS * N; }
  __device__ __forceinline__ u64 place(u32 i) const {
    return (u64(first + i / plane) * channels + channel) * plane + i % plane;
  }
};

template <typename T, u32 N_> struct Rows {
  static constexpr u32 N = N_, C = N;
  u32 channels, abreast, splits, split, channel, first, last;

  __device__ explicit Rows(const Channels &of)
      : channels(of.channels), abreast(of.across), splits(of.splits), split(blockIdx.x % splits),
        channel((blockIdx.x / splits * abreast + threadIdx.x % abreast) * N),
        first(u64(of.images) * of.plane * split / splits), last(u64(of.images) * of.plane * (split + 1) / splits) {}

  __device__ u32 across() const { return abreast; }
  __device__ bool active() const { return channel < channels; }
  __device__ u32 begin() const { return threadIdx.x / abreast; }
  __device__ u32 end() const { return last - first; }
  __device__ u32 step() const { return THREADS / abreast; }
  __device__ __forceinline__ u64 place(u32 i) const { return u64(first + i) * channels + channel; }
};

// Runs some code with `part` and its N lanes of C channels.
#define WITH_PART(type, of, ...)                                                                                       \
  WITH_TYPE(type, {                                                                                                    \
    if (of.across == 0 && of.lanes == 1) WITH_PART_OF(Planes, 1, of, __VA_ARGS__)                                      \
    else if (of.across == 0) WITH_PART_OF(Planes, LANES<T>, of, __VA_ARGS__)                                           \
    else if (of.lanes == 1) WITH_PART_OF(Rows, 1, of, __VA_ARGS__)                                                     \
    else WITH_PART_OF(Rows, ROW_LANES<T>, of, __VA_ARGS__)                                                             \
  })
#define WITH_PART_OF(Part, lanes, of, ...)                                                                             \
  {                                                                                                                    \
    constexpr u32 N = lanes, C = Part<T, N>::C;                                                                        \
    const Part<T, N> part(of);                                                                                         \
    __VA_ARGS__;                                                                                                       \
  }

// Hands each vector of a part to `each`, which reads some before it uses the first.
template <typename T, u32 N, template <typename, u32> class Part, typename Each>
__device__ __forceinline__ void sweep(const Part<T, N> &part, Each &each) {
  constexpr u32 SOME = AT_ONCE<T, N>;
  const u32 end = part.end(), step = part.step();
  u32 i = part.begin();
  for (; i + (SOME - 1) * step < end; i += SOME * step) {
    typename Each::In in[SOME];
#pragma unroll
    for (u32 k = 0; k < SOME; k++) in[k] = each.read(part.place(i + k * step));
#pragma unroll
    for (u32 k = 0; k < SOME; k++) each.use(part.place(i + k * step), in[k]);
    each.rest();
  }
  for (; i < end; i += step) {
    each.use(part.place(i), each.read(part.place(i)));
    each.rest();
  }
}

// Σa and Σab of each channel: in the tensor's arithmetic over a short stretch, in f64 over all.
template <typename T, u32 C> struct Sums {
  Wide<T> some[C] = {}, products[C] = {};
  double sums[C] = {}, moments[C] = {};

  __device__ __forceinline__ void add(u32 c, Wide<T> a, Wide<T> b) {
    some[c] += a;
    products[c] = mul_add(a, b, products[c]);
  }

  __device__ __forceinline__ void rest() {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      sums[c] += some[c];
      moments[c] += products[c];
      some[c] = products[c] = 0;
    }
  }

  // For Totals.
  template <typename Part> __device__ void leave(const Part &part, double *parts) const {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      const double sum = over_block<Add>(sums[c], part.across()), moment = over_block<Add>(moments[c], part.across());
      if (threadIdx.x >= part.across() || !part.active()) continue;
      const u64 mine = u64(part.channel + c) * part.splits + part.split;
      parts[2 * mine] = sum;
      parts[2 * mine + 1] = moment;
    }
  }
};

// Channels that a block takes where their parts are added up.
constexpr u32 TOTALS = 8;

// What the parts of a channel come to. Of the threads that add them up one is the channel's.
struct Totals {
  u32 channel;
  bool mine;
  double sum, moment;

  __device__ Totals(const double *parts, u32 channels, u32 splits)
      : channel(blockIdx.x * TOTALS + threadIdx.x % TOTALS), mine(threadIdx.x < TOTALS && channel < channels), sum(0),
        moment(0) {
#pragma unroll 8
    for (u32 i = threadIdx.x / TOTALS; channel < channels && i < splits; i += THREADS / TOTALS) {
      const u64 place = u64(channel) * splits + i;
      sum += parts[2 * place];
      moment += parts[2 * place + 1];
    }
    sum = over_block<Add>(sum, TOTALS);
    moment = over_block<Add>(moment, TOTALS);
  }
};

// ---- batch normalisation, with the sum and the ReLU that follow it ----

template <typename T, u32 N, u32 C> struct Moments : Sums<T, C> {
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

// Σ(x - origin) and Σ(x - origin)² of each part. The origin is the channel's first element: a large mean would swallow
// the rest.
extern "C" __global__ void __launch_bounds__(THREADS) nn_moments(u32 type, Channels of, const void *x, u32 centred,
                                                                 double *parts) {
  WITH_PART(type, of, {
    Moments<T, N, C> moments(x);
    if (part.active()) {
      const u64 first = u64(part.channel) * (of.across ? 1 : of.plane);
      for (u32 c = 0; centred && c < C; c++) moments.origin[c] = Number<T>::widen(moments.x[first + c]);
      sweep(part, moments);
    }
    moments.leave(part, parts);
  });
}

// γ and β, where there are any.
struct Affine {
  u32 type;
  const void *weight, *bias;
};

// What is known of each channel, one after the other: mean, 1/σ, γ/σ and β.
struct Statistics {
  double *mean, *inverse, *scale, *shift;

  __device__ Statistics(double *all, u32 channels)
      : mean(all), inverse(all + channels), scale(all + 2 * channels), shift(all + 3 * channels) {}

  __device__ void set(u32 channel, double centre, double var, double eps, const Affine &affine) const {
    mean[channel] = centre;
    inverse[channel] = 1 / sqrt(var + eps);
    scale[channel] = (affine.weight ? read(affine.weight, affine.type, channel) : 1) * inverse[channel];
    shift[channel] = affine.bias ? read(affine.bias, affine.type, channel) : 0;
  }
};

// The statistics of the batch; the running ones move, where there are any.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_statistics(u32 type, Channels of, const void *x, Affine affine, u32 centred, double count, double eps,
                  const double *parts, double *statistics, double momentum, u32 running_type, void *running_mean,
                  void *running_var) {
  const Totals totals(parts, of.channels, of.splits);
  if (!totals.mine) return;
  const u32 channel = totals.channel;
  const double origin = centred ? read(x, type, u64(channel) * (of.across ? 1 : of.plane)) : 0;
  const double distance = centred ? totals.sum / count : 0;
  const double spread = totals.moment / count - distance * distance;
  const double mean = origin + distance;
  // Not max(), which would hide NaN.
  const double var = spread < 0 ? 0 : spread;
  Statistics(statistics, of.channels).set(channel, mean, var, eps, affine);
  if (running_mean && centred) {
    const double old = read(running_mean, running_type, channel);
    write(running_mean, running_type, channel, old * (1 - momentum) + mean * momentum);
  }
  if (running_var) {
    const double old = read(running_var, running_type, channel), unbiased = count / (count - 1);
    write(running_var, running_type, channel, old * (1 - momentum) + var * momentum * unbiased);
  }
}

// The statistics of a layer that does not train: the running ones.
extern "C" __global__ void __launch_bounds__(THREADS) nn_running(u32 type, const void *mean, const void *var,
                                                                 u32 channels, Affine affine, double eps,
                                                                 double *statistics) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  Statistics(statistics, channels).set(channel, read(mean, type, channel), read(var, type, channel), eps, affine);
}

// γ (x - mean) / σ + β for each channel. Forward and backward come to the same bits, and so to the same sign.
template <typename T, u32 C> struct Lines {
  Wide<T> centre[C], scale[C], shift[C];

  __device__ Lines(double *all, u32 channels, u32 channel) {
    const Statistics statistics(all, channels);
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      centre[c] = Wide<T>(statistics.mean[channel + c]);
      scale[c] = Wide<T>(statistics.scale[channel + c]);
      shift[c] = Wide<T>(statistics.shift[channel + c]);
    }
  }
  __device__ __forceinline__ Wide<T> of(Wide<T> x, u32 c) const { return mul_add(x - centre[c], scale[c], shift[c]); }
  __device__ __forceinline__ void rest() const {}
};

template <typename T, u32 N, u32 C> struct Normalise : Lines<T, C> {
  struct In {
    Pack<T, N> x, residual;
  };
  const T *x, *residual;
  T *y;
  bool relu;

  __device__ Normalise(const Lines<T, C> &lines, const void *x, const void *residual, void *y, bool relu)
      : Lines<T, C>(lines), x(static_cast<const T *>(x)), residual(static_cast<const T *>(residual)),
        y(static_cast<T *>(y)), relu(relu) {}
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
// Four blocks at a time: with more some registers would be put aside.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    nn_normalise(u32 type, Channels of, const void *x, const void *residual, double *statistics, u32 relu, void *y) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    Normalise<T, N, C> each(Lines<T, C>(statistics, of.channels, part.channel), x, residual, y, relu != 0);
    sweep(part, each);
  });
}

// dy before the ReLU. Its sign is that of y, which was kept where there was a residual, and is recomputed where not.
template <typename T, u32 N, u32 C> struct Masked : Lines<T, C> {
  struct In {
    Pack<T, N> x, y, dy;
  };
  const T *x, *y, *dy;
  bool relu;

  __device__ Masked(const Lines<T, C> &lines, const void *x, const void *y, const void *dy, bool relu)
      : Lines<T, C>(lines), x(static_cast<const T *>(x)), y(static_cast<const T *>(y)), dy(static_cast<const T *>(dy)),
        relu(relu) {}
  __device__ __forceinline__ In read(u64 i) const {
    In in;
    in.x = load<N>(x + i);
    in.y = y ? load<N>(y + i) : in.x;
    in.dy = load<N>(dy + i);
    return in;
  }
  __device__ __forceinline__ Wide<T> distance(const In &in, u32 k) const {
    return Number<T>::widen(in.x.at[k]) - this->centre[k % C];
  }
  __device__ __forceinline__ Wide<T> slope(const In &in, u32 k) const {
    const Wide<T> sign = y ? Number<T>::widen(in.y.at[k]) : this->of(Number<T>::widen(in.x.at[k]), k % C);
    return !relu || sign > 0 ? Number<T>::widen(in.dy.at[k]) : Wide<T>(0);
  }
};

template <typename T, u32 N, u32 C> struct Slopes : Masked<T, N, C> {
  typedef typename Masked<T, N, C>::In In;
  Sums<T, C> sums;

  __device__ explicit Slopes(const Masked<T, N, C> &masked) : Masked<T, N, C>(masked) {}
  __device__ __forceinline__ void use(u64, const In &in) {
#pragma unroll
    for (u32 k = 0; k < N; k++) sums.add(k % C, this->slope(in, k), this->distance(in, k));
  }
  __device__ __forceinline__ void rest() { sums.rest(); }
};

// Σ dy and Σ dy (x - mean) of each part, dy before the ReLU.
extern "C" __global__ void __launch_bounds__(THREADS) nn_slopes(u32 type, Channels of, const void *x, const void *y,
                                                                const void *dy, double *statistics, u32 relu,
                                                                double *parts) {
  WITH_PART(type, of, {
    Sums<T, C> sums;
    if (part.active()) {
      const Lines<T, C> lines(statistics, of.channels, part.channel);
      Slopes<T, N, C> slopes(Masked<T, N, C>(lines, x, y, dy, relu != 0));
      sweep(part, slopes);
      sums = slopes.sums;
    }
    sums.leave(part, parts);
  });
}

// The gradients of γ and β, and what dx needs of each channel: shift and slope, in `lines`.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_lines(Channels of, double *all, u32 centred, u32 fixed, double count, const double *parts, double *lines,
             u32 affine_type, void *d_weight, void *d_bias) {
  const Totals totals(parts, of.channels, of.splits);
  if (!totals.mine) return;
  const u32 channel = totals.channel;
  const Statistics statistics(all, of.channels);
  const double inverse = statistics.inverse[channel], scale = statistics.scale[channel];
  lines[channel] = fixed || !centred ? 0 : scale * totals.sum / count;
  lines[of.channels + channel] = fixed ? 0 : scale * inverse * inverse * totals.moment / count;
  if (d_weight) write(d_weight, affine_type, channel, totals.moment * inverse);
  if (d_bias) write(d_bias, affine_type, channel, totals.sum);
}

template <typename T, u32 N, u32 C> struct NormaliseBack : Masked<T, N, C> {
  typedef typename Masked<T, N, C>::In In;
  Wide<T> level[C], line[C];
  T *dx, *d_residual;

  __device__ NormaliseBack(const Masked<T, N, C> &masked, const double *lines, u32 channels, u32 channel, void *dx,
                           void *d_residual)
      : Masked<T, N, C>(masked), dx(static_cast<T *>(dx)), d_residual(static_cast<T *>(d_residual)) {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      level[c] = Wide<T>(lines[channel + c]);
      line[c] = Wide<T>(lines[channels + channel + c]);
    }
  }
  __device__ __forceinline__ void use(u64 i, const In &in) {
    Pack<T, N> out, beside;
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> slope = this->slope(in, k), off = mul_add(this->distance(in, k), line[k % C], level[k % C]);
      out.at[k] = Number<T>::narrow(mul_add(slope, this->scale[k % C], -off));
      beside.at[k] = Number<T>::narrow(slope);
    }
    store<N>(dx + i, out);
    if (d_residual) store<N>(d_residual + i, beside);
  }
};

// dx = γ/σ (dy - mean of dy - (x - mean) · mean of dy (x - mean) / σ²), and dy before the ReLU for the residual.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_normalise_back(u32 type, Channels of, const void *x, const void *y, const void *dy, double *statistics, u32 relu,
                      const double *lines, void *dx, void *d_residual) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    const Masked<T, N, C> masked(Lines<T, C>(statistics, of.channels, part.channel), x, y, dy, relu != 0);
    NormaliseBack<T, N, C> back(masked, lines, of.channels, part.channel, dx, d_residual);
    sweep(part, back);
  });
}

// ---- a bias for each channel ----

template <typename T, u32 N, u32 C> struct Shift {
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
  __device__ __forceinline__ void rest() const {}
};

// y ← y + bias
extern "C" __global__ void __launch_bounds__(THREADS) nn_bias(u32 type, Channels of, void *y, u32 bias_type,
                                                              const void *bias) {
  WITH_PART(type, of, {
    if (!part.active()) return;
    Shift<T, N, C> shift;
    shift.y = static_cast<T *>(y);
    for (u32 c = 0; c < C; c++) shift.by[c] = Wide<T>(read(bias, bias_type, part.channel + c));
    sweep(part, shift);
  });
}

// Its gradient, from the first of the moments.
extern "C" __global__ void __launch_bounds__(THREADS) nn_bias_back(Channels of, const double *parts, u32 bias_type,
                                                                   void *d_bias) {
  const Totals totals(parts, of.channels, of.splits);
  if (totals.mine) write(d_bias, bias_type, totals.channel, totals.sum);
}

// ---- pooling ----

enum Kind : u32 { MAX, MEAN };

// `step` is from one pixel to the next: 1 in planes, in rows the number of channels.
struct Pool {
  u32 kind, kernel, stride, padding, height, width, rows, columns, step;

  // The places of window `output` along a side: from first() to before last().
  __device__ __forceinline__ u32 first(u32 output) const {
    const u32 start = output * stride;
    return start > padding ? start - padding : 0;
  }
  __device__ __forceinline__ u32 last(u32 output, u32 side) const {
    return min(output * stride + kernel - padding, side);
  }

  // The first of the largest in a window; NaN is larger than any number.
  template <typename T> __device__ u32 largest(const T *x, u32 row, u32 column) const {
    u32 best = first(row) * width + first(column);
    Wide<T> most = Number<T>::widen(x[best * step]);
#pragma unroll 1
    for (u32 y = first(row); y < last(row, height); y++) {
#pragma unroll 1
      for (u32 place = y * width + first(column); place < y * width + last(column, width); place++) {
        const Wide<T> value = Number<T>::widen(x[place * step]);
        if (!(value <= most) && most == most) {
          best = place;
          most = value;
        }
      }
    }
    return best;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS) nn_pool(u32 type, Pool pool, const void *x, u64 n, void *y) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 channel = i % pool.step, column = i / pool.step % pool.columns;
  const u32 row = i / pool.step / pool.columns % pool.rows;
  const u64 image = i / pool.step / pool.columns / pool.rows;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + image * pool.height * pool.width * pool.step + channel;
    T *to = static_cast<T *>(y) + i;
    if (pool.kind == MAX) {
      *to = from[pool.largest(from, row, column) * pool.step];
    } else {
      Wide<T> sum = 0;
      for (u32 r = pool.first(row); r < pool.last(row, pool.height); r++) {
        for (u32 c = pool.first(column); c < pool.last(column, pool.width); c++) {
          sum += Number<T>::widen(from[(r * pool.width + c) * pool.step]);
        }
      }
      *to = Number<T>::narrow(sum / Wide<T>(pool.kernel * pool.kernel));
    }
  });
}

// The windows along a side that a place lies in: from first to before last.
struct Windows {
  u32 first, last;

  __device__ Windows(const Pool &pool, u32 place, u32 outputs)
      : first(place + pool.padding < pool.kernel ? 0 : (place + pool.padding - pool.kernel) / pool.stride + 1),
        last(min((place + pool.padding) / pool.stride + 1, outputs)) {}
};

// The gradient of one input: from the windows that it lies in, one after the other.
template <typename T>
__device__ T from_windows(const Pool &pool, const T *x, const T *dy, u32 place, Windows down, Windows right) {
  Wide<T> sum = 0;
#pragma unroll 1
  for (u32 r = down.first; r < down.last; r++) {
#pragma unroll 1
    for (u32 c = right.first; c < right.last; c++) {
      if (pool.kind == MEAN || pool.largest(x, r, c) == place) {
        sum += Number<T>::widen(dy[(r * pool.columns + c) * pool.step]);
      }
    }
  }
  if (pool.kind == MEAN) sum /= Wide<T>(pool.kernel * pool.kernel);
  return Number<T>::narrow(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_pool_back(u32 type, Pool pool, const void *x, const void *dy,
                                                                   u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 plane = pool.height * pool.width, channel = i % pool.step, place = i / pool.step % plane;
  const u64 image = i / pool.step / plane;
  const Windows down(pool, place / pool.width, pool.rows), right(pool, place % pool.width, pool.columns);
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + image * plane * pool.step + channel;
    const T *gradient = static_cast<const T *>(dy) + image * pool.rows * pool.columns * pool.step + channel;
    static_cast<T *>(dx)[i] = from_windows(pool, from, gradient, place, down, right);
  });
}

// Threads that take a plane together.
constexpr u32 TEAM = 32;

// The mean of each plane. In rows, where `step` channels lie side by side, one thread takes one; a team would meet a pixel
// of the same channel far from the one before.
extern "C" __global__ void __launch_bounds__(THREADS) nn_mean(u32 type, const void *x, u32 planes, u32 plane, u32 step,
                                                              void *y) {
  __shared__ double sums[THREADS];
  const u32 team = step == 1 ? TEAM : 1, member = threadIdx.x % team;
  const u32 mine = blockIdx.x * (THREADS / team) + threadIdx.x / team;
  double sum = 0;
  if (mine < planes) {
    WITH_TYPE(type, {
      const T *from = static_cast<const T *>(x) + u64(mine / step) * plane * step + mine % step;
      for (u32 i = member; i < plane; i += team) sum += Number<T>::widen(from[u64(i) * step]);
    });
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (mine < planes && member == 0) {
    for (u32 i = 1; i < team; i++) sum += sums[threadIdx.x + i];
    write(y, type, mine, sum / plane);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_mean_back(u32 type, const void *dy, u32 plane, u32 step, u64 n,
                                                                   void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const u64 mine = i / step / plane * step + i % step;
    const Wide<T> share = Number<T>::widen(static_cast<const T *>(dy)[mine]) / Wide<T>(plane);
    static_cast<T *>(dx)[i] = Number<T>::narrow(share);
  });
}

// ---- the weights of a convolution, between planes and rows ----

// Channels of a filter, and places of its kernel, that a block takes at a time.
constexpr u32 TILE = THREADS, PLACES = 16;

// (filters, channels, places) to (filters, places, channels), or back, and to another type perhaps: through memory of the
// block, so that threads side by side read and write what lies side by side.
extern "C" __global__ void __launch_bounds__(THREADS) nn_exchange(u32 from_type, const void *x, u32 to_type, void *y,
                                                                  u32 channels, u32 places, u32 to_rows) {
  __shared__ double tile[TILE * PLACES];
  const u32 tiles = (channels + TILE - 1) / TILE, begin = blockIdx.x % tiles * TILE;
  const u32 width = min(TILE, channels - begin);
  const u64 filter = u64(blockIdx.x / tiles) * channels * places;
  for (u32 first = 0; first < places; first += PLACES) {
    const u32 height = min(PLACES, places - first), n = width * height;
    for (u32 half = 0; half < 2; half++) {
      // First from x in its order, then to y in the other.
      const bool rows = (half == 0) != (to_rows != 0);
      for (u32 i = threadIdx.x; i < n; i += THREADS) {
        const u32 channel = rows ? i % width : i / height, place = rows ? i / width : i % height;
        const u64 at = filter + (rows ? u64(first + place) * channels + begin + channel
                                      : u64(begin + channel) * places + first + place);
        double &there = tile[channel * height + place];
        if (half == 0) there = read(x, from_type, at);
        else write(y, to_type, at, there);
      }
      __syncthreads();
    }
  }
}

// ---- convolution as a matrix product ----

struct Convolution {
  u32 images, channels, height, width, kernel_height, kernel_width, rows, columns, stride, padding, dilation;
};

// The patches of images: row (channel, kernel row, kernel column), column (image, row, column).
extern "C" __global__ void __launch_bounds__(THREADS) nn_patches(u32 type, Convolution conv, const void *x, u64 n,
                                                                 void *patches) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 column = i % conv.columns, row = i / conv.columns % conv.rows;
  const u64 rest = i / conv.columns / conv.rows;
  const u32 image = rest % conv.images;
  const u32 tap = rest / conv.images % (conv.kernel_height * conv.kernel_width);
  const u32 channel = rest / conv.images / (conv.kernel_height * conv.kernel_width);
  // Places before the image wrap to large numbers.
  const u32 y = row * conv.stride + tap / conv.kernel_width * conv.dilation - conv.padding;
  const u32 z = column * conv.stride + tap % conv.kernel_width * conv.dilation - conv.padding;
  const bool inside = y < conv.height && z < conv.width;
  const u64 place = ((u64(image) * conv.channels + channel) * conv.height + y) * conv.width + z;
  WITH_TYPE(type, static_cast<T *>(patches)[i] = inside ? static_cast<const T *>(x)[place] : Number<T>::narrow(0));
}

// The way back: for each pixel the sum over the patches that it is in.
extern "C" __global__ void __launch_bounds__(THREADS) nn_patches_back(u32 type, Convolution conv, const void *patches,
                                                                      u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 z = i % conv.width, y = i / conv.width % conv.height;
  const u32 channel = i / conv.width / conv.height % conv.channels;
  const u32 image = i / conv.width / conv.height / conv.channels;
  WITH_TYPE(type, {
    Wide<T> sum = 0;
    for (u32 down = 0; down < conv.kernel_height; down++) {
      for (u32 right = 0; right < conv.kernel_width; right++) {
        const u32 top = y + conv.padding - down * conv.dilation, left = z + conv.padding - right * conv.dilation;
        const u32 row = top / conv.stride, column = left / conv.stride;
        if (top % conv.stride || left % conv.stride || row >= conv.rows || column >= conv.columns) continue;
        const u64 line = (u64(channel) * conv.kernel_height + down) * conv.kernel_width + right;
        const u64 place = ((line * conv.images + image) * conv.rows + row) * conv.columns + column;
        sum += Number<T>::widen(static_cast<const T *>(patches)[place]);
      }
    }
    static_cast<T *>(dx)[i] = Number<T>::narrow(sum);
  });
}

// ---- cross entropy ----

struct Largest {
  static __device__ __forceinline__ double of(double a, double b) { return fmax(a, b); }
};

// The target of a row: a label of which a share is spread evenly, or probabilities.
struct Target {
  const long long *labels;
  u32 type;
  const void *probabilities;
  double smoothing;
  u32 classes;

  __device__ double of(u32 row, u32 c) const {
    if (!labels) return read(probabilities, type, u64(row) * classes + c);
    const double even = smoothing / classes;
    return labels[row] == c ? 1 - smoothing + even : even;
  }
  __device__ bool known(u32 row) const { return !labels || (labels[row] >= 0 && labels[row] < classes); }
};

// log Σ exp of this block's row, safe from overflow.
template <typename T> __device__ double log_sum_exp(const T *row, u32 classes) {
  double most = -1.7976931348623157e308;
  for (u32 c = threadIdx.x; c < classes; c += THREADS) most = fmax(most, double(Number<T>::widen(row[c])));
  most = over_block<Largest>(most);
  // With no finite maximum the sum says what there is: infinity or NaN.
  if (!(fabs(most) < 1.7976931348623157e308)) most = 0;
  double sum = 0;
  for (u32 c = threadIdx.x; c < classes; c += THREADS) sum += exp(Number<T>::widen(row[c]) - most);
  return most + log(over_block<Add>(sum));
}

// The cost of each row, which is not a number where the label is none.
extern "C" __global__ void __launch_bounds__(THREADS) nn_costs(u32 type, const void *logits,
                                                               const long long *labels, u32 target_type,
                                                               const void *probabilities, double smoothing, u32 classes,
                                                               double *costs) {
  const Target target = {labels, target_type, probabilities, smoothing, classes};
  const u32 row = blockIdx.x;
  double cost = 0;
  WITH_TYPE(type, {
    const T *x = static_cast<const T *>(logits) + u64(row) * target.classes;
    const double log = log_sum_exp(x, target.classes);
    for (u32 c = threadIdx.x; c < target.classes; c += THREADS) {
      // A class of probability 0 costs nothing, also where its logit is -∞.
      const double share = target.of(row, c);
      if (share != 0) cost += share * (log - Number<T>::widen(x[c]));
    }
  });
  cost = over_block<Add>(cost);
  if (threadIdx.x == 0) costs[row] = target.known(row) ? cost : __longlong_as_double(0x7ff8000000000000ull);
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_mean_cost(const double *costs, u32 rows, u32 type,
                                                                   void *loss) {
  const double sum = over_memory<Add>(costs, rows);
  if (threadIdx.x == 0) write(loss, type, 0, sum / rows);
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_costs_back(u32 type, const void *logits,
                                                                    const long long *labels, u32 target_type,
                                                                    const void *probabilities, double smoothing,
                                                                    u32 classes, u32 rows, const void *dy, void *dx) {
  const Target target = {labels, target_type, probabilities, smoothing, classes};
  const u32 row = blockIdx.x;
  double all = 0;
  for (u32 c = threadIdx.x; c < target.classes; c += THREADS) all += target.of(row, c);
  all = over_block<Add>(all);
  const double scale = read(dy, type, 0) / rows;
  WITH_TYPE(type, {
    const T *x = static_cast<const T *>(logits) + u64(row) * target.classes;
    const double log = log_sum_exp(x, target.classes);
    for (u32 c = threadIdx.x; c < target.classes; c += THREADS) {
      const double slope = exp(Number<T>::widen(x[c]) - log) * all - target.of(row, c);
      static_cast<T *>(dx)[u64(row) * target.classes + c] = Number<T>::narrow(Wide<T>(slope * scale));
    }
  });
}
