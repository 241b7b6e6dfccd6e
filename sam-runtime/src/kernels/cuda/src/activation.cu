// Activation functions: f(x), and f'(x) dy, which is computed from x again; and gates, f of one half times the other.
//
// As on the CPU nothing cancels, ±∞ and large numbers give the limits, and NaN stays NaN.
#include "elementwise.cuh"

// exp(-x) is 0 for larger x, or so small that its product with x is.
template <typename W> constexpr W LIMIT = sizeof(W) == 8 ? 800 : 110;

template <typename W> __device__ __forceinline__ W at_least(W x) { return x < -LIMIT<W> ? -LIMIT<W> : x; }
template <typename W> __device__ __forceinline__ W bounded(W x) {
  return x > LIMIT<W> ? LIMIT<W> : at_least(x);
}

// 1 / (1 + e⁻ˣ), and its derivative.
template <typename W> struct Logistic {
  W share, slope;

  __device__ __forceinline__ explicit Logistic(W x) {
    const W z = exp_of(-size_of(x)), r = 1 / (1 + z);
    share = x < 0 ? z * r : r;
    slope = z * r * r;
  }
};

// Each function has up to two parameters, a and b.
struct GeluTanh {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) {
    const W c = bounded(x);
    return at_least(x) * Logistic<W>(c * (W(1.5957691216057307) + W(0.07135481627260025) * (c * c))).share;
  }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    const W c = bounded(x), linear = W(1.5957691216057307), cubic = W(0.07135481627260025) * (c * c);
    const Logistic<W> logistic(c * (linear + cubic));
    return logistic.share + c * (linear + 3 * cubic) * logistic.slope;
  }
};

struct GeluErf {
  template <typename W> static __device__ __forceinline__ W share(W x) {
    const W tail = W(0.5) * erfc_of(size_of(x) * W(0.7071067811865476));
    return x < 0 ? tail : 1 - tail;
  }
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return at_least(x) * share(bounded(x)); }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    const W c = bounded(x);
    return share(c) + c * W(0.3989422804014327) * exp_of(W(-0.5) * c * c);
  }
};

struct Silu {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return at_least(x) * Logistic<W>(x).share; }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    const Logistic<W> logistic(x);
    return logistic.share + bounded(x) * logistic.slope;
  }
};

struct Sigmoid {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return Logistic<W>(x).share; }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) { return Logistic<W>(x).slope; }
};

struct Tanh {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return tanh_of(x); }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) { return 4 * Logistic<W>(2 * x).slope; }
};

struct Mish {
  // tanh(ln(1 + eˣ)), and 1 - that.
  template <typename W> static __device__ __forceinline__ void shares(W x, W &share, W &left) {
    const W z = exp_of(-size_of(x));
    const W above = x < 0 ? z * (z + 2) : 1 + 2 * z, below = x < 0 ? z * (z + 2) + 2 : 1 + 2 * z * (1 + z);
    share = above / below;
    left = (x < 0 ? W(2) : 2 * z * z) / below;
  }
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) {
    W share, left;
    shares(x, share, left);
    return at_least(x) * share;
  }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    W share, left;
    shares(x, share, left);
    return share + bounded(x) * (left * (1 + share) * Logistic<W>(x).share);
  }
};

struct Relu2 {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return x < 0 ? W(0) : x * x; }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) { return x < 0 ? W(0) : x + x; }
};

struct Relu6 {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) { return x < 0 ? W(0) : x > 6 ? W(6) : x; }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) { return x <= 0 || x >= 6 ? W(0) : W(1); }
};

struct HardSigmoid {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) {
    const W y = (x + 3) * W(1.0 / 6);
    return y < 0 ? W(0) : y > 1 ? W(1) : y;
  }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    return x > -3 && x < 3 ? W(1.0 / 6) : W(0);
  }
};

struct HardSwish {
  template <typename W> static __device__ __forceinline__ W value(W x, W, W) {
    return x <= -3 ? W(0) : x >= 3 ? x : x * ((x + 3) * W(1.0 / 6));
  }
  template <typename W> static __device__ __forceinline__ W slope(W x, W, W) {
    return x <= -3 ? W(0) : x >= 3 ? W(1) : x * W(1.0 / 3) + W(0.5);
  }
};

struct LeakyRelu {
  template <typename W> static __device__ __forceinline__ W value(W x, W a, W) { return x > 0 ? x : x * a; }
  template <typename W> static __device__ __forceinline__ W slope(W x, W a, W) { return x > 0 ? W(1) : a; }
};

struct Elu {
  template <typename W> static __device__ __forceinline__ W value(W x, W a, W b) {
    return b * (x > 0 ? x : a * exp_less_one(x));
  }
  template <typename W> static __device__ __forceinline__ W slope(W x, W a, W b) {
    return b * (x > 0 ? W(1) : a * exp_of(x));
  }
};

