// Layer and RMS normalization of rows, forward and backward.
#include "rows.cuh"

// Runs code with A as the type of γ and β: f32, or that of x.
#define WITH_AFFINE(affine_type, ...)                                                                                  \
  if (affine_type == DTYPE_F32) { typedef float A; __VA_ARGS__; }                                                      \
  else { typedef T A; __VA_ARGS__; }

// Runs code with N elements to a load.
#define WITH_LOADS(vectors, ...)                                                                                       \
  if (vectors) { constexpr u32 N = LANES<T>; __VA_ARGS__; }                                                            \
  else { constexpr u32 N = 1; __VA_ARGS__; }

template <u32 N, typename T, typename A>
__device__ void normalize_row(const RowPart &part, const T *x, const A *weight, const A *bias, double eps,
                              bool centered, RowMoments *all, T *y) {
  x += part.row * part.columns;
  y += part.row * part.columns;
  const RowMoments moments = row_moments<N>(part, x, eps, centered);
  if (part.active && part.lane == 0) all[part.row] = moments;
  const Center<T> center(moments.mean);
  const Wide<T> inverse = Wide<T>(moments.inverse);
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    Pack<T, N> pack = load<N>(x + c);
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> normal = center.of(pack.at[k]) * inverse;
      const Wide<T> shift = bias ? Wide<T>(Number<A>::widen(bias[c + k])) : Wide<T>(0);
      pack.at[k] = Number<T>::narrow(mul_add(normal, Wide<T>(Number<A>::widen(weight[c + k])), shift));
    }
    store<N>(y + c, pack);
  }
}

// y = γ (x - mean) / σ + β for each row, and the moments of the rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm(u32 type, const void *x, u64 rows, u32 columns, u32 width, u32 vectors, double eps, u32 centered,
               AffineArgs affine, void *moments, void *y) {
  const RowPart part(rows, columns, width);
  WITH_TYPE(type, WITH_AFFINE(affine.dtype, WITH_LOADS(vectors, {
    normalize_row<N>(part, static_cast<const T *>(x), static_cast<const A *>(affine.weight),
                     static_cast<const A *>(affine.bias), eps, centered, static_cast<RowMoments *>(moments),
                     static_cast<T *>(y));
  })));
}

template <u32 N, typename T, typename A>
__device__ void row_backward(const RowPart &part, const T *x, const T *dy, const A *weight, bool centered,
                             const RowMoments *all, T *dx) {
  const u64 start = part.row * part.columns;
  const RowMoments moments = part.active ? all[part.row] : RowMoments{0, 0};
  const Center<T> center(moments.mean);
  double sum = 0, moment = 0;
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> in = load<N>(x + start + c), gradient = load<N>(dy + start + c);
    Wide<T> sums = 0, products = 0;
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> weighted = Number<T>::widen(gradient.at[k]) * Wide<T>(Number<A>::widen(weight[c + k]));
      sums += weighted;
      products = mul_add(weighted, center.of(in.at[k]), products);
    }
    sum += double(sums);
    moment += double(products);
  }
  sum = over_row<Add>(sum, part.width);
  moment = over_row<Add>(moment, part.width);
  const RowGradient<T> row(moments, sum, moment, part.columns, centered);
  for (u32 c = part.begin<N>(); c < part.columns; c += part.step<N>()) {
    const Pack<T, N> in = load<N>(x + start + c);
    Pack<T, N> gradient = load<N>(dy + start + c);
#pragma unroll
    for (u32 k = 0; k < N; k++) {
      const Wide<T> weighted = Number<T>::widen(gradient.at[k]) * Wide<T>(Number<A>::widen(weight[c + k]));
      gradient.at[k] = row.of(in.at[k], weighted);
    }
    store<N>(dx + start + c, gradient);
  }
}

// The gradient of x.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_backward(u32 type, const void *x, const void *dy, u64 rows, u32 columns, u32 width, u32 vectors,
                        u32 centered, AffineArgs affine, const void *moments, void *dx) {
  const RowPart part(rows, columns, width);
  WITH_TYPE(type, WITH_AFFINE(affine.dtype, WITH_LOADS(vectors, {
    row_backward<N>(part, static_cast<const T *>(x), static_cast<const T *>(dy),
                    static_cast<const A *>(affine.weight), centered, static_cast<const RowMoments *>(moments),
                    static_cast<T *>(dx));
  })));
}

// Σ dy (x - mean) / σ and Σ dy of each column over one of `splits` parts of the rows: NORM_COLUMNS neighboring columns
// to a block, the sums of both kinds one after the other in `partials`.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_columns(u32 type, const void *x, const void *dy, u64 rows, u32 columns, u32 splits,
                       const void *all_moments, double *partials) {
  const u32 column = blockIdx.x / splits * NORM_COLUMNS + threadIdx.x % NORM_COLUMNS, split = blockIdx.x % splits;
  const u64 first = rows * split / splits, last = rows * (split + 1) / splits;
  const RowMoments *moments = static_cast<const RowMoments *>(all_moments);
  double sum = 0, moment = 0;
  if (column < columns) {
    WITH_TYPE(type, {
      for (u64 row = first + threadIdx.x / NORM_COLUMNS; row < last; row += THREADS / NORM_COLUMNS) {
        const u64 i = row * columns + column;
        const Wide<T> gradient = Number<T>::widen(static_cast<const T *>(dy)[i]);
        const Center<T> center(moments[row].mean);
        sum += double(gradient);
        moment += double(gradient * center.of(static_cast<const T *>(x)[i])) * moments[row].inverse;
      }
    });
  }
  moment = over_block<Add>(moment, NORM_COLUMNS);
  sum = over_block<Add>(sum, NORM_COLUMNS);
  if (threadIdx.x >= NORM_COLUMNS || column >= columns) return;
  partials[u64(split) * columns + column] = moment;
  partials[(u64(splits) + split) * columns + column] = sum;
}

// The gradients of γ and β from the sums of the parts. One that is not wanted is null.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_affine(const double *partials, u32 columns, u32 splits, u32 affine_type, void *d_weight, void *d_bias) {
  const u32 column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= columns) return;
  double moment = 0, sum = 0;
  for (u32 split = 0; split < splits; split++) {
    moment += partials[u64(split) * columns + column];
    sum += partials[(u64(splits) + split) * columns + column];
  }
  if (d_weight) write(d_weight, affine_type, column, moment);
  if (d_bias) write(d_bias, affine_type, column, sum);
}
