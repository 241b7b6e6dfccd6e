// Attention by tiles (FlashAttention-2), forward and backward. A block has 16 rows: of queries, or of keys in the gradients of
// k and v. 16 threads share a row. Each block writes its own elements, and every sum is taken in a fixed order.
#include "random.cuh"

constexpr u32 LANES_PER_ROW = THREADS / ATTENTION_ROWS;
constexpr u32 SCORES_PER_LANE = ATTENTION_COLUMNS / LANES_PER_ROW;
constexpr u32 SUMS_PER_LANE = ATTENTION_SLICE / LANES_PER_ROW;
// One more, so that a column is spread over the banks.
constexpr u32 DIM_PITCH = ATTENTION_DIMS + 1, SCORE_PITCH = ATTENTION_COLUMNS + 1, LANE_PITCH = LANES_PER_ROW + 1;
constexpr u32 LEFT_LEN = ATTENTION_ROWS * DIM_PITCH, RIGHT_LEN = ATTENTION_COLUMNS * DIM_PITCH;
constexpr u32 SCORES_LEN = ATTENTION_ROWS * SCORE_PITCH, PARTS_LEN = ATTENTION_ROWS * LANE_PITCH;
constexpr u32 TILES_LEN = LEFT_LEN + RIGHT_LEN + 2 * SCORES_LEN + PARTS_LEN;

// Shared memory of a block, in the accumulation dtype.
template <typename W> struct Tiles {
  W *left, *right, *scores, *slopes, *parts;

  __device__ explicit Tiles(double *memory) {
    left = reinterpret_cast<W *>(memory);
    right = left + LEFT_LEN;
    scores = right + RIGHT_LEN;
    slopes = scores + SCORES_LEN;
    parts = slopes + SCORES_LEN;
  }
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ull); }

// Rows of one head.
template <typename T> struct HeadRows {
  T *first;
  u64 token;

  __device__ HeadRows(void *values, const HeadArgs &strides, u32 batch, u32 head)
      : first(static_cast<T *>(values) + batch * strides.batch + head * strides.head), token(strides.token) {}
  __device__ T *at(u32 row) const { return first + row * token; }
};

template <typename T>
__device__ __forceinline__ HeadRows<T> head_rows(const void *values, const HeadArgs &strides, u32 batch, u32 head) {
  return HeadRows<T>(const_cast<void *>(values), strides, batch, head);
}

// What is between products q kᵀ and weights.
struct ScoreRule {
  AttentionArgs args;
  MaskArgs mask;

  __device__ long long end_of(u32 query) const {
    return args.causal ? (long long)query + 1 + (long long)args.offset : (long long)args.keys;
  }

  // The score of a product, -∞ where the query does not see the key. `slope` is its derivative, before the mask.
  template <typename W> __device__ W score(W product, u32 batch, u32 head, u32 query, u32 key, W &slope) const {
    slope = W(args.scale);
    if (key >= args.keys || (long long)key >= end_of(query)) return -W(infinity());
    W x = product * W(args.scale);
    if (args.softcap != 0) {
      const double t = tanh(double(x) / args.softcap);
      x = W(args.softcap * t);
      slope = W(args.scale * (1 - t * t));
    }
    const u64 i = batch * mask.batch + head * mask.head + query * mask.query + key * mask.key;
    if (mask.kind == MASK_BOOLEAN) return static_cast<const unsigned char *>(mask.values)[i] ? x : -W(infinity());
    return mask.kind == MASK_ADDITIVE ? x + W(read(mask.values, mask.dtype, i)) : x;
  }

  // What dropout multiplies a weight by.
  template <typename W> __device__ W factor(u32 batch, u32 head, u32 query, u32 key) const {
    if (args.drop == 0) return 1;
    const float drop = float(args.drop);
    const u64 row = (u64(batch) * args.heads + head) * args.queries + query;
    return is_kept(args.seed + row * args.keys + key, drop) ? W(1 / (1 - drop)) : W(0);
  }
};

