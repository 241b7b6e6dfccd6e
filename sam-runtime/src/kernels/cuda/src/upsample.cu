// Images of another size: the nearest pixel, or a mean of four.
#include "device.cuh"

// One side. `scale`: input elements for one of the output.
struct ResizedSide {
  u32 code, input, output;
  double scale;
};

// The input elements that one of the output lies between, and the weight of the second.
struct Between {
  u32 low, high;
  double weight;
};

__device__ Between between(const ResizedSide &side, u32 output) {
  const u32 last = side.input - 1;
  if (side.code == RESIZE_NEAREST) {
    const u32 low = min(u32(output * side.scale), last);
    return {low, low, 0};
  }
  const double place = side.code == RESIZE_LINEAR ? max(side.scale * (output + 0.5) - 0.5, 0.0) : side.scale * output;
  const u32 low = min(u32(place), last);
  return {low, min(low + 1, last), min(place - low, 1.0)};
}

// The first output that lies between elements of which the second, or with `behind` the first, is at or behind `input`.
__device__ u32 first_output(const ResizedSide &side, u32 input, bool behind) {
  u32 begin = 0, end = side.output;
  while (begin < end) {
    const u32 middle = (begin + end) / 2;
    const Between at = between(side, middle);
    if ((behind ? at.low : at.high) >= input) end = middle;
    else begin = middle + 1;
  }
  return begin;
}

// What an output takes of an input element.
__device__ double share(const ResizedSide &side, u32 output, u32 input) {
  const Between at = between(side, output);
  return (at.low == input ? 1 - at.weight : 0) + (at.high == input ? at.weight : 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    upsample(u32 type, u32 code, u32 height, u32 width, u32 rows, u32 columns, double down, double right, u32 step,
             const void *x, u64 n, void *y) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 channel = i % step, column = i / step % columns, row = i / step / columns % rows;
  const u64 image = i / step / columns / rows;
  const Between vertical = between({code, height, rows, down}, row), across = between({code, width, columns, right}, column);
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + image * height * width * step + channel;
    T *to = static_cast<T *>(y) + i;
    if (code == RESIZE_NEAREST) {
      *to = from[u64(vertical.low * width + across.low) * step];
    } else {
      const Wide<T> v = Wide<T>(vertical.weight), h = Wide<T>(across.weight);
      const auto at = [&](u32 r, u32 c) { return Number<T>::widen(from[u64(r * width + c) * step]); };
      const Wide<T> top = (1 - h) * at(vertical.low, across.low) + h * at(vertical.low, across.high);
      const Wide<T> bottom = (1 - h) * at(vertical.high, across.low) + h * at(vertical.high, across.high);
      *to = Number<T>::narrow((1 - v) * top + v * bottom);
    }
  });
}

// For each pixel the sum over the outputs that took a part of it, in a fixed order.
extern "C" __global__ void __launch_bounds__(THREADS)
    upsample_backward(u32 type, u32 code, u32 height, u32 width, u32 rows, u32 columns, double down, double right,
                      u32 step, const void *dy, u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 channel = i % step, column = i / step % width, row = i / step / width % height;
  const u64 image = i / step / width / height;
  const ResizedSide vertical = {code, height, rows, down}, across = {code, width, columns, right};
  const u32 top = first_output(vertical, row, false), bottom = first_output(vertical, row + 1, true);
  const u32 left = first_output(across, column, false), end = first_output(across, column + 1, true);
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(dy) + image * rows * columns * step + channel;
    double sum = 0;
    for (u32 r = top; r < bottom; r++) {
      Wide<T> line = 0;
      for (u32 c = left; c < end; c++) {
        line = mul_add(Wide<T>(share(across, c, column)), Number<T>::widen(from[u64(r * columns + c) * step]), line);
      }
      sum += share(vertical, r, row) * line;
    }
    static_cast<T *>(dx)[i] = Number<T>::narrow(Wide<T>(sum));
  });
}
