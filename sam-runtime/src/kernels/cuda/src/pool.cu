// Max and mean pooling, and global average pooling.
#include "device.cuh"

// The indices of window `output` along a side: [first_of, last_of).
__device__ __forceinline__ u32 first_of(const PoolArgs &pool, u32 output) {
  const u32 start = output * pool.stride;
  return start > pool.padding ? start - pool.padding : 0;
}

__device__ __forceinline__ u32 last_of(const PoolArgs &pool, u32 output, u32 side) {
  return min(output * pool.stride + pool.kernel - pool.padding, side);
}

// The index of the maximum of a window, the first of equals. NaN counts as larger than any number.
template <typename T> __device__ u32 argmax(const PoolArgs &pool, const T *x, u32 row, u32 column) {
  u32 best = first_of(pool, row) * pool.width + first_of(pool, column);
  Wide<T> most = Number<T>::widen(x[best * pool.step]);
#pragma unroll 1
  for (u32 y = first_of(pool, row); y < last_of(pool, row, pool.height); y++) {
#pragma unroll 1
    for (u32 i = y * pool.width + first_of(pool, column); i < y * pool.width + last_of(pool, column, pool.width); i++) {
      const Wide<T> value = Number<T>::widen(x[i * pool.step]);
      if (!(value <= most) && most == most) {
        best = i;
        most = value;
      }
    }
  }
  return best;
}

extern "C" __global__ void __launch_bounds__(THREADS) pool2d(u32 type, PoolArgs pool, const void *x, u64 n, void *y) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 channel = i % pool.step, column = i / pool.step % pool.columns;
  const u32 row = i / pool.step / pool.columns % pool.rows;
  const u64 image = i / pool.step / pool.columns / pool.rows;
  WITH_TYPE(type, {
    const T *from = static_cast<const T *>(x) + image * pool.height * pool.width * pool.step + channel;
    T *to = static_cast<T *>(y) + i;
    if (pool.kind == POOL_MAX) {
      *to = from[argmax(pool, from, row, column) * pool.step];
    } else {
      Wide<T> sum = 0;
      for (u32 r = first_of(pool, row); r < last_of(pool, row, pool.height); r++) {
        for (u32 c = first_of(pool, column); c < last_of(pool, column, pool.width); c++) {
          sum += Number<T>::widen(from[(r * pool.width + c) * pool.step]);
        }
      }
      *to = Number<T>::narrow(sum / Wide<T>(pool.kernel * pool.kernel));
    }
  });
}

// The windows along a side that contain a position: [first, last).
struct Windows {
  u32 first, last;

  __device__ Windows(const PoolArgs &pool, u32 place, u32 outputs)
      : first(place + pool.padding < pool.kernel ? 0 : (place + pool.padding - pool.kernel) / pool.stride + 1),
        last(min((place + pool.padding) / pool.stride + 1, outputs)) {}
};

// The gradient of one input: the sum over its windows, in a fixed order.
template <typename T>
__device__ T from_windows(const PoolArgs &pool, const T *x, const T *dy, u32 place, Windows down, Windows right) {
  Wide<T> sum = 0;
#pragma unroll 1
  for (u32 r = down.first; r < down.last; r++) {
#pragma unroll 1
    for (u32 c = right.first; c < right.last; c++) {
      if (pool.kind == POOL_MEAN || argmax(pool, x, r, c) == place) {
        sum += Number<T>::widen(dy[(r * pool.columns + c) * pool.step]);
      }
    }
  }
  if (pool.kind == POOL_MEAN) sum /= Wide<T>(pool.kernel * pool.kernel);
  return Number<T>::narrow(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pool2d_backward(u32 type, PoolArgs pool, const void *x, const void *dy, u64 n, void *dx) {
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

// The mean of each plane. NCHW: THREADS_PER_PLANE threads share a plane. NHWC: one thread per plane, because
// neighboring threads then read neighboring channels.
extern "C" __global__ void __launch_bounds__(THREADS)
    global_avg_pool2d(u32 type, const void *x, u32 planes, u32 plane, u32 step, void *y) {
  __shared__ double sums[THREADS];
  const u32 team = step == 1 ? THREADS_PER_PLANE : 1, member = threadIdx.x % team;
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

extern "C" __global__ void __launch_bounds__(THREADS)
    global_avg_pool2d_backward(u32 type, const void *dy, u32 plane, u32 step, u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const u64 mine = i / step / plane * step + i % step;
    const Wide<T> share = Number<T>::widen(static_cast<const T *>(dy)[mine]) / Wide<T>(plane);
    static_cast<T *>(dx)[i] = Number<T>::narrow(share);
  });
}
