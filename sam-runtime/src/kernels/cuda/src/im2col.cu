// Convolution as a matrix product (im2col), and filters between NCHW and NHWC.
#include "device.cuh"

// Taps of a filter that a block permutes at a time.
constexpr u32 FILTER_TAPS = 16;

// (filters, channels, taps) to (filters, taps, channels) or back, with a conversion of the dtype. Goes through shared
// memory, so that neighboring threads read and write neighboring elements.
extern "C" __global__ void __launch_bounds__(THREADS)
    permute_filters(u32 from_type, const void *x, u32 to_type, void *y, u32 channels, u32 taps, u32 to_nhwc) {
  __shared__ double tile[FILTER_TILE * FILTER_TAPS];
  const u32 tiles = (channels + FILTER_TILE - 1) / FILTER_TILE, begin = blockIdx.x % tiles * FILTER_TILE;
  const u32 width = min(FILTER_TILE, channels - begin);
  const u64 filter = u64(blockIdx.x / tiles) * channels * taps;
  for (u32 first = 0; first < taps; first += FILTER_TAPS) {
    const u32 height = min(FILTER_TAPS, taps - first), n = width * height;
    for (u32 half = 0; half < 2; half++) {
      // First pass: read x in its order. Second pass: write y in the other order.
      const bool rows = (half == 0) != (to_nhwc != 0);
      for (u32 i = threadIdx.x; i < n; i += THREADS) {
        const u32 channel = rows ? i % width : i / height, place = rows ? i / width : i % height;
        const u64 at = filter + (rows ? u64(first + place) * channels + begin + channel
                                      : u64(begin + channel) * taps + first + place);
        double &there = tile[channel * height + place];
        if (half == 0) there = read(x, from_type, at);
        else write(y, to_type, at, there);
      }
      __syncthreads();
    }
  }
}

// The matrix of patches: row (channel, kernel row, kernel column), column (image, row, column).
extern "C" __global__ void __launch_bounds__(THREADS)
    im2col(u32 type, ConvArgs conv, const void *x, u64 n, void *patches) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 column = i % conv.columns, row = i / conv.columns % conv.rows;
  const u64 rest = i / conv.columns / conv.rows;
  const u32 image = rest % conv.images;
  const u32 tap = rest / conv.images % (conv.kernel_height * conv.kernel_width);
  const u32 channel = rest / conv.images / (conv.kernel_height * conv.kernel_width);
  // Positions before the image wrap around to large numbers.
  const u32 y = row * conv.stride_down + tap / conv.kernel_width * conv.dilation_down - conv.padding_down;
  const u32 z = column * conv.stride_right + tap % conv.kernel_width * conv.dilation_right - conv.padding_right;
  const bool inside = y < conv.height && z < conv.width;
  const u64 place = ((u64(image) * conv.channels + channel) * conv.height + y) * conv.width + z;
  WITH_TYPE(type, static_cast<T *>(patches)[i] = inside ? static_cast<const T *>(x)[place] : Number<T>::narrow(0));
}

// The adjoint: for each pixel the sum over the patches that contain it.
extern "C" __global__ void __launch_bounds__(THREADS)
    col2im(u32 type, ConvArgs conv, const void *patches, u64 n, void *dx) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  const u32 z = i % conv.width, y = i / conv.width % conv.height;
  const u32 channel = i / conv.width / conv.height % conv.channels;
  const u32 image = i / conv.width / conv.height / conv.channels;
  WITH_TYPE(type, {
    Wide<T> sum = 0;
    for (u32 down = 0; down < conv.kernel_height; down++) {
      for (u32 right = 0; right < conv.kernel_width; right++) {
        const u32 top = y + conv.padding_down - down * conv.dilation_down;
        const u32 left = z + conv.padding_right - right * conv.dilation_right;
        const u32 row = top / conv.stride_down, column = left / conv.stride_right;
        if (top % conv.stride_down || left % conv.stride_right || row >= conv.rows || column >= conv.columns) continue;
        const u64 line = (u64(channel) * conv.kernel_height + down) * conv.kernel_width + right;
        const u64 place = ((line * conv.images + image) * conv.rows + row) * conv.columns + column;
        sum += Number<T>::widen(static_cast<const T *>(patches)[place]);
      }
    }
    static_cast<T *>(dx)[i] = Number<T>::narrow(sum);
  });
}