// Reads rows of ATTENTION_DIMS elements from `first` on; zeros beyond `rows` and `dim`.
template <typename T>
__device__ void load_rows(Wide<T> *to, u32 count, const T *from, u64 token, u32 rows, u32 first, u32 dim) {
  for (u32 i = threadIdx.x; i < count * ATTENTION_DIMS; i += THREADS) {
    const u32 row = i / ATTENTION_DIMS, d = i % ATTENTION_DIMS;
    const bool inside = row < rows && first + d < dim;
    to[row * DIM_PITCH + d] = inside ? Number<T>::widen(from[row * token + first + d]) : Wide<T>(0);
  }
}

// to[i][j] = Σ left[i] right[j]
template <typename T>
__device__ void dots(Wide<T> *to, const Tiles<Wide<T>> &tiles, HeadRows<T> left, u32 row, u32 rows, HeadRows<T> right,
                     u32 column, u32 columns, u32 dim) {
  const u32 r = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW;
  Wide<T> sums[SCORES_PER_LANE] = {};
  for (u32 first = 0; first < dim; first += ATTENTION_DIMS) {
    __syncthreads();
    load_rows<T>(tiles.left, ATTENTION_ROWS, left.at(row), left.token, rows, first, dim);
    load_rows<T>(tiles.right, ATTENTION_COLUMNS, right.at(column), right.token, columns, first, dim);
    __syncthreads();
    for (u32 d = 0; d < ATTENTION_DIMS; d++) {
      const Wide<T> x = tiles.left[r * DIM_PITCH + d];
      for (u32 m = 0; m < SCORES_PER_LANE; m++) {
        sums[m] = mul_add(x, tiles.right[(lane + m * LANES_PER_ROW) * DIM_PITCH + d], sums[m]);
      }
    }
  }
  for (u32 m = 0; m < SCORES_PER_LANE; m++) to[r * SCORE_PITCH + lane + m * LANES_PER_ROW] = sums[m];
  __syncthreads();
}

// sums[row] += Σ weights[row][j] right[j], of the dimensions from `slice` on.
template <typename T>
__device__ void add_weighted(Wide<T> *sums, const Wide<T> *weights, const Tiles<Wide<T>> &tiles, HeadRows<T> right,
                             u32 column, u32 columns, u32 slice, u32 dim) {
  const u32 r = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW;
  for (u32 part = 0; part < ATTENTION_SLICE / ATTENTION_DIMS; part++) {
    const u32 first = slice + part * ATTENTION_DIMS;
    if (first >= dim) break;
    __syncthreads();
    load_rows<T>(tiles.right, ATTENTION_COLUMNS, right.at(column), right.token, columns, first, dim);
    __syncthreads();
    for (u32 j = 0; j < ATTENTION_COLUMNS; j++) {
      const Wide<T> weight = weights[r * SCORE_PITCH + j];
      for (u32 k = 0; k < ATTENTION_DIMS / LANES_PER_ROW; k++) {
        Wide<T> &sum = sums[part * (ATTENTION_DIMS / LANES_PER_ROW) + k];
        sum = mul_add(weight, tiles.right[j * DIM_PITCH + lane + k * LANES_PER_ROW], sum);
      }
    }
  }
}

template <typename T>
__device__ void write_sums(const Wide<T> *sums, Wide<T> factor, T *row, u32 slice, u32 dim) {
  const u32 lane = threadIdx.x % LANES_PER_ROW;
  for (u32 i = 0; i < SUMS_PER_LANE; i++) {
    const u32 d = slice + lane + i * LANES_PER_ROW;
    if (d < dim) row[d] = Number<T>::narrow(sums[i] * factor);
  }
}

// The tile of a block: the slice of its output runs first, then rows, heads and batch.
struct TileIndex {
  u32 slice, row, rows, head, batch;

