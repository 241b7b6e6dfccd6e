// SAM's arithmetic and SGD, over all variables in one launch.
//
// A table holds the pointers: `count` entries, as columns of 64-bit words. Block b takes CHUNK elements of the entry e
// with first[e] <= b < first[e + 1]. One launch handles variables of any dtypes. Which block sums what depends on their
// sizes alone, so sums are deterministic.
//
// Nothing is copied to the host: the norm, the scale and the check for non-finite values stay on the device, in an
// Outcome, where the next kernel reads them.
#include "table.cuh"

struct TableChunk {
  u64 words[TABLE_CHUNK];
};

// Writes a part of the table. The words are launch arguments: no host memory has to outlive the call.
extern "C" __global__ void write_table(u64 *table, u32 begin, u32 count, TableChunk chunk) {
  for (u32 i = threadIdx.x; i < count; i += THREADS) table[begin + i] = chunk.words[i];
}

// The metric T, which scales the ball in each coordinate.
template <typename T> struct Scaling {
  u32 kind;
  Wide<T> eta;
  const Wide<T> *given;

  // `pointers`: pointers per entry. The third is the metric's; for |w| + η it holds the bits of η as a double.
  __device__ Scaling(const Task &task, u32 pointers)
      : kind(task.metric()), eta(0), given(pointers > 2 ? task.pointer<const Wide<T>>(2) : nullptr) {
    if (kind == METRIC_WEIGHTS) eta = Wide<T>(__longlong_as_double(task.word(COLUMN_POINTER + 2)));
  }

  __device__ bool vectors() const { return kind != METRIC_GIVEN || aligned(given); }

  // T at element i + k, where the weight is w.
  __device__ __forceinline__ Wide<T> of(u64 i, u32 k, T w) const {
    if (kind == METRIC_WEIGHTS) return size_of(Number<T>::widen(w)) + eta;
    return kind == METRIC_GIVEN ? given[i + k] : kind == METRIC_NUMBER ? *given : Wide<T>(1);
  }
};

// T g, of which the norm is taken.
template <typename T> struct ScaledGrad {
  const T *g, *w;
  Scaling<T> scaling;

  __device__ ScaledGrad(const Task &task, u32 pointers)
      : g(task.pointer<const T>(1)), w(task.pointer<const T>(0)), scaling(task, pointers) {}

  __device__ bool vectors() const { return aligned(g) && aligned(w) && scaling.vectors(); }
  template <u32 N> __device__ __forceinline__ Pair<T, N> read(u64 i) const {
    Pair<T, N> in;
    in.a = load<N>(g + i);
    in.b = scaling.kind == METRIC_WEIGHTS ? load<N>(w + i) : in.a;
    return in;
  }
  template <u32 N> __device__ __forceinline__ Wide<T> of(u64 i, u32 k, const Pair<T, N> &in) const {
    return scaling.of(i, k, in.b.at[k]) * Number<T>::widen(in.a.at[k]);
  }
};

// x^e for x in [0, 1], without pow() where e permits.
template <typename W> __device__ __forceinline__ W power(u32 kind, W e, W x) {
  switch (kind) {
  case POWER_ZERO: return W(1);
  case POWER_ONE: return x;
  case POWER_SQUARE: return x * x;
  case POWER_ROOT: return root_of(x);
  case POWER_INFINITY: return x >= W(1) ? W(1) : W(0);
  default: return power_of(x, e);
  }
}

// r = |s| / M. Divides directly where 1/M overflows.
template <typename W> struct Ratio {
  W max, over;
  bool small;

  __device__ explicit Ratio(double max) : max(W(max)), over(W(1 / max)), small(!(over <= W(1e37))) {}
  __device__ __forceinline__ W of(W size) const { return size >= max ? W(1) : small ? size / max : size * over; }
};

template <typename T> struct Measure : ScaledGrad<T> {
  double max = 0, squares = 0;

  __device__ Measure(const Task &task, u32 pointers) : ScaledGrad<T>(task, pointers) {}

  template <u32 N> __device__ __forceinline__ void use(u64 i, const Pair<T, N> &in) {
    for (u32 k = 0; k < N; k++) {
      const double slope = this->of(i, k, in);
      max = larger(max, fabs(slope));
      squares = fma(slope, slope, squares);
    }
  }
};

