// The cells of LSTM and GRU, at one step: one thread for each. Rows of a sequence have `hidden` cells, or gates times as many.
#include "device.cuh"

template <typename W> __device__ __forceinline__ W gate_sigmoid(W x) { return 1 / (1 + exp_of(-x)); }
template <typename W> __device__ __forceinline__ W gate_tanh(W x) { return 1 - 2 / (1 + exp_of(2 * x)); }

// One of the gates of a cell.
template <typename T> struct Gate {
  T *row;
  u32 hidden, k;

  __device__ Gate(const void *all, u32 gates, u64 i, u32 hidden)
      : row(static_cast<T *>(const_cast<void *>(all)) + i / hidden * gates * hidden), hidden(hidden), k(i % hidden) {}
  __device__ Wide<T> get(u32 gate) const { return Number<T>::widen(row[gate * hidden + k]); }
  __device__ Wide<T> set(u32 gate, Wide<T> x) const {
    row[gate * hidden + k] = Number<T>::narrow(x);
    return get(gate);
  }
};

// One element, or 0 where there are none.
template <typename T> __device__ __forceinline__ Wide<T> element(const void *from, u64 i) {
  return from ? Number<T>::widen(static_cast<const T *>(from)[i]) : 0;
}

// c = f c' + i g, h = o tanh(c). h is written twice: into the result, and for the next product.
extern "C" __global__ void __launch_bounds__(THREADS)
    lstm_cell(u32 type, u32 hidden, const void *from_x, const void *from_h, u32 bias_type, const void *bias,
              const void *before, u64 n, void *kept, void *c, void *h, void *again) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const Gate<T> x(from_x, 4, i, hidden), y(from_h, 4, i, hidden), gates(kept, 4, i, hidden);
    Wide<T> sums[4];
    for (u32 gate = 0; gate < 4; gate++) {
      const u32 at = gate * hidden + u32(i % hidden);
      sums[gate] = x.get(gate) + y.get(gate) + Wide<T>(bias ? read(bias, bias_type, at) : 0);
    }
    const Wide<T> in = gates.set(0, gate_sigmoid(sums[0])), forget = gates.set(1, gate_sigmoid(sums[1]));
    const Wide<T> cell = gates.set(2, gate_tanh(sums[2])), out = gates.set(3, gate_sigmoid(sums[3]));
    const Wide<T> next = forget * element<T>(before, i) + in * cell;
    static_cast<T *>(c)[i] = Number<T>::narrow(next);
    static_cast<T *>(h)[i] = static_cast<T *>(again)[i] = Number<T>::narrow(out * gate_tanh(next));
  });
}

// The gradients of the gates, before their functions, and of c', which replaces that of c in `carry`. Without `dh`, that of h
// from the step behind, there is none, and nothing to carry.
extern "C" __global__ void __launch_bounds__(THREADS)
    lstm_cell_backward(u32 type, u32 hidden, const void *kept, const void *c, const void *before, const void *dy,
                       const void *dy_c, const void *dh, u64 n, void *carry, void *d_gates) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const Gate<T> gates(kept, 4, i, hidden), back(d_gates, 4, i, hidden);
    const Wide<T> in = gates.get(0), forget = gates.get(1), cell = gates.get(2), out = gates.get(3);
    const Wide<T> d = element<T>(dy, i) + element<T>(dh, i), t = gate_tanh(element<T>(c, i));
    const Wide<T> d_c = element<T>(dy_c, i) + element<T>(dh ? carry : nullptr, i) + d * out * (1 - t * t);
    back.set(0, d_c * cell * in * (1 - in));
    back.set(1, d_c * element<T>(before, i) * forget * (1 - forget));
    back.set(2, d_c * in * (1 - cell * cell));
    back.set(3, d * t * out * (1 - out));
    static_cast<T *>(carry)[i] = Number<T>::narrow(d_c * forget);
  });
}

// h = z h' + (1 - z) n, where n = tanh(x + r y). Kept are r, z, n and y.
extern "C" __global__ void __launch_bounds__(THREADS)
    gru_cell(u32 type, u32 hidden, const void *from_x, const void *from_h, u32 bias_type, const void *bias,
             const void *before, u64 n, void *kept, void *h, void *again) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const Gate<T> x(from_x, 3, i, hidden), y(from_h, 3, i, hidden), gates(kept, 4, i, hidden);
    Wide<T> inner[3];
    for (u32 gate = 0; gate < 3; gate++) {
      const u32 at = gate * hidden + u32(i % hidden);
      inner[gate] = y.get(gate) + Wide<T>(bias ? read(bias, bias_type, at) : 0);
    }
    const Wide<T> r = gates.set(0, gate_sigmoid(x.get(0) + inner[0])), z = gates.set(1, gate_sigmoid(x.get(1) + inner[1]));
    const Wide<T> kept_inner = gates.set(3, inner[2]), fresh = gates.set(2, gate_tanh(x.get(2) + r * kept_inner));
    const T next = Number<T>::narrow(z * element<T>(before, i) + (1 - z) * fresh);
    static_cast<T *>(h)[i] = static_cast<T *>(again)[i] = next;
  });
}

// As for the LSTM; `carry` is the share of h' in h.
extern "C" __global__ void __launch_bounds__(THREADS)
    gru_cell_backward(u32 type, u32 hidden, const void *kept, const void *before, const void *dy, const void *dh, u64 n,
                      void *carry, void *d_from_x, void *d_from_h) {
  const u64 i = u64(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= n) return;
  WITH_TYPE(type, {
    const Gate<T> gates(kept, 4, i, hidden), x(d_from_x, 3, i, hidden), y(d_from_h, 3, i, hidden);
    const Wide<T> r = gates.get(0), z = gates.get(1), fresh = gates.get(2), inner = gates.get(3);
    const Wide<T> d = element<T>(dy, i) + element<T>(dh, i) + element<T>(dh ? carry : nullptr, i);
    const Wide<T> dn = d * (1 - z) * (1 - fresh * fresh);
    const Wide<T> dr = x.set(0, dn * inner * r * (1 - r));
    const Wide<T> dz = x.set(1, d * (element<T>(before, i) - fresh) * z * (1 - z));
    x.set(2, dn);
    y.set(0, dr);
    y.set(1, dz);
    y.set(2, dn * r);
    static_cast<T *>(carry)[i] = Number<T>::narrow(d * z);
  });
}
