// Pairs of elements, turned by angles that depend on their time.
#include "elementwise.cuh"

template <typename T> struct Turn {
  const T *x;
  const Wide<T> *cos, *sin;
  T *y;
  Wide<T> sign;
  u32 half, heads, time, heads_inside, interleaved;
  u64 cos_step, sin_step;

  template <u32 N> __device__ __forceinline__ void at(u64 i) const {
    const u64 row = i / half, batch = row / (u64(heads) * time);
    const u64 angle = (heads_inside ? row / heads : row) % time * half + i % half;
    const u64 first = interleaved ? 2 * i : i + row * half, second = first + (interleaved ? 1 : half);
    const Wide<T> c = cos[batch * cos_step + angle], s = sign * sin[batch * sin_step + angle];
    const Wide<T> a = Number<T>::widen(x[first]), b = Number<T>::widen(x[second]);
    y[first] = Number<T>::narrow(a * c - b * s);
    y[second] = Number<T>::narrow(a * s + b * c);
  }
};

// The angles of a batch begin `step` elements behind those of the one before; sign is -1 to turn back. n pairs.
extern "C" __global__ void __launch_bounds__(THREADS)
    rope(u32 type, const void *x, const void *cos, const void *sin, void *y, u64 n, double sign, u32 half, u32 heads,
         u32 time, u32 heads_inside, u32 interleaved, u64 cos_step, u64 sin_step) {
  WITH_TYPE(type, {
    const Turn<T> turn = {static_cast<const T *>(x), static_cast<const Wide<T> *>(cos), static_cast<const Wide<T> *>(sin),
                          static_cast<T *>(y), Wide<T>(sign), half, heads, time, heads_inside, interleaved, cos_step,
                          sin_step};
    for_each_element<1>(n, turn);
  });
}
