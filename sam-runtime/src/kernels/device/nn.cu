// The layers' kernels: what is around the matrix products of training, forward and backward.
//
// Images are (n, channels, height, width), contiguous. Sums run in short stretches of the tensor's own arithmetic (f32 for
// halves), which are added up in f64 in a fixed order. No atomics: the same bits every time.
#include "device.cuh"

// Elements that one block takes where each is by itself.
constexpr u64 STRETCH = 1 << 12;

template <u32 N, typename Each> __device__ __forceinline__ void stretch(u64 n, const Each &each) {
  const u64 begin = blockIdx.x * STRETCH, end = min(begin + STRETCH, n), whole = begin + (end - begin) / N * N;
  for (u64 i = begin + threadIdx.x * N; i < whole; i += THREADS * N) each.template at<N>(i);
  for (u64 i = whole + threadIdx.x; i < end; i += THREADS) each.template at<1>(i);
}

// ---- ReLU, sums, dropout ----

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
  u64 seed;
  float drop;
  Wide<T> scale;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> pack = load<N>(x + i);
    for (u32 k = 0; k < N; k++) {
      const bool keeps = float(mix(seed + i + k) >> 40) / 16777216.f >= drop;
      pack.at[k] = Number<T>::narrow(keeps ? Number<T>::widen(pack.at[k]) * scale : Wide<T>(0));
    }
    store<N>(y + i, pack);
  }
};

// The mask of nn/dropout.rs, bit for bit.
extern "C" __global__ void __launch_bounds__(THREADS) nn_dropout(u32 type, const void *x, void *y, u64 n, u64 seed,
                                                                 double drop, double scale) {
  WITH_TYPE(type, {
    const Wide<T> rounded = Number<T>::widen(Number<T>::narrow(Wide<T>(scale)));
    const Dropout<T> dropout = {static_cast<const T *>(x), static_cast<T *>(y), seed, float(drop), rounded};
    if (aligned(x) && aligned(y)) stretch<LANES<T>>(n, dropout);
    else stretch<1>(n, dropout);
  });
}

// ---- batch normalisation, with the sum and the ReLU that follow it ----

// The part of a channel that this block takes: some images. A channel has `splits` blocks.
struct Part {
  u32 channels, plane, channel, first, last;

  __device__ Part(u32 images, u32 channels, u32 plane, u32 splits)
      : channels(channels), plane(plane), channel(blockIdx.x / splits),
        first(u64(images) * (blockIdx.x % splits) / splits), last(u64(images) * (blockIdx.x % splits + 1) / splits) {}

  template <u32 N, typename Each> __device__ __forceinline__ void sweep(Each &each) const {
    const u32 count = (last - first) * plane;
    for (u32 i = threadIdx.x * N; i < count; i += THREADS * N) {
      const u64 image = first + i / plane;
      each.template at<N>((image * channels + channel) * plane + i % plane);
    }
  }

  // Whether vectors lie within planes.
  template <typename T> __device__ bool vectors() const { return plane % LANES<T> == 0; }
};

template <typename T> struct Moments {
  const T *x;
  Wide<T> origin;
  double sum = 0, squares = 0;

  __device__ Moments(const T *x, Wide<T> origin) : x(x), origin(origin) {}

  template <u32 N> __device__ __forceinline__ void at(u64 i) {
    const Pack<T, N> pack = load<N>(x + i);
    Wide<T> some = 0, some_squares = 0;
    for (u32 k = 0; k < N; k++) {
      const Wide<T> distance = Number<T>::widen(pack.at[k]) - origin;
      some += distance;
      some_squares = mul_add(distance, distance, some_squares);
    }
    sum += some;
    squares += some_squares;
  }
};

// Σ(x - origin) and Σ(x - origin)² of each part. The origin is the channel's first element: a large mean would swallow
// the rest.
extern "C" __global__ void __launch_bounds__(THREADS) nn_moments(u32 type, const void *x, u32 images, u32 channels,
                                                                 u32 plane, u32 splits, u32 centred, double *parts) {
  const Part part(images, channels, plane, splits);
  double sum = 0, squares = 0;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x);
    Moments<T> moments(from, centred ? Number<T>::widen(from[u64(part.channel) * plane]) : Wide<T>(0));
    if (part.vectors<T>() && aligned(x)) part.sweep<LANES<T>>(moments);
    else part.sweep<1>(moments);
    sum = moments.sum;
    squares = moments.squares;
  });
  sum = over_block<Add>(sum);
  squares = over_block<Add>(squares);
  if (threadIdx.x == 0) {
    parts[2 * blockIdx.x] = sum;
    parts[2 * blockIdx.x + 1] = squares;
  }
}

