// A loop over elements that do not depend on each other, in vectors where possible.
#pragma once
#include "device.cuh"

template <u32 N, typename Each> __device__ __forceinline__ void for_each_element(u64 n, const Each &each) {
  const u64 begin = blockIdx.x * ELEMENTS_PER_BLOCK, end = min(begin + ELEMENTS_PER_BLOCK, n),
            whole = begin + (end - begin) / N * N;
  for (u64 i = begin + threadIdx.x * N; i < whole; i += THREADS * N) each.template at<N>(i);
  for (u64 i = whole + threadIdx.x; i < end; i += THREADS) each.template at<1>(i);
}