// max|T g| and Σ(T g)² of each chunk. The squares of f32 neither overflow nor underflow in f64.
extern "C" __global__ void __launch_bounds__(THREADS)
    measure_gradient(const u64 *table, u32 count, u32 pointers, double *partials) {
  const Task mine = task(table, count);
  double max = 0, squares = 0;
  WITH_TYPE(mine.type(), {
    Measure<T> measure(mine, pointers);
    if (measure.vectors()) sweep<LANES<T>>(mine, measure);
    else sweep<1>(mine, measure);
    max = measure.max;
    squares = measure.squares;
  });
  max = over_block<Larger>(max);
  squares = over_block<Add>(squares);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = max;
    partials[gridDim.x + blockIdx.x] = squares;
  }
}

// The scale of equation 2, from all chunks, by one block; or the flag that Σ r^q is needed for it.
extern "C" __global__ void __launch_bounds__(THREADS)
    perturbation_scale(const double *partials, u32 chunks, u32 norm, double rho, Outcome *outcome) {
  double max = 0, squares = 0;
#pragma unroll 8
  for (u32 i = threadIdx.x; i < chunks; i += THREADS) {
    max = larger(max, partials[i]);
    squares += partials[chunks + i];
  }
  max = over_block<Larger>(max);
  squares = over_block<Add>(squares);
  if (threadIdx.x > 0) return;
  outcome->max = max;
  outcome->scale = 0;
  outcome->needs_sum = 0;
  if (!(max <= 1.7976931348623157e308)) {
    outcome->max = 1;
    outcome->not_finite += 1;
  } else if (norm == NORM_NONE) {
    outcome->max = 1;
    outcome->scale = rho;
  } else if (max > 0) {
    const bool normal = squares >= 2.2250738585072014e-308 && squares <= 1.7976931348623157e308;
    if (norm == NORM_INFINITY) outcome->scale = rho;
    else if (norm == NORM_L2 && normal) outcome->scale = rho * (max / sqrt(squares));
    else outcome->needs_sum = 1;
  }
}

template <typename T> struct LpTerms : ScaledGrad<T> {
  u32 kind;
  Wide<T> exponent;
  Ratio<Wide<T>> ratio;
  double sum = 0;

  __device__ LpTerms(const Task &task, u32 pointers, u32 kind, double exponent, double max)
      : ScaledGrad<T>(task, pointers), kind(kind), exponent(Wide<T>(exponent)), ratio(max) {}

  template <u32 N> __device__ __forceinline__ void use(u64 i, const Pair<T, N> &in) {
    for (u32 k = 0; k < N; k++) sum += power(kind, exponent, ratio.of(size_of(this->of(i, k, in))));
  }
};