// Mean and 1/σ of each channel, in `statistics`, one after the other; the running ones move, where there are any.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_statistics(u32 type, const void *x, u32 channels, u32 plane, u32 splits, u32 centred, double count, double eps,
                  const double *parts, double *statistics, double momentum, u32 running_type, void *running_mean,
                  void *running_var) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  double sum = 0, squares = 0;
  for (u32 i = channel * splits; i < (channel + 1) * splits; i++) {
    sum += parts[2 * i];
    squares += parts[2 * i + 1];
  }
  const double origin = centred ? read(x, type, u64(channel) * plane) : 0;
  const double distance = centred ? sum / count : 0;
  const double spread = squares / count - distance * distance;
  const double mean = origin + distance;
  // Not max(), which would hide NaN.
  const double var = spread < 0 ? 0 : spread;
  statistics[channel] = mean;
  statistics[channels + channel] = 1 / sqrt(var + eps);
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
                                                                 u32 channels, double eps, double *statistics) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  statistics[channel] = read(mean, type, channel);
  statistics[channels + channel] = 1 / sqrt(read(var, type, channel) + eps);
}

// γ (x - mean) / σ + β for one channel. Forward and backward come to the same bits, and so to the same sign.
template <typename T> struct Affine {
  Wide<T> centre, scale, shift;

  __device__ Affine(const double *statistics, u32 type, const void *weight, const void *bias, u32 channels, u32 channel)
      : centre(Wide<T>(statistics[channel])),
        scale(Wide<T>((weight ? read(weight, type, channel) : 1) * statistics[channels + channel])),
        shift(Wide<T>(bias ? read(bias, type, channel) : 0)) {}
  __device__ __forceinline__ Wide<T> of(Wide<T> x) const { return mul_add(x - centre, scale, shift); }
};

template <typename T> struct Normalise {
  const T *x, *residual;
  T *y;
  Affine<T> affine;
  bool relu;

  template <u32 N> __device__ __forceinline__ void at(u64 i) {
    Pack<T, N> pack = load<N>(x + i);
    Pack<T, N> beside = pack;
    if (residual) beside = load<N>(residual + i);
    for (u32 k = 0; k < N; k++) {
      Wide<T> value = affine.of(Number<T>::widen(pack.at[k]));
      if (residual) value += Number<T>::widen(beside.at[k]);
      if (relu && value < 0) value = 0;
      pack.at[k] = Number<T>::narrow(value);
    }
    store<N>(y + i, pack);
  }
};

// y = relu(γ (x - mean) / σ + β + residual)
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_normalise(u32 type, const void *x, const void *residual, u32 affine_type, const void *weight, const void *bias,
                 u32 images, u32 channels, u32 plane, u32 splits, u32 relu, const double *statistics, void *y) {
  const Part part(images, channels, plane, splits);
  WITH_TYPE(type, {
    const Affine<T> affine(statistics, affine_type, weight, bias, channels, part.channel);
    Normalise<T> normalise = {static_cast<const T *>(x), static_cast<const T *>(residual), static_cast<T *>(y), affine,
                              relu != 0};
    if (part.vectors<T>() && aligned(x) && aligned(residual) && aligned(y)) part.sweep<LANES<T>>(normalise);
    else part.sweep<1>(normalise);
  });
}

// dy before the ReLU. Its sign is that of y, which was kept where there was a residual, and is recomputed where not.
template <typename T> struct Masked {
  const T *x, *y, *dy;
  Affine<T> affine;
  bool relu;

  template <u32 N>
  __device__ __forceinline__ void at(u64 i, Wide<T> (&distance)[N], Wide<T> (&slope)[N]) const {
    const Pack<T, N> input = load<N>(x + i), gradient = load<N>(dy + i);
    Pack<T, N> output = input;
    if (y) output = load<N>(y + i);
    for (u32 k = 0; k < N; k++) {
      const Wide<T> value = Number<T>::widen(input.at[k]);
      const Wide<T> sign = y ? Number<T>::widen(output.at[k]) : affine.of(value);
      slope[k] = !relu || sign > 0 ? Number<T>::widen(gradient.at[k]) : Wide<T>(0);
      distance[k] = value - affine.centre;
    }
  }

  __device__ bool vectors() const { return aligned(x) && aligned(y) && aligned(dy); }
};

