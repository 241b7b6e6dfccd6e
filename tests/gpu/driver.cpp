// A stub CUDA driver, for a machine without a GPU: memory is the host's, kernels of this project run as `emulate.h` runs
// them, and those of candle, cuBLAS, cuDNN and cuRAND that the tests call are written out below in a simple way. A program
// that opens its libraries at run time does with this one what it does with NVIDIA's, up to rounding: which buffers it
// allocates, passes, exchanges and frees, and what it launches on them. `tests/gpu.sh emulated` builds it.
//
// Fresh memory is full of NaN. A write behind a buffer, a double free and a launch of an unknown kernel abort. Blocks and
// threads run in ascending and descending order alternately. EMULATED_CUDNN enables convolutions and attention by cuDNN
// (cudnn.h); without it cuDNN has no plan for any. EMULATED_GPUS is the number of GPUs, EMULATED_GPU the first one's of its
// machine, for several processes (nccl.h); with EMULATED_STUCK no event ever comes. EMULATED_TRACE names a file that gets a line for each call that would reach the device.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "kernels.inc" // all .cu files

typedef unsigned long long ull;

static const Entry entries[] = {
#include "entries.inc"
};
static std::recursive_mutex lock;
static std::map<ull, size_t> sizes;
static long launches = 0;
#define TRACE(...) do { if (trace()) { fprintf(trace(), __VA_ARGS__); fflush(trace()); } } while (0)
static FILE *trace() {
  static FILE *file = getenv("EMULATED_TRACE") ? fopen(getenv("EMULATED_TRACE"), "w") : nullptr;
  return file;
}
static int number(const char *variable, int otherwise) { return getenv(variable) ? atoi(getenv(variable)) : otherwise; }
// ---- the driver ----

extern "C" {
#define OK(name, ...) int name(__VA_ARGS__) { return 0; }
OK(cuInit, unsigned)
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetCount(int *d) { *d = number("EMULATED_GPUS", 1); return 0; }
int cuDeviceGetUuid(char *uuid, int d) { memset(uuid, 0, 16); uuid[0] = number("EMULATED_GPU", 0) + d; return 0; }
int cuDeviceGetUuid_v2(char *uuid, int d) { return cuDeviceGetUuid(uuid, d); }
int cuDevicePrimaryCtxRetain(void **c, int) { *c = (void *)16; return 0; }
OK(cuDevicePrimaryCtxRelease_v2, int)
int cuCtxGetCurrent(void **c) { *c = (void *)16; return 0; }
OK(cuCtxSetCurrent, void *)
int cuCtxSynchronize() { TRACE("wait\n"); return 0; }
int cuDeviceGetAttribute(int *v, int a, int) { *v = a == 75 ? 9 : a == 76 ? 0 : 1; return 0; }
int cuDeviceGetDefaultMemPool(void **p, int) { *p = (void *)32; return 0; }
int cuMemPoolSetAttribute(void *, int a, void *v) { return a == 4 && *(ull *)v == ~0ull ? 0 : 1; }
static int alloc(ull *p, size_t n) {
  std::lock_guard<std::recursive_mutex> g(lock);
  char *m = (char *)aligned_alloc(256, (n + 256 + 255) / 256 * 256);
  memset(m, 0xff, n); // NaN
  memset(m + n, 0xa5, 64);
  *p = (ull)m; sizes[*p] = n; return 0;
}
static int release(ull p) {
  std::lock_guard<std::recursive_mutex> g(lock);
  auto it = sizes.find(p);
  if (it == sizes.end()) { fprintf(stderr, "emulated driver: free of unknown %llx\n", p); abort(); }
  for (int i = 0; i < 64; i++) if ((unsigned char)((char *)p)[it->second + i] != 0xa5) { fprintf(stderr, "emulated driver: written behind %zu bytes\n", it->second); abort(); }
  sizes.erase(it); free((void *)p); return 0;
}
int cuMemAllocAsync(ull *p, size_t n, void *) { return alloc(p, n); }
int cuMemAlloc_v2(ull *p, size_t n) { return alloc(p, n); }
int cuMemFreeAsync(ull p, void *) { return release(p); }
int cuMemFree_v2(ull p) { return release(p); }
int cuMemcpyHtoDAsync_v2(ull d, const void *s, size_t n, void *) { TRACE("to the device %zu\n", n); memcpy((void *)d, s, n); return 0; }
int cuMemcpyDtoHAsync_v2(void *d, ull s, size_t n, void *) { TRACE("to the host %zu\n", n); memcpy(d, (void *)s, n); return 0; }
int cuMemcpyDtoDAsync_v2(ull d, ull s, size_t n, void *) { TRACE("copy %zu\n", n); memmove((void *)d, (void *)s, n); return 0; }
int cuMemsetD8Async(ull d, unsigned char v, size_t n, void *) { TRACE("set %zu\n", n); memset((void *)d, v, n); return 0; }
int cuStreamSynchronize(void *) { TRACE("wait\n"); return 0; }
OK(cuStreamWaitEvent, void *, void *, unsigned)
int cuStreamIsCapturing(void *, int *s) { *s = 0; return 0; }
OK(cuStreamDestroy_v2, void *)
int cuEventCreate(void **e, unsigned) { *e = (void *)48; return 0; }
OK(cuEventDestroy_v2, void *)
OK(cuEventRecord, void *, void *)
int cuEventSynchronize(void *) { TRACE("wait\n"); return 0; }
int cuEventQuery(void *) { return getenv("EMULATED_STUCK") ? 600 : 0; } // not ready
int cuEventElapsedTime(float *t, void *, void *) { *t = 1; return 0; }
int cuEventElapsedTime_v2(float *t, void *, void *) { *t = 1; return 0; }
int cuModuleLoadData(void **m, const void *) { *m = (void *)64; return 0; }
OK(cuModuleUnload, void *)
int cuModuleGetFunction(void **f, void *, const char *name) { *f = strdup(name); return 0; }
OK(cuFuncSetAttribute, void *, int, int)

} // extern "C"