  __device__ TileIndex(u32 slices, u32 all_rows, u32 heads) {
    const u32 tiles = (all_rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
    u32 i = blockIdx.x;
    slice = i % slices * ATTENTION_SLICE;
    i /= slices;
    row = i % tiles * ATTENTION_ROWS;
    i /= tiles;
    head = i % heads;
    batch = i / heads;
    rows = min(ATTENTION_ROWS, all_rows - row);
  }
};

__device__ __forceinline__ u32 slices_of(u32 dim) { return (dim + ATTENTION_SLICE - 1) / ATTENTION_SLICE; }

template <typename T>
__device__ void attend(double *memory, const ScoreRule &rule, const void *q, const HeadArgs &q_args, const void *k,
                       const HeadArgs &k_args, const void *v, const HeadArgs &v_args, void *y, const HeadArgs &y_args,
                       Wide<T> *logs) {
  typedef Wide<T> W;
  const AttentionArgs &args = rule.args;
  const Tiles<W> tiles(memory);
  const TileIndex tile(slices_of(args.v_dim), args.queries, args.heads);
  const u32 kv_head = tile.head / (args.heads / args.kv_heads);
  const HeadRows<T> q_rows = head_rows<T>(q, q_args, tile.batch, tile.head);
  const HeadRows<T> k_rows = head_rows<T>(k, k_args, tile.batch, kv_head);
  const HeadRows<T> v_rows = head_rows<T>(v, v_args, tile.batch, kv_head);
  const u32 r = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW, query = tile.row + r;
  W sums[SUMS_PER_LANE] = {}, most = -W(infinity()), total = 0;
  const long long end = rule.end_of(tile.row + tile.rows - 1);
  for (u32 key = 0; key < args.keys && (long long)key < end; key += ATTENTION_COLUMNS) {
    const u32 columns = min(ATTENTION_COLUMNS, args.keys - key);
    dots<T>(tiles.scores, tiles, q_rows, tile.row, tile.rows, k_rows, key, columns, args.dim);
    W own[SCORES_PER_LANE], slope, largest = -W(infinity());
    for (u32 m = 0; m < SCORES_PER_LANE; m++) {
      const u32 j = lane + m * LANES_PER_ROW;
      own[m] = -W(infinity());
      if (r < tile.rows) own[m] = rule.score(tiles.scores[r * SCORE_PITCH + j], tile.batch, tile.head, query, key + j, slope);
      if (own[m] > largest) largest = own[m];
    }
    tiles.parts[r * LANE_PITCH + lane] = largest;
    __syncthreads();
    W next = most;
    for (u32 i = 0; i < LANES_PER_ROW; i++) {
      const W part = tiles.parts[r * LANE_PITCH + i];
      if (part > next) next = part;
    }
    const W base = next == -W(infinity()) ? W(0) : next;
    W sum = 0;
    for (u32 m = 0; m < SCORES_PER_LANE; m++) {
      const u32 j = lane + m * LANES_PER_ROW;
      const W weight = exp_of(own[m] - base);
      sum += weight;
      tiles.scores[r * SCORE_PITCH + j] = weight == 0 ? W(0) : weight * rule.factor<W>(tile.batch, tile.head, query, key + j);
    }
    __syncthreads();
    tiles.parts[r * LANE_PITCH + lane] = sum;
    __syncthreads();
    const W share = total == 0 ? W(1) : exp_of(most - base);
    total *= share;
    for (u32 i = 0; i < LANES_PER_ROW; i++) total += tiles.parts[r * LANE_PITCH + i];
    for (u32 i = 0; i < SUMS_PER_LANE; i++) sums[i] *= share;
    most = next;
    add_weighted<T>(sums, tiles.scores, tiles, v_rows, key, columns, tile.slice, args.v_dim);
  }
  if (r >= tile.rows) return;
  write_sums<T>(sums, total == 0 ? W(0) : 1 / total, head_rows<T>(y, y_args, tile.batch, tile.head).at(query), tile.slice,
                args.v_dim);
  if (tile.slice == 0 && lane == 0) {
    const u64 row = (u64(tile.batch) * args.heads + tile.head) * args.queries + query;
    logs[row] = total == 0 ? W(infinity()) : most + W(log(double(total)));
  }
}

// The output, and the logarithm of each row's sum; ∞ for a query that sees no key.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention(u32 type, AttentionArgs args, MaskArgs mask, const void *q, HeadArgs q_args, const void *k, HeadArgs k_args,
              const void *v, HeadArgs v_args, void *y, HeadArgs y_args, void *logs) {
  __shared__ double memory[TILES_LEN];
  const ScoreRule rule = {args, mask};
  WITH_TYPE(type, attend<T>(memory, rule, q, q_args, k, k_args, v, v_args, y, y_args, static_cast<Wide<T> *>(logs)));
}