// Σ r^q of each chunk, if `needs_sum`.
extern "C" __global__ void __launch_bounds__(THREADS)
    lp_terms(const u64 *table, u32 count, u32 pointers, u32 kind, double exponent, const Outcome *outcome,
             double *partials) {
  if (!outcome->needs_sum) return;
  const Task mine = task(table, count);
  double sum = 0;
  WITH_TYPE(mine.type(), {
    LpTerms<T> terms(mine, pointers, kind, exponent, outcome->max);
    sweep<1>(mine, terms);
    sum = terms.sum;
  });
  sum = over_block<Add>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// ρ / (Σ r^q)^(1/p)
extern "C" __global__ void __launch_bounds__(THREADS)
    lp_scale(const double *partials, u32 chunks, double root, double rho, Outcome *outcome) {
  if (!outcome->needs_sum) return;
  const double sum = over_memory<Add>(partials, chunks);
  if (threadIdx.x == 0) outcome->scale = rho / pow(sum, root);
}

// g ← w + T · step(T g), times the mask. If the gradient is zero or not finite, copies w unchanged (0 · inf would be
// NaN).
template <typename T, typename Step> struct Perturb {
  typedef Wide<T> W;

  T *g;
  const T *w, *mask;
  Scaling<T> scaling;
  bool moves;
  Step step;

  __device__ Perturb(const Task &task, u32 pointers, bool moves, Step step)
      : g(task.pointer<T>(1)), w(task.pointer<const T>(0)), mask(pointers > 3 ? task.pointer<const T>(3) : nullptr),
        scaling(task, pointers), moves(moves), step(step) {}

  template <u32 N> __device__ __forceinline__ Pair<T, N> read(u64 i) const { return {load<N>(w + i), load<N>(g + i)}; }

  template <u32 N> __device__ __forceinline__ void use(u64 i, const Pair<T, N> &in) {
    Pack<T, N> there = in.a;
    for (u32 k = 0; moves && k < N; k++) {
      const W along = scaling.of(i, k, in.a.at[k]);
      W move = along * step.of(along * Number<T>::widen(in.b.at[k]));
      if (mask) move *= Number<T>::widen(mask[i + k]);
      there.at[k] = Number<T>::narrow(Number<T>::widen(there.at[k]) + move);
    }
    store<N>(g + i, there);
  }
};

// p = 2, or no norm: one multiplication, by ρ / ‖g‖, unless the factor leaves the dtype's range.
template <typename W> struct LinearStep {
  W factor, scale, max;
  bool whole;

  __device__ explicit LinearStep(const Outcome &outcome)
      : factor(W(outcome.scale / outcome.max)), scale(W(outcome.scale)), max(W(outcome.max)),
        whole(factor > W(1e-37) && factor < W(1e37)) {}
  __device__ __forceinline__ W of(W slope) const { return whole ? factor * slope : scale * (slope / max); }
};

// Any other p.
template <typename W> struct LpStep {
  u32 kind;
  W exponent, scale;
  Ratio<W> ratio;

  __device__ LpStep(u32 kind, double exponent, const Outcome &outcome)
      : kind(kind), exponent(W(exponent)), scale(W(outcome.scale)), ratio(outcome.max) {}
  __device__ __forceinline__ W of(W slope) const {
    if (slope == 0) return W(0);
    const W size = scale * power(kind, exponent, ratio.of(size_of(slope)));
    return slope < 0 ? -size : size;
  }
};

// Three blocks per multiprocessor: their outstanding loads are enough to saturate the memory.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    perturb_linear(const u64 *table, u32 count, u32 pointers, const Outcome *outcome) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    Perturb<T, LinearStep<Wide<T>>> perturb(mine, pointers, outcome->scale != 0, LinearStep<Wide<T>>(*outcome));
    if (aligned(perturb.g) && aligned(perturb.w) && perturb.scaling.vectors()) sweep<LANES<T>>(mine, perturb);
    else sweep<1>(mine, perturb);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    perturb_lp(const u64 *table, u32 count, u32 pointers, u32 kind, double exponent, const Outcome *outcome) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    const LpStep<Wide<T>> step(kind, exponent, *outcome);
    Perturb<T, LpStep<Wide<T>>> perturb(mine, pointers, outcome->scale != 0, step);
    sweep<1>(mine, perturb);
  });
}

template <typename T> struct SgdStep {
  typedef Wide<T> W;

  T *w;
  const T *g;
  W *v;
  W rate, momentum, decay;
  bool nesterov;

  // The velocity has the accumulation dtype: N of its elements may be several vectors.
  template <u32 N> struct In {
    static constexpr u32 M = N < LANES<W> ? N : LANES<W>;
    Pack<T, N> w, g;
    Pack<W, M> v[N / M];
  };

  template <u32 N> __device__ __forceinline__ In<N> read(u64 i) const {
    constexpr u32 M = In<N>::M;
    In<N> in = {load<N>(w + i), load<N>(g + i), {}};
    for (u32 j = 0; v && j < N / M; j++) in.v[j] = load<M>(v + i + j * M);
    return in;
  }

  template <u32 N> __device__ __forceinline__ void use(u64 i, In<N> in) {
    constexpr u32 M = In<N>::M;
    for (u32 k = 0; k < N; k++) {
      const W weight = Number<T>::widen(in.w.at[k]);
      const W along = mul_add(decay, weight, Number<T>::widen(in.g.at[k]));
      const W velocity = mul_add(momentum, in.v[k / M].at[k % M], along);
      in.v[k / M].at[k % M] = velocity;
      const W step = !v ? along : nesterov ? mul_add(momentum, velocity, along) : velocity;
      in.w.at[k] = Number<T>::narrow(mul_add(-rate, step, weight));
    }
    store<N>(w + i, in.w);
    for (u32 j = 0; v && j < N / M; j++) store<M>(v + i + j * M, in.v[j]);
  }
};

