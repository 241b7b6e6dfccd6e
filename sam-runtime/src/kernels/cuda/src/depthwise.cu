// Convolutions of one channel a group, NCHW, for devices without a library that has them. `filters`: of a channel.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise(u32 type, ConvArgs conv, u32 filters, const void *x, const void *w, u64 n, void *y) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 column = i % conv.columns, row = i / conv.columns % conv.rows;
  const u64 plane = i / conv.columns / conv.rows;
  const u32 taps = conv.kernel_height * conv.kernel_width;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + plane / filters * conv.height * conv.width;
    const T *weight = static_cast<const T *>(w) + plane % (conv.channels * filters) * taps;
    Wide<T> sum = 0;
    for (u32 down = 0; down < conv.kernel_height; down++) {
      // Positions before the image wrap around to large numbers.
      const u32 top = row * conv.stride_down + down * conv.dilation_down - conv.padding_down;
      if (top >= conv.height) continue;
      for (u32 right = 0; right < conv.kernel_width; right++) {
        const u32 left = column * conv.stride_right + right * conv.dilation_right - conv.padding_right;
        if (left >= conv.width) continue;
        sum = mul_add(Number<T>::widen(weight[down * conv.kernel_width + right]),
                      Number<T>::widen(from[top * conv.width + left]), sum);
      }
    }
    static_cast<T *>(y)[i] = Number<T>::narrow(sum);
  });
}

// The gradient of the images.
extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_back_to_images(u32 type, ConvArgs conv, u32 filters, const void *dy, const void *w, u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 left = i % conv.width, top = i / conv.width % conv.height;
  const u64 plane = i / conv.width / conv.height;
  const u32 taps = conv.kernel_height * conv.kernel_width, pixels = conv.rows * conv.columns;
  WITH_TYPE(type, {
    Wide<T> sum = 0;
    for (u32 filter = 0; filter < filters; filter++) {
      const T *gradient = static_cast<const T *>(dy) + (plane * filters + filter) * pixels;
      const T *weight = static_cast<const T *>(w) + (plane % conv.channels * filters + filter) * taps;
      for (u32 down = 0; down < conv.kernel_height; down++) {
        const u32 y = top + conv.padding_down - down * conv.dilation_down, row = y / conv.stride_down;
        if (y % conv.stride_down || row >= conv.rows) continue;
        for (u32 right = 0; right < conv.kernel_width; right++) {
          const u32 z = left + conv.padding_right - right * conv.dilation_right, column = z / conv.stride_right;
          if (z % conv.stride_right || column >= conv.columns) continue;
          sum = mul_add(Number<T>::widen(weight[down * conv.kernel_width + right]),
                        Number<T>::widen(gradient[row * conv.columns + column]), sum);
        }
      }
    }
    static_cast<T *>(dx)[i] = Number<T>::narrow(sum);
  });
}

// The gradient of the weight: a block for each tap of each filter.
extern "C" __global__ void __launch_bounds__(THREADS)
    depthwise_back_to_weight(u32 type, ConvArgs conv, u32 filters, const void *x, const void *dy, void *dw) {
  const u32 taps = conv.kernel_height * conv.kernel_width, tap = blockIdx.x % taps, filter = blockIdx.x / taps;
  const u32 pixels = conv.rows * conv.columns, all = conv.channels * filters;
  const u64 n = u64(conv.images) * pixels;
  double sum = 0;
  WITH_TYPE(type, {
    for (u64 from = threadIdx.x; from < n; from += THREADS * RUN) {
      Wide<T> part = 0;
      for (u64 i = from; i < min(n, from + THREADS * RUN); i += THREADS) {
        const u64 image = i / pixels;
        const u32 row = i % pixels / conv.columns, column = i % conv.columns;
        const u32 top = row * conv.stride_down + tap / conv.kernel_width * conv.dilation_down - conv.padding_down;
        const u32 left = column * conv.stride_right + tap % conv.kernel_width * conv.dilation_right - conv.padding_right;
        if (top >= conv.height || left >= conv.width) continue;
        const u64 plane = image * conv.channels + filter / filters;
        part = mul_add(Number<T>::widen(static_cast<const T *>(x)[(plane * conv.height + top) * conv.width + left]),
                       Number<T>::widen(static_cast<const T *>(dy)[(image * all + filter) * pixels + i % pixels]), part);
      }
      sum += part;
    }
  });
  sum = over_block<Add>(sum);
  if (threadIdx.x == 0) write(dw, type, blockIdx.x, sum);
}