// Σ dy y of each row (batch, heads, queries), by a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_deltas(u32 type, AttentionArgs args, const void *y, const void *dy, HeadArgs y_args, void *deltas) {
  const u64 row = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (row >= u64(args.batch) * args.heads * args.queries) return;
  const u32 query = row % args.queries, head = row / args.queries % args.heads, batch = row / args.queries / args.heads;
  WITH_TYPE(type, {
    const T *a = head_rows<T>(y, y_args, batch, head).at(query), *b = head_rows<T>(dy, y_args, batch, head).at(query);
    Wide<T> sum = 0;
    for (u32 d = 0; d < args.v_dim; d++) sum = mul_add(Number<T>::widen(a[d]), Number<T>::widen(b[d]), sum);
    static_cast<Wide<T> *>(deltas)[row] = sum;
  });
}

// What the backward kernels read.
struct BackwardInputs {
  const void *q, *k, *v, *dy;
  HeadArgs q_args, k_args, v_args, y_args;
  const void *logs, *deltas;
};

// Weights with dropout in `scores`, the gradient of q kᵀ in `slopes`, of one pair of a query and a key.
template <typename W>
__device__ void weigh(const ScoreRule &rule, const BackwardInputs &in, W &score, W &gradient, u32 batch, u32 head, u32 query,
                      u32 key) {
  const u64 row = (u64(batch) * rule.args.heads + head) * rule.args.queries + query;
  W slope;
  const W weight = exp_of(rule.score(score, batch, head, query, key, slope) - static_cast<const W *>(in.logs)[row]);
  const W factor = weight == 0 ? W(0) : rule.factor<W>(batch, head, query, key);
  score = weight * factor;
  gradient = weight == 0 ? W(0) : weight * (gradient * factor - static_cast<const W *>(in.deltas)[row]) * slope;
}