template <typename T> struct Slopes {
  Masked<T> masked;
  double sum = 0, moment = 0;

  __device__ explicit Slopes(const Masked<T> &masked) : masked(masked) {}

  template <u32 N> __device__ __forceinline__ void at(u64 i) {
    Wide<T> distance[N], slope[N], some = 0, some_moment = 0;
    masked.at(i, distance, slope);
    for (u32 k = 0; k < N; k++) {
      some += slope[k];
      some_moment = mul_add(slope[k], distance[k], some_moment);
    }
    sum += some;
    moment += some_moment;
  }
};

// Σ dy and Σ dy (x - mean) of each part, dy before the ReLU.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_slopes(u32 type, const void *x, const void *y, const void *dy, u32 affine_type, const void *weight,
              const void *bias, u32 images, u32 channels, u32 plane, u32 splits, u32 relu, const double *statistics,
              double *parts) {
  const Part part(images, channels, plane, splits);
  double sum = 0, moment = 0;
  WITH_TYPE(type, {
    const Affine<T> affine(statistics, affine_type, weight, bias, channels, part.channel);
    Slopes<T> slopes(
        Masked<T>{static_cast<const T *>(x), static_cast<const T *>(y), static_cast<const T *>(dy), affine, relu != 0});
    if (part.vectors<T>() && slopes.masked.vectors()) part.sweep<LANES<T>>(slopes);
    else part.sweep<1>(slopes);
    sum = slopes.sum;
    moment = slopes.moment;
  });
  sum = over_block<Add>(sum);
  moment = over_block<Add>(moment);
  if (threadIdx.x == 0) {
    parts[2 * blockIdx.x] = sum;
    parts[2 * blockIdx.x + 1] = moment;
  }
}

// The gradients of γ and β, and what dx needs of each channel: shift and slope, in `lines`.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_lines(u32 affine_type, const void *weight, u32 channels, u32 splits, u32 centred, u32 fixed, double count,
             const double *statistics, const double *parts, double *lines, void *d_weight, void *d_bias) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  double sum = 0, moment = 0;
  for (u32 i = channel * splits; i < (channel + 1) * splits; i++) {
    sum += parts[2 * i];
    moment += parts[2 * i + 1];
  }
  const double inverse = statistics[channels + channel];
  const double scale = (weight ? read(weight, affine_type, channel) : 1) * inverse;
  lines[channel] = fixed || !centred ? 0 : scale * sum / count;
  lines[channels + channel] = fixed ? 0 : scale * inverse * inverse * moment / count;
  if (d_weight) write(d_weight, affine_type, channel, moment * inverse);
  if (d_bias) write(d_bias, affine_type, channel, sum);
}

template <typename T> struct NormaliseBack {
  Masked<T> masked;
  Wide<T> shift, line;
  T *dx, *d_residual;

  template <u32 N> __device__ __forceinline__ void at(u64 i) {
    Wide<T> distance[N], slope[N];
    masked.at(i, distance, slope);
    Pack<T, N> pack, beside;
    for (u32 k = 0; k < N; k++) {
      pack.at[k] = Number<T>::narrow(mul_add(slope[k], masked.affine.scale, -mul_add(distance[k], line, shift)));
      beside.at[k] = Number<T>::narrow(slope[k]);
    }
    store<N>(dx + i, pack);
    if (d_residual) store<N>(d_residual + i, beside);
  }
};

// dx = γ/σ (dy - mean of dy - (x - mean) · mean of dy (x - mean) / σ²), and dy before the ReLU for the residual.
extern "C" __global__ void __launch_bounds__(THREADS)
    nn_normalise_back(u32 type, const void *x, const void *y, const void *dy, u32 affine_type, const void *weight,
                      const void *bias, u32 images, u32 channels, u32 plane, u32 splits, u32 relu,
                      const double *statistics, const double *lines, void *dx, void *d_residual) {
  const Part part(images, channels, plane, splits);
  WITH_TYPE(type, {
    const Affine<T> affine(statistics, affine_type, weight, bias, channels, part.channel);
    const Masked<T> masked = {static_cast<const T *>(x), static_cast<const T *>(y), static_cast<const T *>(dy), affine,
                              relu != 0};
    NormaliseBack<T> back = {masked, Wide<T>(lines[part.channel]), Wide<T>(lines[channels + part.channel]),
                             static_cast<T *>(dx), static_cast<T *>(d_residual)};
    const bool vectors = masked.vectors() && aligned(dx) && aligned(d_residual);
    if (part.vectors<T>() && vectors) part.sweep<LANES<T>>(back);
    else part.sweep<1>(back);
  });
}