// ---- candle's kernels ----

static size_t at(size_t i, size_t nd, const size_t *info) {
  if (!info) return i;
  size_t s = 0;
  for (size_t d = nd; d-- > 0;) { s += i % info[d] * info[nd + d]; i /= info[d]; }
  return s;
}
static int code_of(const std::string &s) { return s == "f32" ? 0 : s == "f64" ? 1 : s == "f16" ? 2 : s == "bf16" ? 3 : s == "u8" ? 10 : s == "u32" ? 11 : s == "i64" ? 12 : -1; }
static double get(const void *p, int t, size_t i) {
  if (t == 10) return ((const unsigned char *)p)[i];
  if (t == 11) return ((const unsigned *)p)[i];
  if (t == 12) return ((const long long *)p)[i];
  return read(p, t, i);
}
static void put(void *p, int t, size_t i, double x) {
  if (t == 10) ((unsigned char *)p)[i] = x;
  else if (t == 11) ((unsigned *)p)[i] = x;
  else if (t == 12) ((long long *)p)[i] = x;
  else write(p, t, i, x);
}
// The largest id of a type: a row of zeros, which gets no gradient.
static bool no_row(int t, double id) { return id == (t == 10 ? 255. : t == 11 ? 4294967295. : 9223372036854775807.); }
#define P(T, k) (*(T *)a[k])
static int stock(const char *full, void **a) {
  std::string n = full;
  size_t u = n.rfind('_');
  std::string op = n.substr(0, u);
  int t = code_of(n.substr(u + 1));
  if (t < 0) return 1;
  size_t numel = P(size_t, 0), nd = P(size_t, 1);
  if (op.substr(0, 5) == "cast_") {
    int s = code_of(op.substr(5));
    for (size_t i = 0; i < numel; i++) put(P(void *, 4), t, i, get(P(void *, 3), s, at(i, nd, P(size_t *, 2))));
    return 0;
  }
  const std::map<std::string, double (*)(double, double)> binary = {
      {"badd", [](double x, double y) { return x + y; }}, {"bsub", [](double x, double y) { return x - y; }},
      {"bmul", [](double x, double y) { return x * y; }}, {"bdiv", [](double x, double y) { return x / y; }},
      {"bmaximum", [](double x, double y) { return x > y ? x : y; }}, {"bminimum", [](double x, double y) { return x < y ? x : y; }}};
  const std::map<std::string, double (*)(double, double)> compare = {
      {"eq", [](double x, double y) { return double(x == y); }}, {"ne", [](double x, double y) { return double(x != y); }},
      {"ge", [](double x, double y) { return double(x >= y); }}, {"gt", [](double x, double y) { return double(x > y); }},
      {"le", [](double x, double y) { return double(x <= y); }}, {"lt", [](double x, double y) { return double(x < y); }}};
  if (binary.count(op) || compare.count(op)) {
    size_t *info = P(size_t *, 2);
    for (size_t i = 0; i < numel; i++) {
      size_t l = i, r = i;
      if (info) {
        l = r = 0;
        size_t k = i;
        for (size_t d = nd; d-- > 0;) { l += k % info[d] * info[nd + d]; r += k % info[d] * info[2 * nd + d]; k /= info[d]; }
      }
      double x = get(P(void *, 3), t, l), y = get(P(void *, 4), t, r);
      if (binary.count(op)) put(P(void *, 5), t, i, binary.at(op)(x, y));
      else put(P(void *, 5), 10, i, compare.at(op)(x, y));
    }
    return 0;
  }
  const std::map<std::string, double (*)(double)> unary = {
      {"ucopy", [](double x) { return x; }}, {"uneg", [](double x) { return -x; }}, {"usqr", [](double x) { return x * x; }},
      {"usqrt", [](double x) { return std::sqrt(x); }}, {"uexp", [](double x) { return std::exp(x); }}, {"ulog", [](double x) { return std::log(x); }},
      {"utanh", [](double x) { return std::tanh(x); }}, {"usin", [](double x) { return std::sin(x); }}, {"ucos", [](double x) { return std::cos(x); }},
      {"uabs", [](double x) { return std::fabs(x); }}, {"uround", [](double x) { return std::round(x); }}, {"urelu", [](double x) { return x > 0 ? x : 0; }},
      {"urecip", [](double x) { return 1 / x; }}, {"usign", [](double x) { return double((x > 0) - (x < 0)); }},
      {"uerf", [](double x) { return std::erf(x); }}, {"usigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }},
      {"usilu", [](double x) { return x / (1 + std::exp(-x)); }}, {"ugelu_erf", [](double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2.))); }},
      {"ugelu", [](double x) { return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }}};
  if (unary.count(op)) {
    const void *in = P(void *, 3) ? P(void *, 3) : P(void *, 4);
    for (size_t i = 0; i < numel; i++) put(P(void *, 4), t, i, unary.at(op)(get(in, t, at(i, nd, P(size_t *, 2)))));
    return 0;
  }
  if (op.substr(0, 7) == "gather_") {
    int it = code_of(op.substr(7)); size_t sd = P(size_t, 5), id = P(size_t, 6), right = P(size_t, 7);
    for (size_t i = 0; i < numel; i++) {
      double row = get(P(void *, 1), it, i);
      put(P(void *, 3), t, i, no_row(it, row) ? 0 : get(P(void *, 2), t, (i / (right * id) * sd + size_t(row)) * right + i % right));
    }
    return 0;
  }
  if (op.substr(0, 3) == "is_") {
    int it = code_of(op.substr(3)); size_t sd = P(size_t, 7), id = P(size_t, 8), right = P(size_t, 9);
    for (size_t i = 0; i < numel; i++) {
      double row = get(P(void *, 3), it, i / right % id);
      put(P(void *, 5), t, i, no_row(it, row) ? 0 : get(P(void *, 4), t, (i / (id * right) * sd + size_t(row)) * right + i % right));
    }
    return 0;
  }
  if (op.substr(0, 3) == "ia_") {
    int it = code_of(op.substr(3)); size_t id = P(size_t, 1), left = P(size_t, 4), dd = P(size_t, 6), right = P(size_t, 7);
    for (size_t i = 0; i < left * right; i++) for (size_t j = 0; j < id; j++) {
      if (no_row(it, get(P(void *, 0), it, j))) continue;
      size_t si = (i / right * id + j) * right + i % right, di = (i / right * dd + size_t(get(P(void *, 0), it, j))) * right + i % right;
      put(P(void *, 3), t, di, get(P(void *, 3), t, di) + get(P(void *, 2), t, si));
    }
    return 0;
  }
  if (op.substr(0, 3) == "sa_") {
    int it = code_of(op.substr(3)); size_t left = P(size_t, 3), sd = P(size_t, 4), dd = P(size_t, 5), right = P(size_t, 6);
    for (size_t i = 0; i < left * right; i++) for (size_t j = 0; j < sd; j++) {
      size_t si = (i / right * sd + j) * right + i % right, di = (i / right * dd + size_t(get(P(void *, 0), it, si))) * right + i % right;
      put(P(void *, 2), t, di, get(P(void *, 2), t, di) + get(P(void *, 1), t, si));
    }
    return 0;
  }
  if (op.substr(0, 6) == "where_") {
    size_t *info = P(size_t *, 2); int ct = code_of(op.substr(6));
    for (size_t i = 0; i < numel; i++) {
      size_t o[3] = {i, i, i};
      if (info) { for (int q = 0; q < 3; q++) { size_t k = i; o[q] = 0; for (size_t d = nd; d-- > 0;) { o[q] += k % info[d] * info[(1 + q) * nd + d]; k /= info[d]; } } }
      put(P(void *, 6), t, i, get(P(void *, 3), ct, o[0]) != 0 ? get(P(void *, 4), t, o[1]) : get(P(void *, 5), t, o[2]));
    }
    return 0;
  }
  if (op == "upowf" || op == "uelu") {
    const void *in = P(void *, 4) ? P(void *, 4) : P(void *, 5); double e = get(a[3], t, 0);
    for (size_t i = 0; i < numel; i++) {
      double x = get(in, t, at(i, nd, P(size_t *, 2)));
      put(P(void *, 5), t, i, op == "upowf" ? std::pow(x, e) : x > 0 ? x : e * (std::exp(x) - 1));
    }
    return 0;
  }
  if (op == "affine") {
    const void *in = P(void *, 3) ? P(void *, 3) : P(void *, 4);
    double m = get(a[5], t, 0), b = get(a[6], t, 0);
    for (size_t i = 0; i < numel; i++) put(P(void *, 4), t, i, get(in, t, at(i, nd, P(size_t *, 2))) * m + b);
    return 0;
  }
  if (op == "const_set") {
    double v = get(a[3], t, 0);
    for (size_t i = 0; i < numel; i++) put(P(void *, 4), t, at(i, nd, P(size_t *, 2)), v);
    return 0;
  }
  if (op == "copy2d") {
    for (unsigned i = 0; i < P(unsigned, 2); i++) for (unsigned j = 0; j < P(unsigned, 3); j++)
      put(P(void *, 1), t, size_t(i) * P(unsigned, 5) + j, get(P(void *, 0), t, size_t(i) * P(unsigned, 4) + j));
    return 0;
  }
  return 2;
}
static int reduce(const std::string &op, int t, unsigned blocks, void **a) {
  size_t n = P(size_t, 0), per = P(size_t, 1), nd = P(size_t, 2);
  size_t outs = op == "fast_sum_small" ? n : blocks;
  bool is_index = op == "fast_argmax", largest = is_index || op == "fast_max";
  for (size_t o = 0; o < outs; o++) {
    double s = largest ? -INFINITY : 0;
    size_t where = 0;
    for (size_t k = 0; k < per; k++) {
      size_t i = o * per + k;
      if (op != "fast_sum_small" && i >= n) break;
      double x = get(P(void *, 4), t, at(i, nd, P(size_t *, 3)));
      if (x > s) where = k;
      s = largest ? (x > s ? x : s) : s + x;
    }
    if (is_index) put(P(void *, 5), 11, o, where);
    else put(P(void *, 5), t, o, s);
  }
  return 0;
}
// ---- launches ----