template <typename T>
__device__ void backward_of_queries(double *memory, const ScoreRule &rule, const BackwardInputs &in, void *dq,
                                    const HeadArgs &dq_args) {
  typedef Wide<T> W;
  const AttentionArgs &args = rule.args;
  const Tiles<W> tiles(memory);
  const TileIndex tile(slices_of(args.dim), args.queries, args.heads);
  const u32 kv_head = tile.head / (args.heads / args.kv_heads);
  const HeadRows<T> q = head_rows<T>(in.q, in.q_args, tile.batch, tile.head);
  const HeadRows<T> dy = head_rows<T>(in.dy, in.y_args, tile.batch, tile.head);
  const HeadRows<T> k = head_rows<T>(in.k, in.k_args, tile.batch, kv_head);
  const HeadRows<T> v = head_rows<T>(in.v, in.v_args, tile.batch, kv_head);
  const u32 r = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW, query = tile.row + r;
  W sums[SUMS_PER_LANE] = {};
  const long long end = rule.end_of(tile.row + tile.rows - 1);
  for (u32 key = 0; key < args.keys && (long long)key < end; key += ATTENTION_COLUMNS) {
    const u32 columns = min(ATTENTION_COLUMNS, args.keys - key);
    dots<T>(tiles.scores, tiles, q, tile.row, tile.rows, k, key, columns, args.dim);
    dots<T>(tiles.slopes, tiles, dy, tile.row, tile.rows, v, key, columns, args.v_dim);
    for (u32 m = 0; m < SCORES_PER_LANE; m++) {
      const u32 j = lane + m * LANES_PER_ROW, i = r * SCORE_PITCH + j;
      const bool inside = r < tile.rows && j < columns;
      if (inside) weigh(rule, in, tiles.scores[i], tiles.slopes[i], tile.batch, tile.head, query, key + j);
      else tiles.slopes[i] = 0;
    }
    add_weighted<T>(sums, tiles.slopes, tiles, k, key, columns, tile.slice, args.dim);
    __syncthreads();
  }
  if (r < tile.rows) write_sums<T>(sums, W(1), head_rows<T>(dq, dq_args, tile.batch, tile.head).at(query), tile.slice, args.dim);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_queries(u32 type, AttentionArgs args, MaskArgs mask, const void *q, HeadArgs q_args, const void *k,
                               HeadArgs k_args, const void *v, HeadArgs v_args, const void *dy, HeadArgs y_args,
                               const void *logs, const void *deltas, void *dq, HeadArgs dq_args) {
  __shared__ double memory[TILES_LEN];
  const ScoreRule rule = {args, mask};
  const BackwardInputs in = {q, k, v, dy, q_args, k_args, v_args, y_args, logs, deltas};
  WITH_TYPE(type, backward_of_queries<T>(memory, rule, in, dq, dq_args));
}

template <typename T>
__device__ void backward_of_keys(double *memory, const ScoreRule &rule, const BackwardInputs &in, void *dk,
                                 const HeadArgs &dk_args, void *dv, const HeadArgs &dv_args) {
  typedef Wide<T> W;
  const AttentionArgs &args = rule.args;
  const Tiles<W> tiles(memory);
  const TileIndex tile(max(slices_of(args.dim), slices_of(args.v_dim)), args.keys, args.kv_heads);
  const HeadRows<T> k = head_rows<T>(in.k, in.k_args, tile.batch, tile.head);
  const HeadRows<T> v = head_rows<T>(in.v, in.v_args, tile.batch, tile.head);
  const u32 r = threadIdx.x / LANES_PER_ROW, lane = threadIdx.x % LANES_PER_ROW, key = tile.row + r;
  const u32 group = args.heads / args.kv_heads;
  W k_sums[SUMS_PER_LANE] = {}, v_sums[SUMS_PER_LANE] = {};
  // The first tile with a query that sees one of these keys.
  const long long seen = args.causal ? (long long)tile.row - (long long)args.offset : 0;
  const u32 start = seen <= 0 ? 0 : u32(min(seen, (long long)args.queries)) / ATTENTION_COLUMNS * ATTENTION_COLUMNS;
  for (u32 head = tile.head * group; head < (tile.head + 1) * group; head++) {
    const HeadRows<T> q = head_rows<T>(in.q, in.q_args, tile.batch, head);
    const HeadRows<T> dy = head_rows<T>(in.dy, in.y_args, tile.batch, head);
    for (u32 query = start; query < args.queries; query += ATTENTION_COLUMNS) {
      const u32 columns = min(ATTENTION_COLUMNS, args.queries - query);
      dots<T>(tiles.scores, tiles, k, tile.row, tile.rows, q, query, columns, args.dim);
      dots<T>(tiles.slopes, tiles, v, tile.row, tile.rows, dy, query, columns, args.v_dim);
      for (u32 m = 0; m < SCORES_PER_LANE; m++) {
        const u32 j = lane + m * LANES_PER_ROW, i = r * SCORE_PITCH + j;
        const bool inside = r < tile.rows && j < columns;
        if (inside) weigh(rule, in, tiles.scores[i], tiles.slopes[i], tile.batch, head, query + j, key);
        else tiles.scores[i] = tiles.slopes[i] = 0;
      }
      add_weighted<T>(v_sums, tiles.scores, tiles, dy, query, columns, tile.slice, args.v_dim);
      add_weighted<T>(k_sums, tiles.slopes, tiles, q, query, columns, tile.slice, args.dim);
      __syncthreads();
    }
  }
  if (r >= tile.rows) return;
  if (dk) write_sums<T>(k_sums, W(1), head_rows<T>(dk, dk_args, tile.batch, tile.head).at(key), tile.slice, args.dim);
  if (dv) write_sums<T>(v_sums, W(1), head_rows<T>(dv, dv_args, tile.batch, tile.head).at(key), tile.slice, args.v_dim);
}

// Either of the gradients may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_keys(u32 type, AttentionArgs args, MaskArgs mask, const void *q, HeadArgs q_args, const void *k,
                            HeadArgs k_args, const void *v, HeadArgs v_args, const void *dy, HeadArgs y_args,
                            const void *logs, const void *deltas, void *dk, HeadArgs dk_args, void *dv, HeadArgs dv_args) {
  __shared__ double memory[TILES_LEN];
  const ScoreRule rule = {args, mask};
  const BackwardInputs in = {q, k, v, dy, q_args, k_args, v_args, y_args, logs, deltas};
  WITH_TYPE(type, backward_of_keys<T>(memory, rule, in, dk, dk_args, dv, dv_args));
}