// ---- a bias for each channel ----

template <typename T> struct Shift {
  T *y;
  Wide<T> by;

  template <u32 N> __device__ __forceinline__ void at(u64 i) {
    Pack<T, N> pack = load<N>(y + i);
    for (u32 k = 0; k < N; k++) pack.at[k] = Number<T>::narrow(Number<T>::widen(pack.at[k]) + by);
    store<N>(y + i, pack);
  }
};

// y ← y + bias
extern "C" __global__ void __launch_bounds__(THREADS) nn_bias(u32 type, void *y, u32 bias_type, const void *bias,
                                                              u32 images, u32 channels, u32 plane, u32 splits) {
  const Part part(images, channels, plane, splits);
  WITH_TYPE(type, {
    Shift<T> shift = {static_cast<T *>(y), Wide<T>(read(bias, bias_type, part.channel))};
    if (part.vectors<T>() && aligned(y)) part.sweep<LANES<T>>(shift);
    else part.sweep<1>(shift);
  });
}

// Its gradient, from the first of the moments.
extern "C" __global__ void __launch_bounds__(THREADS) nn_bias_back(const double *parts, u32 channels, u32 splits,
                                                                   u32 bias_type, void *d_bias) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  double sum = 0;
  for (u32 i = channel * splits; i < (channel + 1) * splits; i++) sum += parts[2 * i];
  write(d_bias, bias_type, channel, sum);
}

// ---- pooling ----

enum Kind : u32 { MAX, MEAN };

struct Pool {
  u32 kind, kernel, stride, padding, height, width, rows, columns;

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
    Wide<T> most = Number<T>::widen(x[best]);
#pragma unroll 1
    for (u32 y = first(row); y < last(row, height); y++) {
#pragma unroll 1
      for (u32 place = y * width + first(column); place < y * width + last(column, width); place++) {
        const Wide<T> value = Number<T>::widen(x[place]);
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
  const u32 column = i % pool.columns, row = i / pool.columns % pool.rows;
  const u64 plane = i / pool.columns / pool.rows * pool.height * pool.width;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + plane;
    T *to = static_cast<T *>(y) + i;
    if (pool.kind == MAX) {
      *to = from[pool.largest(from, row, column)];
    } else {
      Wide<T> sum = 0;
      for (u32 r = pool.first(row); r < pool.last(row, pool.height); r++) {
        for (u32 c = pool.first(column); c < pool.last(column, pool.width); c++) {
          sum += Number<T>::widen(from[r * pool.width + c]);
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
      if (pool.kind == MEAN || pool.largest(x, r, c) == place) sum += Number<T>::widen(dy[r * pool.columns + c]);
    }
  }
  if (pool.kind == MEAN) sum /= Wide<T>(pool.kernel * pool.kernel);
  return Number<T>::narrow(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_pool_back(u32 type, Pool pool, const void *x, const void *dy,
                                                                   u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 plane = pool.height * pool.width, place = i % plane;
  const u64 image = i / plane;
  const Windows down(pool, place / pool.width, pool.rows), right(pool, place % pool.width, pool.columns);
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + image * plane;
    const T *gradient = static_cast<const T *>(dy) + image * pool.rows * pool.columns;
    static_cast<T *>(dx)[i] = from_windows(pool, from, gradient, place, down, right);
  });
}

// Threads that take a plane together.
constexpr u32 TEAM = 32;

// The mean of each plane.
extern "C" __global__ void __launch_bounds__(THREADS) nn_mean(u32 type, const void *x, u32 planes, u32 plane, void *y) {
  __shared__ double sums[THREADS];
  const u32 mine = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM, member = threadIdx.x % TEAM;
  double sum = 0;
  if (mine < planes) {
    WITH_TYPE(type, {
      const T *from = static_cast<const T *>(x) + u64(mine) * plane;
      for (u32 i = member; i < plane; i += TEAM) sum += Number<T>::widen(from[i]);
    });
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (mine < planes && member == 0) {
    for (u32 i = 1; i < TEAM; i++) sum += sums[threadIdx.x + i];
    write(y, type, mine, sum / plane);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) nn_mean_back(u32 type, const void *dy, u32 plane, u64 n,
                                                                   void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const Wide<T> share = Number<T>::widen(static_cast<const T *>(dy)[i / plane]) / Wide<T>(plane);
    static_cast<T *>(dx)[i] = Number<T>::narrow(share);
  });
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
