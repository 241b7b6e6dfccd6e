// Optimizers other than SGD, over all variables in one launch, with the table of params.cu.
#include "table.cuh"

// N elements of a type as vectors of the widest load.
template <typename T, u32 N> struct Wides {
  static constexpr u32 M = N < LANES<T> ? N : LANES<T>;
  Pack<T, M> part[N / M];

  __device__ __forceinline__ void load_from(const T *from) {
    for (u32 j = 0; j < N / M; j++) part[j] = load<M>(from + j * M);
  }
  __device__ __forceinline__ void store_to(T *to) const {
    for (u32 j = 0; j < N / M; j++) store<M>(to + j * M, part[j]);
  }
  __device__ __forceinline__ T &at(u32 k) { return part[k / M].at[k % M]; }
};

template <typename T> struct AdamWStep {
  typedef Wide<T> W;

  T *w;
  const T *g;
  W *m, *v;
  W keep, lerp;
  bool from_gradient;
  W beta2, rate2, bias2_root, eps, minus_rate;

  template <u32 N> struct In {
    Pack<T, N> w, g;
    Wides<W, N> m, v;
  };

  template <u32 N> __device__ __forceinline__ In<N> read(u64 i) const {
    In<N> in;
    in.w = load<N>(w + i);
    in.g = load<N>(g + i);
    in.m.load_from(m + i);
    in.v.load_from(v + i);
    return in;
  }

  template <u32 N> __device__ __forceinline__ void use(u64 i, In<N> in) {
    for (u32 k = 0; k < N; k++) {
      const W grad = Number<T>::widen(in.g.at[k]), before = in.m.at(k);
      const W first = mul_add(lerp, grad - before, from_gradient ? grad : before);
      const W second = mul_add(rate2 * grad, grad, in.v.at(k) * beta2);
      const W divisor = root_of(second) / bias2_root + eps;
      in.m.at(k) = first;
      in.v.at(k) = second;
      in.w.at[k] = Number<T>::narrow(Number<T>::widen(in.w.at[k]) * keep + minus_rate * first / divisor);
    }
    store<N>(w + i, in.w);
    in.m.store_to(m + i);
    in.v.store_to(v + i);
  }
};

// One step of AdamW. Pointers: w, g, and the moments m and v.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_step(const u64 *table, u32 count, double keep, double lerp, u32 from_gradient, double beta2, double rate2,
               double bias2_root, double eps, double minus_rate) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    typedef Wide<T> W;
    AdamWStep<T> step = {
        mine.pointer<T>(0), mine.pointer<const T>(1), mine.pointer<W>(2), mine.pointer<W>(3), W(keep), W(lerp),
        from_gradient != 0, W(beta2), W(rate2), W(bias2_root), W(eps), W(minus_rate)};
    if (aligned(step.w) && aligned(step.g) && aligned(step.m) && aligned(step.v)) sweep<LANES<T>>(mine, step);
    else sweep<1>(mine, step);
  });
}

template <typename T> struct Ema {
  typedef Wide<T> W;

  const T *w;
  W *a;
  W decay, rest;

  template <u32 N> struct In {
    Pack<T, N> w;
    Wides<W, N> a;
  };

  template <u32 N> __device__ __forceinline__ In<N> read(u64 i) const {
    In<N> in;
    in.w = load<N>(w + i);
    in.a.load_from(a + i);
    return in;
  }

  template <u32 N> __device__ __forceinline__ void use(u64 i, In<N> in) {
    for (u32 k = 0; k < N; k++) in.a.at(k) = in.a.at(k) * decay + Number<T>::widen(in.w.at[k]) * rest;
    in.a.store_to(a + i);
  }
};

// a ← d a + (1 - d) w. Pointers: w and the average a.
extern "C" __global__ void __launch_bounds__(THREADS) ema_step(const u64 *table, u32 count, double decay) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    typedef Wide<T> W;
    Ema<T> ema = {mine.pointer<const T>(0), mine.pointer<W>(1), W(decay), W(1 - decay)};
    if (aligned(ema.w) && aligned(ema.a)) sweep<LANES<T>>(mine, ema);
    else sweep<1>(mine, ema);
  });
}

template <typename T> struct Clamp {
  typedef Wide<T> W;

  T *a;
  W limit;

  template <u32 N> __device__ __forceinline__ Pack<T, N> read(u64 i) const { return load<N>(a + i); }
  template <u32 N> __device__ __forceinline__ void use(u64 i, Pack<T, N> in) {
    for (u32 k = 0; k < N; k++) {
      const W x = Number<T>::widen(in.at[k]);
      if (x > limit) in.at[k] = Number<T>::narrow(limit);
      if (x < -limit) in.at[k] = Number<T>::narrow(-limit);
    }
    store<N>(a + i, in);
  }
};

// Each number to the nearest one within ±limit; NaN stays. Pointers: a.
extern "C" __global__ void __launch_bounds__(THREADS) clamp_to(const u64 *table, u32 count, double limit) {
  const Task mine = task(table, count);
  WITH_TYPE(mine.type(), {
    Clamp<T> clamp = {mine.pointer<T>(0), Wide<T>(limit)};
    if (aligned(clamp.a)) sweep<LANES<T>>(mine, clamp);
    else sweep<1>(mine, clamp);
  });
}
