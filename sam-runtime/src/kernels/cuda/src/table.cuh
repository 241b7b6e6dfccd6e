// The table of variables: which elements of which variable a block works on.
#pragma once
#include "device.cuh"

// The part of the table that this block works on.
struct Task {
  const u64 *table;
  u32 count, entry;
  u64 begin, end;

  __device__ u64 word(u32 field) const { return table[u64(field) * count + entry]; }
  __device__ u32 type() const { return u32(word(COLUMN_KIND)) & 0xff; }
  __device__ u32 metric() const { return u32(word(COLUMN_KIND)) >> 8; }
  template <typename T> __device__ T *pointer(u32 i) const { return reinterpret_cast<T *>(word(COLUMN_POINTER + i)); }
};

__device__ Task task(const u64 *table, u32 count) {
  __shared__ u32 mine;
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    if (table[i] <= blockIdx.x && (i + 1 == count || blockIdx.x < table[i + 1])) mine = i;
  }
  __syncthreads();
  Task task = {table, count, mine, 0, 0};
  task.begin = (blockIdx.x - task.word(COLUMN_FIRST_BLOCK)) * CHUNK;
  task.end = min(task.begin + CHUNK, task.word(COLUMN_SIZE));
  return task;
}

// Passes all elements of a task to `each`, N at a time. Loads two vectors before the first is used; the remainder goes
// element by element.
template <u32 N, typename Each> __device__ __forceinline__ void sweep(const Task &task, Each &each) {
  const u64 whole = task.begin + (task.end - task.begin) / N * N, step = THREADS * N;
  u64 i = task.begin + threadIdx.x * N;
  for (; N > 1 && i + step < whole; i += 2 * step) {
    const auto first = each.template read<N>(i), second = each.template read<N>(i + step);
    each.use(i, first);
    each.use(i + step, second);
  }
  for (; i < whole; i += step) each.use(i, each.template read<N>(i));
  for (i = whole + threadIdx.x; i < task.end; i += THREADS) each.use(i, each.template read<1>(i));
}

// N elements of two tensors.
template <typename T, u32 N> struct Pair {
  Pack<T, N> a, b;
};
