// What the kernels share with the host code that launches them. The build script generates the Rust side
// (launch/shared.rs) from this file, so it may only have the forms of declaration that it has now.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

// Threads per block, in every kernel.
constexpr u32 THREADS = 256;
// Bytes of the widest load or store.
constexpr u32 VECTOR_BYTES = 16;
// Elements per block of an elementwise kernel.
constexpr u64 ELEMENTS_PER_BLOCK = 1 << 12;
// Elements per block of a kernel over all variables.
constexpr u64 CHUNK = 1 << 14;
// 64-bit words of the table of variables that one launch carries as its argument, which may have 4096 bytes.
constexpr u32 TABLE_CHUNK = 480;
// Channels per load in NHWC, at most: each has its own sums, in registers.
constexpr u32 MAX_ROW_LANES = 4;
// Channels per block where partial sums are added up.
constexpr u32 CHANNELS_PER_BLOCK = 8;
// Threads per NCHW plane in global average pooling.
constexpr u32 THREADS_PER_PLANE = 32;
// Channels of a filter per block where weights change their layout.
constexpr u32 FILTER_TILE = THREADS;
// Columns per block where layer normalization adds up rows.
constexpr u32 NORM_COLUMNS = 32;
// Statistics of a row in layer and group normalization: mean and 1/σ.
constexpr u32 ROW_STATISTICS = 2;
// Elements per thread that a kernel adds up in the accumulation dtype before it goes on in f64.
constexpr u32 RUN = 16;
// Statistics of a channel in batch normalization: mean, 1/σ, γ/σ and β.
constexpr u32 STATISTICS = 4;
// Tiles of attention: rows of a block, what they meet at a time, dimensions that are multiplied at a time, and dimensions of the
// output of a block.
constexpr u32 ATTENTION_ROWS = 16;
constexpr u32 ATTENTION_COLUMNS = 64;
constexpr u32 ATTENTION_DIMS = 32;
constexpr u32 ATTENTION_SLICE = 128;

enum DtypeCode : u32 { DTYPE_F32, DTYPE_F64, DTYPE_F16, DTYPE_BF16 };
// The columns of the table: first block, number of elements, dtype and metric (from bit 8 on), pointers.
enum TableColumn : u32 { COLUMN_FIRST_BLOCK, COLUMN_SIZE, COLUMN_KIND, COLUMN_POINTER };
// The metric T of the ball: 1, |w| + η, a number for each element, one number for all.
enum MetricCode : u32 { METRIC_ONE, METRIC_WEIGHTS, METRIC_GIVEN, METRIC_NUMBER };
// x to the power of 0, 1, 2, 1/2, ∞ or any other exponent, for x in [0, 1].
enum PowerCode : u32 { POWER_ZERO, POWER_ONE, POWER_SQUARE, POWER_ROOT, POWER_INFINITY, POWER_REAL };
// ε̂ = ρ T² g without a norm, or in the ball of p = 2, p = ∞, or any other p.
enum NormCode : u32 { NORM_NONE, NORM_L2, NORM_INFINITY, NORM_LP };
// Activation functions; ELU has α and a factor γ.
enum FunctionCode : u32 { GELU_TANH, GELU_ERF, SILU, SIGMOID, TANH, MISH, RELU2, RELU6, HARD_SIGMOID, HARD_SWISH, LEAKY_RELU, ELU };
enum PoolKind : u32 { POOL_MAX, POOL_MEAN };
enum ResizeCode : u32 { RESIZE_NEAREST, RESIZE_LINEAR, RESIZE_ALIGNED_CORNERS };
enum MaskKind : u32 { MASK_NONE, MASK_BOOLEAN, MASK_ADDITIVE };

// Images, and how the blocks share them. NCHW has `across` = 0: a vector stays within a channel, and a block takes some
// images of one channel. NHWC: each lane of a vector is another channel, `across` threads are side by side in a row of
// channels, and a block takes some pixels of all their channels. `splits`: parts that each channel is divided into.
struct ChannelArgs {
  u32 images, channels, plane, splits, across, lanes;
};

// γ and β, or null.
struct AffineArgs {
  u32 dtype;
  const void *weight, *bias;
};

// `step`: from one pixel to the next, 1 in NCHW and the number of channels in NHWC.
struct PoolArgs {
  u32 kind, kernel, stride, padding, height, width, rows, columns, step;
};

// Images of `channels` channels of `plane` elements, in groups of channels. `vectors`: whether loads of 16 bytes are
// aligned and stay within a channel.
struct GroupArgs {
  u32 channels, groups, plane, vectors;
};

// `down` and `right`: along a column and along a row.
struct ConvArgs {
  u32 images, channels, height, width, kernel_height, kernel_width, rows, columns;
  u32 stride_down, stride_right, padding_down, padding_right, dilation_down, dilation_right;
};

// Attention. `offset`: query i sees the keys up to i + this, where `causal` is not 0; of two's complement. `softcap`: scores s
// become c tanh(s / c), if it is not 0. `drop`: the probability that a weight is dropped.
struct AttentionArgs {
  u32 batch, heads, kv_heads, queries, keys, dim, v_dim, causal;
  u64 offset, seed;
  double scale, softcap, drop;
};

// From one row of a tensor's heads to the next.
struct HeadArgs {
  u64 batch, head, token;
};

// A mask, and from one of its elements to the next: 0 where it is the same for all.
struct MaskArgs {
  u32 kind, dtype;
  u64 batch, head, query, key;
  const void *values;
};

// The result of measuring a gradient. It stays on the device.
struct Outcome {
  // M = max|T g|
  double max;
  // The factor of r^(q-1), where r = |T g| / M. 0: ε̂ = 0.
  double scale;
  // Whether Σ r^q is still needed.
  u64 needs_sum;
  // Steps so far whose gradient was not finite.
  u64 not_finite;
};