extern "C" {
int cuLaunchKernel(const char *name, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned, unsigned, unsigned, void *, void **args, void **) {
  std::lock_guard<std::recursive_mutex> g(lock);
  if (gx == 0 || gy == 0 || gz == 0 || bx == 0) { fprintf(stderr, "emulated driver: no blocks for %s\n", name); abort(); }
  launches++;
  TRACE("%s on %u\n", name, gx);
  std::string n = name;
  const Entry *ours = nullptr;
  for (auto &e : entries) if (n == e.name) ours = &e;
  if (ours) {
    int rc = bx == THREADS && gy == 1 && gz == 1 && gx > 0 ? launch(entries, sizeof entries / sizeof *entries, name, gx, args, ours->count, launches % 2) : 9;
    if (rc) { fprintf(stderr, "emulated driver: %s gives %d\n", name, rc); abort(); }
    return 0;
  }
  size_t u = n.rfind('_');
  std::string op = n.substr(0, u);
  int rc = op == "fast_sum" || op == "fast_max" || op == "fast_argmax" || op == "fast_sum_small" ? reduce(op, code_of(n.substr(u + 1)), gx, args) : stock(name, args);
  if (rc) { fprintf(stderr, "emulated driver: no kernel %s\n", name); abort(); }
  return 0;
}
// ---- cuBLAS ----

int cublasCreate_v2(void **h) { *h = (void *)80; return 0; }
OK(cublasDestroy_v2, void *)
OK(cublasSetStream_v2, void *, void *)
static int cuda_type(int t) { return t == 0 ? 0 : t == 1 ? 1 : t == 2 ? 2 : t == 14 ? 3 : -1; }
static void gemm(int ta, int tb, int m, int n, int k, double al, const void *A, int At, long lda, long sa, const void *B, int Bt, long ldb, long sb, double be, void *C, int Ct, long ldc, long sc, int batch) {
  for (long b = 0; b < batch; b++) for (long j = 0; j < n; j++) for (long i = 0; i < m; i++) {
    double s = 0;
    for (long l = 0; l < k; l++) s += read(A, At, b * sa + (ta ? l + i * lda : i + l * lda)) * read(B, Bt, b * sb + (tb ? j + l * ldb : l + j * ldb));
    write(C, Ct, b * sc + i + j * ldc, al * s + (be ? be * read(C, Ct, b * sc + i + j * ldc) : 0));
  }
}
int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *al, const void *A, int At, int lda, long long sa, const void *B, int Bt, int ldb, long long sb, const void *be, void *C, int Ct, int ldc, long long sc, int batch, int compute, int) {
  bool f64 = compute == 70, f16c = compute == 64;
  double alpha = f64 ? *(double *)al : f16c ? read(al, 2, 0) : *(float *)al, beta = f64 ? *(double *)be : f16c ? read(be, 2, 0) : *(float *)be;
  gemm(ta, tb, m, n, k, alpha, A, cuda_type(At), lda, sa, B, cuda_type(Bt), ldb, sb, beta, C, cuda_type(Ct), ldc, sc, batch);
  return 0;
}
int cublasDgemmStridedBatched(void *, int ta, int tb, int m, int n, int k, const double *al, const void *A, int lda, long long sa, const void *B, int ldb, long long sb, const double *be, void *C, int ldc, long long sc, int batch) {
  gemm(ta, tb, m, n, k, *al, A, 1, lda, sa, B, 1, ldb, sb, *be, C, 1, ldc, sc, batch);
  return 0;
}
// ---- cuRAND ----

int curandCreateGenerator(void **g, int) { *g = (void *)96; return 0; }
OK(curandSetStream, void *, void *)
OK(curandSetPseudoRandomGeneratorSeed, void *, ull)
OK(curandDestroyGenerator, void *)
static float next() { static unsigned x = 1; x = x * 1664525u + 1013904223u; return (x >> 8) / 16777216.f; }
int curandGenerateNormal(void *, float *p, size_t n, float m, float d) { for (size_t i = 0; i < n; i++) p[i] = m + d * (next() * 2 - 1); return 0; }
int curandGenerateNormalDouble(void *, double *p, size_t n, double m, double d) { for (size_t i = 0; i < n; i++) p[i] = m + d * (next() * 2 - 1); return 0; }
int curandGenerateUniform(void *, float *p, size_t n) { for (size_t i = 0; i < n; i++) p[i] = next(); return 0; }
int curandGenerateUniformDouble(void *, double *p, size_t n) { for (size_t i = 0; i < n; i++) p[i] = next(); return 0; }
// ---- cuDNN ----

#include "cudnn.h"
}
// ---- NCCL ----

#include "nccl.h"
