// Group normalization, forward and backward: a row is a group of channels of an image.
#include "rows.cuh"

template <u32 N, typename T>
__device__ void normalize_group(const T *x, const GroupArgs &of, double eps, const AffineArgs &affine,
                                RowMoments *all, T *y) {
  const u32 group = of.channels / of.groups, first = blockIdx.x % of.groups * group;
  const RowPart part(gridDim.x, group * of.plane, THREADS);
  x += part.row * part.columns;
  y += part.row * part.columns;
  const RowMoments moments = row_moments<N>(part, x, eps, true);
  if (part.lane == 0) all[part.row] = moments;
  const Center<T> center(moments.mean);
  for (u32 i = part.begin<N>(); i < part.columns; i += part.step<N>()) {
    // A load does not go past a channel.
    const u32 channel = first + i / of.plane;
    const Wide<T> scale = Wide<T>(read(affine.weight, affine.dtype, channel) * moments.inverse);
    const Wide<T> shift = Wide<T>(read(affine.bias, affine.dtype, channel));
    Pack<T, N> pack = load<N>(x + i);
#pragma unroll
    for (u32 k = 0; k < N; k++) pack.at[k] = Number<T>::narrow(mul_add(center.of(pack.at[k]), scale, shift));
    store<N>(y + i, pack);
  }
}

// y = γ (x - mean) / σ + β, one block to a row, and the moments of the rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(u32 type, const void *x, GroupArgs of, double eps, AffineArgs affine, void *moments, void *y) {
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x);
    if (of.vectors) normalize_group<LANES<T>>(from, of, eps, affine, static_cast<RowMoments *>(moments), static_cast<T *>(y));
    else normalize_group<1>(from, of, eps, affine, static_cast<RowMoments *>(moments), static_cast<T *>(y));
  });
}

// Σ dy (x - mean) / σ and Σ dy of each channel of each image, side by side in `partials`: `width` threads to a channel.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_sums(u32 type, const void *x, const void *dy, GroupArgs of, u64 planes, u32 width, const void *moments,
                    double *partials) {
  const RowPart part(planes, of.plane, width);
  const u64 group = part.row / (of.channels / of.groups);
  const RowMoments mine = part.active ? static_cast<const RowMoments *>(moments)[group] : RowMoments{0, 0};
  double sum = 0, moment = 0;
  WITH_TYPE(type, {
    const Center<T> center(mine.mean);
    for (u32 i = part.begin<1>(); i < part.columns; i += part.step<1>()) {
      const u64 at = part.row * of.plane + i;
      const Wide<T> gradient = Number<T>::widen(static_cast<const T *>(dy)[at]);
      sum += double(gradient);
      moment += double(gradient * center.of(static_cast<const T *>(x)[at]));
    }
  });
  sum = over_row<Add>(sum, width);
  moment = over_row<Add>(moment, width);
  if (!part.active || part.lane != 0) return;
  partials[2 * part.row] = moment * mine.inverse;
  partials[2 * part.row + 1] = sum;
}

template <u32 N, typename T>
__device__ void group_backward(const T *x, const T *dy, const GroupArgs &of, const AffineArgs &affine,
                               const RowMoments &moments, const double *partials, T *dx) {
  const u32 group = of.channels / of.groups, first = blockIdx.x % of.groups * group;
  const RowPart part(gridDim.x, group * of.plane, THREADS);
  double sum = 0, moment = 0;
  for (u32 c = threadIdx.x; c < group; c += THREADS) {
    const double weight = read(affine.weight, affine.dtype, first + c);
    moment += weight * partials[2 * (part.row * group + c)];
    sum += weight * partials[2 * (part.row * group + c) + 1];
  }
  sum = over_block<Add>(sum);
  moment = over_block<Add>(moment) / moments.inverse;
  const RowGradient<T> row(moments, sum, moment, part.columns, true);
  const u64 start = part.row * part.columns;
  for (u32 i = part.begin<N>(); i < part.columns; i += part.step<N>()) {
    const Wide<T> weight = Wide<T>(read(affine.weight, affine.dtype, first + i / of.plane));
    const Pack<T, N> in = load<N>(x + start + i);
    Pack<T, N> gradient = load<N>(dy + start + i);
#pragma unroll
    for (u32 k = 0; k < N; k++) gradient.at[k] = row.of(in.at[k], Number<T>::widen(gradient.at[k]) * weight);
    store<N>(dx + start + i, gradient);
  }
}

// The gradient of x, one block to a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_backward(u32 type, const void *x, const void *dy, GroupArgs of, AffineArgs affine, const void *moments,
                        const double *partials, void *dx) {
  const RowMoments mine = static_cast<const RowMoments *>(moments)[blockIdx.x];
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x), *gradient = static_cast<const T *>(dy);
    if (of.vectors) group_backward<LANES<T>>(from, gradient, of, affine, mine, partials, static_cast<T *>(dx));
    else group_backward<1>(from, gradient, of, affine, mine, partials, static_cast<T *>(dx));
  });
}

// The gradients of γ and β: sums over the images. One that is not wanted is null.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_affine(const double *partials, u64 images, u32 channels, u32 affine_type, void *d_weight,
                      void *d_bias) {
  const u32 channel = blockIdx.x * THREADS + threadIdx.x;
  if (channel >= channels) return;
  double moment = 0, sum = 0;
  for (u64 image = 0; image < images; image++) {
    moment += partials[2 * (image * channels + channel)];
    sum += partials[2 * (image * channels + channel) + 1];
  }
  if (d_weight) write(d_weight, affine_type, channel, moment);
  if (d_bias) write(d_bias, affine_type, channel, sum);
}