// One SGD step. Pointers: w, g and the velocity, or null.
extern "C" __global__ void __launch_bounds__(THREADS)
    sgd_step(const u64 *table, u32 count, double rate, double momentum, double decay, u32 nesterov) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    typedef Wide<T> W;
    SgdStep<T> descend = {
        mine.pointer<T>(0), mine.pointer<const T>(1), mine.pointer<W>(2), W(rate), W(momentum), W(decay),
        nesterov != 0};
    if (aligned(descend.w) && aligned(descend.g) && aligned(descend.v)) sweep<LANES<T>>(mine, descend);
    else sweep<1>(mine, descend);
  });
}

template <typename T> struct Dot {
  const T *a, *b;
  double sum = 0;

  __device__ explicit Dot(const Task &task) : a(task.pointer<const T>(0)), b(task.pointer<const T>(1)) {}

  template <u32 N> __device__ __forceinline__ Pair<T, N> read(u64 i) const { return {load<N>(a + i), load<N>(b + i)}; }
  template <u32 N> __device__ __forceinline__ void use(u64, const Pair<T, N> &in) {
    for (u32 k = 0; k < N; k++)
      sum = fma(double(Number<T>::widen(in.a.at[k])), double(Number<T>::widen(in.b.at[k])), sum);
  }
};

// Σ a b of each chunk.
extern "C" __global__ void __launch_bounds__(THREADS) dot_chunks(const u64 *table, u32 count, double *partials) {
  const Task mine = task(table, count);
  double sum = 0;
  WITH_TYPE(mine.type(), {
    Dot<T> dot(mine);
    if (aligned(dot.a) && aligned(dot.b)) sweep<LANES<T>>(mine, dot);
    else sweep<1>(mine, dot);
    sum = dot.sum;
  });
  sum = over_block<Add>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// The sum over all chunks, times a factor, by one block.
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_chunks(const double *partials, u32 chunks, double factor, u32 type, void *total) {
  const double sum = over_memory<Add>(partials, chunks);
  if (threadIdx.x == 0) write(total, type, 0, factor * sum);
}

template <typename T> struct Axpby {
  typedef Wide<T> W;

  T *a;
  const T *b;
  W alpha, beta;

  template <u32 N> __device__ __forceinline__ Pair<T, N> read(u64 i) const { return {load<N>(a + i), load<N>(b + i)}; }
  template <u32 N> __device__ __forceinline__ void use(u64 i, Pair<T, N> in) {
    for (u32 k = 0; k < N; k++) {
      const W a = Number<T>::widen(in.a.at[k]), b = Number<T>::widen(in.b.at[k]);
      in.a.at[k] = Number<T>::narrow(mul_add(alpha, a, beta * b));
    }
    store<N>(a + i, in.a);
  }
};

// a ← α a + β b
extern "C" __global__ void __launch_bounds__(THREADS)
    axpby(const u64 *table, u32 count, u32 type, const void *alpha, const void *beta) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    typedef Wide<T> W;
    Axpby<T> mix = {mine.pointer<T>(0), mine.pointer<const T>(1), W(read(alpha, type, 0)), W(read(beta, type, 0))};
    if (aligned(mix.a) && aligned(mix.b)) sweep<LANES<T>>(mine, mix);
    else sweep<1>(mine, mix);
  });
}
