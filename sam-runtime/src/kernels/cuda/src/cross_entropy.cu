// Cross entropy, forward and backward.
#include "device.cuh"

struct Max {
  static __device__ __forceinline__ double of(double a, double b) { return fmax(a, b); }
};

// The target of a row: a label with label smoothing, or probabilities.
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

// log Σ exp of this block's row, without overflow.
template <typename T> __device__ double log_sum_exp(const T *row, u32 classes) {
  double most = -1.7976931348623157e308;
  for (u32 c = threadIdx.x; c < classes; c += THREADS) most = fmax(most, double(Number<T>::widen(row[c])));
  most = over_block<Max>(most);
  // If the maximum is not finite the sum becomes infinity or NaN by itself.
  if (!(fabs(most) < 1.7976931348623157e308)) most = 0;
  double sum = 0;
  for (u32 c = threadIdx.x; c < classes; c += THREADS) sum += exp(Number<T>::widen(row[c]) - most);
  return most + log(over_block<Add>(sum));
}

// The loss of each row. An out-of-range label gives NaN.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(u32 type, const void *logits, const long long *labels, u32 target_type,
                       const void *probabilities, double smoothing, u32 classes, double *row_losses) {
  const Target target = {labels, target_type, probabilities, smoothing, classes};
  const u32 row = blockIdx.x;
  double loss = 0;
  WITH_TYPE(type, {
    const T *x = static_cast<const T *>(logits) + u64(row) * target.classes;
    const double log = log_sum_exp(x, target.classes);
    for (u32 c = threadIdx.x; c < target.classes; c += THREADS) {
      // A class of probability 0 adds nothing, even if its logit is -∞.
      const double share = target.of(row, c);
      if (share != 0) loss += share * (log - Number<T>::widen(x[c]));
    }
  });
  loss = over_block<Add>(loss);
  if (threadIdx.x == 0) row_losses[row] = target.known(row) ? loss : __longlong_as_double(0x7ff8000000000000ull);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_mean(const double *row_losses, u32 rows, u32 type, void *loss) {
  const double sum = over_memory<Add>(row_losses, rows);
  if (threadIdx.x == 0) write(loss, type, 0, sum / rows);
}

// The losses of the rows as they are.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_each(const double *row_losses, u32 rows, u32 type, void *losses) {
  const u32 row = blockIdx.x * THREADS + threadIdx.x;
  if (row < rows) write(losses, type, row, row_losses[row]);
}

// `each`: dy has a gradient for each row, and not one for their mean.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_backward(u32 type, const void *logits, const long long *labels, u32 target_type,
                           const void *probabilities, double smoothing, u32 classes, u32 rows, u32 each,
                           const void *dy, void *dx) {
  const Target target = {labels, target_type, probabilities, smoothing, classes};
  const u32 row = blockIdx.x;
  double all = 0;
  for (u32 c = threadIdx.x; c < target.classes; c += THREADS) all += target.of(row, c);
  all = over_block<Add>(all);
  const double scale = each ? read(dy, type, row) : read(dy, type, 0) / rows;
  WITH_TYPE(type, {
    const T *x = static_cast<const T *>(logits) + u64(row) * target.classes;
    const double log = log_sum_exp(x, target.classes);
    for (u32 c = threadIdx.x; c < target.classes; c += THREADS) {
      const double slope = exp(Number<T>::widen(x[c]) - log) * all - target.of(row, c);
      static_cast<T *>(dx)[u64(row) * target.classes + c] = Number<T>::narrow(Wide<T>(slope * scale));
    }
  });
}
