// How the blocks of a kernel share the channels of images.
#pragma once
#include "device.cuh"

// Elements per load in NHWC: each is of another channel and has its own sums, in registers.
template <typename T> constexpr u32 ROW_LANES = LANES<T> < MAX_ROW_LANES ? LANES<T> : MAX_ROW_LANES;

// Loads that a thread issues before it uses the first: 32 bytes, at most four loads.
template <typename T, u32 N> constexpr u32 LOADS_IN_FLIGHT = sizeof(T) * N < 16 ? 4 : 2;

template <typename T, u32 N_> struct NchwPart {
  static constexpr u32 N = N_, C = 1;
  u32 channels, plane, splits, split, channel, first, last;

  __device__ explicit NchwPart(const ChannelArgs &of)
      : channels(of.channels), plane(of.plane), splits(of.splits), split(blockIdx.x % splits),
        channel(blockIdx.x / splits), first(u64(of.images) * split / splits),
        last(u64(of.images) * (split + 1) / splits) {}

  // Neighboring threads whose elements are of different channels.
  __device__ u32 across() const { return 1; }
  __device__ bool active() const { return true; }
  __device__ u32 begin() const { return threadIdx.x * N; }
  __device__ u32 end() const { return (last - first) * plane; }
  __device__ u32 step() const { return THREADS * N; }
  __device__ __forceinline__ u64 offset(u32 i) const {
    return (u64(first + i / plane) * channels + channel) * plane + i % plane;
  }
};

template <typename T, u32 N_> struct NhwcPart {
  static constexpr u32 N = N_, C = N;
  u32 channels, row_threads, splits, split, channel, first, last;

  __device__ explicit NhwcPart(const ChannelArgs &of)
      : channels(of.channels), row_threads(of.across), splits(of.splits), split(blockIdx.x % splits),
        channel((blockIdx.x / splits * row_threads + threadIdx.x % row_threads) * N),
        first(u64(of.images) * of.plane * split / splits), last(u64(of.images) * of.plane * (split + 1) / splits) {}

  __device__ u32 across() const { return row_threads; }
  __device__ bool active() const { return channel < channels; }
  __device__ u32 begin() const { return threadIdx.x / row_threads; }
  __device__ u32 end() const { return last - first; }
  __device__ u32 step() const { return THREADS / row_threads; }
  __device__ __forceinline__ u64 offset(u32 i) const { return u64(first + i) * channels + channel; }
};

// Runs code with `part`, this block's part, in vectors of N lanes and C channels.
#define WITH_PART(type, of, ...)                                                                                       \
  WITH_TYPE(type, {                                                                                                    \
    if (of.across == 0 && of.lanes == 1) WITH_PART_OF(NchwPart, 1, of, __VA_ARGS__)                                    \
    else if (of.across == 0) WITH_PART_OF(NchwPart, LANES<T>, of, __VA_ARGS__)                                         \
    else if (of.lanes == 1) WITH_PART_OF(NhwcPart, 1, of, __VA_ARGS__)                                                 \
    else WITH_PART_OF(NhwcPart, ROW_LANES<T>, of, __VA_ARGS__)                                                         \
  })
#define WITH_PART_OF(Part, lanes, of, ...)                                                                             \
  {                                                                                                                    \
    constexpr u32 N = lanes, C = Part<T, N>::C;                                                                        \
    const Part<T, N> part(of);                                                                                         \
    __VA_ARGS__;                                                                                                       \
  }

// Passes each vector of a part to `each`, and loads several before the first is used.
template <typename T, u32 N, template <typename, u32> class Part, typename Each>
__device__ __forceinline__ void sweep(const Part<T, N> &part, Each &each) {
  constexpr u32 COUNT = LOADS_IN_FLIGHT<T, N>;
  const u32 end = part.end(), step = part.step();
  u32 i = part.begin();
  for (; i + (COUNT - 1) * step < end; i += COUNT * step) {
    typename Each::In in[COUNT];
#pragma unroll
    for (u32 k = 0; k < COUNT; k++) in[k] = each.read(part.offset(i + k * step));
#pragma unroll
    for (u32 k = 0; k < COUNT; k++) each.use(part.offset(i + k * step), in[k]);
    each.flush();
  }
  for (; i < end; i += step) {
    each.use(part.offset(i), each.read(part.offset(i)));
    each.flush();
  }
}

// Σa and Σab of each channel: over a few vectors in the accumulation dtype, over all in f64.
template <typename T, u32 C> struct PartialSums {
  Wide<T> recent[C] = {}, recent_products[C] = {};
  double sums[C] = {}, moments[C] = {};

  __device__ __forceinline__ void add(u32 c, Wide<T> a, Wide<T> b) {
    recent[c] += a;
    recent_products[c] = mul_add(a, b, recent_products[c]);
  }

  __device__ __forceinline__ void flush() {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      sums[c] += recent[c];
      moments[c] += recent_products[c];
      recent[c] = recent_products[c] = 0;
    }
  }

  // ChannelSums adds these up.
  template <typename Part> __device__ void store_partials(const Part &part, double *partials) const {
#pragma unroll
    for (u32 c = 0; c < C; c++) {
      const double sum = over_block<Add>(sums[c], part.across()), moment = over_block<Add>(moments[c], part.across());
      if (threadIdx.x >= part.across() || !part.active()) continue;
      const u64 mine = u64(part.channel + c) * part.splits + part.split;
      partials[2 * mine] = sum;
      partials[2 * mine + 1] = moment;
    }
  }
};

// The sums over all partials of a channel, by several threads. `mine`: whether this thread is the one that has the
// result.
struct ChannelSums {
  u32 channel;
  bool mine;
  double sum, moment;

  __device__ ChannelSums(const double *partials, u32 channels, u32 splits)
      : channel(blockIdx.x * CHANNELS_PER_BLOCK + threadIdx.x % CHANNELS_PER_BLOCK),
        mine(threadIdx.x < CHANNELS_PER_BLOCK && channel < channels), sum(0), moment(0) {
#pragma unroll 8
    for (u32 i = threadIdx.x / CHANNELS_PER_BLOCK; channel < channels && i < splits;
         i += THREADS / CHANNELS_PER_BLOCK) {
      const u64 offset = u64(channel) * splits + i;
      sum += partials[2 * offset];
      moment += partials[2 * offset + 1];
    }
    sum = over_block<Add>(sum, CHANNELS_PER_BLOCK);
    moment = over_block<Add>(moment, CHANNELS_PER_BLOCK);
  }
};
