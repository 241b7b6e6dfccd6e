// The gradient of an embedding: the sum of the rows of each id, in the order of the tokens.
#include "device.cuh"

// Sorts tokens by id, stably: each token counts those before it, which for some ten thousands of them costs less than one
// pass over the rows. order: the token, and in the upper half how many tokens have its id. An id that is no row comes last.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_order(const long long *ids, u32 n, u32 rows, u64 *order) {
  __shared__ u64 tile[THREADS];
  const u64 token = u64(blockIdx.x) * THREADS + threadIdx.x;
  const u64 id = token < n && u64(ids[token]) < rows ? u64(ids[token]) : rows;
  u32 before = 0, equal = 0;
  for (u64 begin = 0; begin < n; begin += THREADS) {
    const u64 other = begin + threadIdx.x;
    tile[threadIdx.x] = other < n && u64(ids[other]) < rows ? u64(ids[other]) : rows;
    __syncthreads();
    const u32 count = min(u64(THREADS), n - begin);
    for (u32 k = 0; k < count; k++) {
      before += tile[k] < id || (tile[k] == id && begin + k < token);
      equal += tile[k] == id;
    }
    __syncthreads();
  }
  if (token < n) order[before] = token | u64(equal) << 32;
}

// The sum of a column over the tokens at `order`.
template <typename T> __device__ __forceinline__ double column_sum(const T *column, u32 columns, const u64 *order, u32 count) {
  double sum = 0;
#pragma unroll 4
  for (u32 k = 0; k < count; k++) sum += Number<T>::widen(column[u64(u32(order[k])) * columns]);
  return sum;
}

// `across` blocks for each place in the order: the first of an id adds up the rows of all its tokens. The table has been cleared.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_backward(u32 type, const u64 *order, const long long *ids, u32 rows, u32 columns, u32 across, const void *dy,
                       void *table) {
  const u64 place = blockIdx.x / across, column = u64(blockIdx.x % across) * THREADS + threadIdx.x;
  const u64 id = ids[u32(order[place])];
  if (id >= rows || column >= columns) return;
  if (place > 0 && u64(ids[u32(order[place - 1])]) == id) return;
  const u32 count = order[place] >> 32;
  WITH_TYPE(type, {
    const double sum = column_sum(static_cast<const T *>(dy) + column, columns, order + place, count);
    static_cast<T *>(table)[id * columns + column] = Number<T>::narrow(Wide<T>(sum));
  });
}