// Runs code with F as the function of a code, which is the same for all threads of a block.
#define WITH_FUNCTION(function, ...)                                                                                   \
  switch (function) {                                                                                                  \
  case GELU_TANH: { typedef GeluTanh F; __VA_ARGS__; } break;                                                          \
  case GELU_ERF: { typedef GeluErf F; __VA_ARGS__; } break;                                                            \
  case SILU: { typedef Silu F; __VA_ARGS__; } break;                                                                   \
  case SIGMOID: { typedef Sigmoid F; __VA_ARGS__; } break;                                                             \
  case TANH: { typedef Tanh F; __VA_ARGS__; } break;                                                                   \
  case MISH: { typedef Mish F; __VA_ARGS__; } break;                                                                   \
  case RELU2: { typedef Relu2 F; __VA_ARGS__; } break;                                                                 \
  case RELU6: { typedef Relu6 F; __VA_ARGS__; } break;                                                                 \
  case HARD_SIGMOID: { typedef HardSigmoid F; __VA_ARGS__; } break;                                                    \
  case HARD_SWISH: { typedef HardSwish F; __VA_ARGS__; } break;                                                        \
  case LEAKY_RELU: { typedef LeakyRelu F; __VA_ARGS__; } break;                                                        \
  case ELU: { typedef Elu F; __VA_ARGS__; } break;                                                                     \
  }

// The same for the functions of gates.
#define WITH_GATE(function, ...)                                                                                       \
  switch (function) {                                                                                                  \
  case SILU: { typedef Silu F; __VA_ARGS__; } break;                                                                   \
  case SIGMOID: { typedef Sigmoid F; __VA_ARGS__; } break;                                                             \
  }

template <typename T, typename F> struct Values {
  const T *x;
  T *y;
  Wide<T> a, b;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    Pack<T, N> pack = load<N>(x + i);
    for (u32 k = 0; k < N; k++) pack.at[k] = Number<T>::narrow(F::value(Number<T>::widen(pack.at[k]), a, b));
    store<N>(y + i, pack);
  }
};

template <typename T, typename F> struct Slopes {
  const T *x, *dy;
  T *dx;
  Wide<T> a, b;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Pack<T, N> from = load<N>(x + i);
    Pack<T, N> pack = load<N>(dy + i);
    for (u32 k = 0; k < N; k++) {
      const Wide<T> slope = F::slope(Number<T>::widen(from.at[k]), a, b);
      pack.at[k] = Number<T>::narrow(slope * Number<T>::widen(pack.at[k]));
    }
    store<N>(dx + i, pack);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    activation(u32 type, u32 function, double a, double b, const void *x, void *y, u64 n) {
  WITH_TYPE(type, WITH_FUNCTION(function, {
    const Values<T, F> values = {static_cast<const T *>(x), static_cast<T *>(y), Wide<T>(a), Wide<T>(b)};
    if (aligned(x) && aligned(y)) for_each_element<LANES<T>>(n, values);
    else for_each_element<1>(n, values);
  }));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward(u32 type, u32 function, double a, double b, const void *x, const void *dy, void *dx, u64 n) {
  WITH_TYPE(type, WITH_FUNCTION(function, {
    const Slopes<T, F> slopes = {static_cast<const T *>(x), static_cast<const T *>(dy), static_cast<T *>(dx),
                                 Wide<T>(a), Wide<T>(b)};
    if (aligned(x) && aligned(dy) && aligned(dx)) for_each_element<LANES<T>>(n, slopes);
    else for_each_element<1>(n, slopes);
  }));
}

// Where the two halves of the row of an output are: the one that the function is applied to, and the other.
struct Halves {
  u64 activated, other;

  __device__ __forceinline__ Halves(u64 i, u64 half, u32 second) {
    const u64 first = i / half * 2 * half + i % half;
    activated = second ? first + half : first;
    other = second ? first : first + half;
  }
};

template <typename T, typename F> struct Gated {
  const T *x;
  T *y;
  u64 half;
  u32 second;
  Wide<T> a, b;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Halves at(i, half, second);
    y[i] = Number<T>::narrow(F::value(Number<T>::widen(x[at.activated]), a, b) * Number<T>::widen(x[at.other]));
  }
};

template <typename T, typename F> struct GatedSlopes {
  const T *x, *dy;
  T *dx;
  u64 half;
  u32 second;
  Wide<T> a, b;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const Halves at(i, half, second);
    const Wide<T> activated = Number<T>::widen(x[at.activated]), other = Number<T>::widen(x[at.other]),
                  gradient = Number<T>::widen(dy[i]);
    dx[at.activated] = Number<T>::narrow(F::slope(activated, a, b) * other * gradient);
    dx[at.other] = Number<T>::narrow(F::value(activated, a, b) * gradient);
  }
};

// y = f(one half) · the other half, of n outputs.
extern "C" __global__ void __launch_bounds__(THREADS)
    gate(u32 type, u32 function, double a, double b, const void *x, void *y, u64 n, u64 half, u32 second) {
  WITH_TYPE(type, WITH_GATE(function, {
    const Gated<T, F> gated = {static_cast<const T *>(x), static_cast<T *>(y), half, second, Wide<T>(a), Wide<T>(b)};
    for_each_element<1>(n, gated);
  }));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gate_backward(u32 type, u32 function, double a, double b, const void *x, const void *dy, void *dx, u64 n, u64 half,
                  u32 second) {
  WITH_TYPE(type, WITH_GATE(function, {
    const GatedSlopes<T, F> slopes = {static_cast<const T *>(x), static_cast<const T *>(dy), static_cast<T *>(dx), half,
                                      second, Wide<T>(a), Wide<T>(b)};
    for_each_element<1>(n, slopes);
  }));
}