template <typename T>
__device__ Wide<T> dot_of_rows(HeadRows<T> a, u32 i, HeadRows<T> b, u32 j, u32 dim) {
  Wide<T> sum = 0;
  for (u32 d = 0; d < dim; d++) sum = mul_add(Number<T>::widen(a.at(i)[d]), Number<T>::widen(b.at(j)[d]), sum);
  return sum;
}

// The gradient of an additive mask, an element by a thread: the sum over all scores that it is added to. `rows` and so on are the
// mask's own sizes, 1 or those of the scores.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_mask(u32 type, AttentionArgs args, MaskArgs mask, const void *q, HeadArgs q_args, const void *k,
                            HeadArgs k_args, const void *v, HeadArgs v_args, const void *dy, HeadArgs y_args,
                            const void *logs, const void *deltas, void *dm, u64 n) {
  const u64 element = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (element >= n) return;
  const ScoreRule rule = {args, mask};
  const BackwardInputs in = {q, k, v, dy, q_args, k_args, v_args, y_args, logs, deltas};
  // From the last dimension to the first, as the mask is contiguous. A stride of 0: of all.
  u64 rest = element;
  u32 first[4], last[4];
  const u32 sizes[4] = {args.batch, args.heads, args.queries, args.keys};
  const u64 strides[4] = {mask.batch, mask.head, mask.query, mask.key};
  for (u32 i = 4; i-- > 0;) {
    const u32 size = strides[i] == 0 ? 1 : sizes[i];
    first[i] = rest % size;
    last[i] = strides[i] == 0 ? sizes[i] : first[i] + 1;
    rest /= size;
  }
  WITH_TYPE(type, {
    double sum = 0;
    for (u32 batch = first[0]; batch < last[0]; batch++) {
      for (u32 head = first[1]; head < last[1]; head++) {
        const u32 kv_head = head / (args.heads / args.kv_heads);
        const HeadRows<T> q_rows = head_rows<T>(in.q, in.q_args, batch, head);
        const HeadRows<T> k_rows = head_rows<T>(in.k, in.k_args, batch, kv_head);
        const HeadRows<T> v_rows = head_rows<T>(in.v, in.v_args, batch, kv_head);
        const HeadRows<T> dy_rows = head_rows<T>(in.dy, in.y_args, batch, head);
        for (u32 query = first[2]; query < last[2]; query++) {
          const u64 row = (u64(batch) * args.heads + head) * args.queries + query;
          const Wide<T> log = static_cast<const Wide<T> *>(logs)[row], delta = static_cast<const Wide<T> *>(deltas)[row];
          for (u32 key = first[3]; key < last[3]; key++) {
            Wide<T> slope;
            const Wide<T> product = dot_of_rows<T>(q_rows, query, k_rows, key, args.dim);
            const Wide<T> weight = exp_of(rule.score(product, batch, head, query, key, slope) - log);
            if (weight == 0) continue;
            const Wide<T> gradient = dot_of_rows<T>(dy_rows, query, v_rows, key, args.v_dim);
            sum += weight * (gradient * rule.factor<Wide<T>>(batch, head, query, key) - delta);
          }
        }
      }
    }
    write(dm, mask.dtype, element, sum);
  });
}
