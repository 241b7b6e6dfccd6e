// Enough of CUDA for a C++ compiler to run the kernels on a machine without a GPU. Included before the kernels.
//
// The threads of a block are fibers that run one after the other from barrier to barrier, in ascending or descending
// order: if the result depends on the order a barrier is missing. Shared memory is static, because blocks run one by
// one.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#include "shared.h"

#define EMULATED
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, gridDim;

using std::isfinite;
using std::max;
using std::min;

template <typename To, typename From> To as(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned x) { return as<float>(x); }
inline unsigned __float_as_uint(float x) { return as<unsigned>(x); }
inline long long __double_as_longlong(double x) { return as<long long>(x); }
inline double __longlong_as_double(unsigned long long x) { return as<double>(x); }

// f16 by the compiler's type.
inline float f16_to_float(unsigned short bits) { return as<_Float16>(bits); }
inline unsigned short float_to_f16(float x) { return as<unsigned short>(_Float16(x)); }

// A fiber starts with its own context, which takes system calls, and continues by jumps, which take none. At the end of
// a block it waits for the next one.
namespace fibers {
constexpr unsigned COUNT = THREADS, STACK = 1 << 16;
static jmp_buf scheduler, fiber[COUNT];
static ucontext_t unused;
static bool begun[COUNT], done[COUNT];
static unsigned current;
static void (*body)(void *);
static void *argument;

static void wait() {
  if (_setjmp(fiber[current]) == 0) _longjmp(scheduler, 1);
}

static void entry() {
  for (;;) {
    body(argument);
    done[current] = true;
    wait();
  }
}

static void resume() {
  static std::vector<char> stacks(size_t(COUNT) * STACK);
  if (_setjmp(scheduler) != 0) return;
  if (begun[current]) _longjmp(fiber[current], 1);
  begun[current] = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks.data() + size_t(current) * STACK;
  context.uc_stack.ss_size = STACK;
  makecontext(&context, entry, 0);
  swapcontext(&unused, &context);
}

// Runs one block. Returns false if some threads ended while others wait at a barrier.
static bool run(void (*f)(void *), void *with, bool descending) {
  body = f;
  argument = with;
  for (unsigned i = 0; i < COUNT; i++) done[i] = false;
  for (;;) {
    unsigned ended = 0;
    for (unsigned i = 0; i < COUNT; i++) {
      current = descending ? COUNT - 1 - i : i;
      threadIdx.x = current;
      resume();
      ended += done[current];
    }
    if (ended == COUNT) return true;
    if (ended > 0) {
      for (unsigned i = 0; i < COUNT; i++) begun[i] = false;
      return false;
    }
  }
}
} // namespace fibers

inline void __syncthreads() { fibers::wait(); }

// Calls a kernel with pointers to its arguments, as the driver does.
template <typename... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A> *>(arguments[I])...);
}

template <auto Kernel> struct Call;
template <typename... A, void (*Kernel)(A...)> struct Call<Kernel> {
  static constexpr unsigned count = sizeof...(A), sizes[] = {sizeof(A)...};
  static void with(void *arguments) { call(Kernel, static_cast<void **>(arguments), std::index_sequence_for<A...>()); }
};

struct Entry {
  const char *name;
  unsigned count;
  void (*call)(void *);
  // Of the arguments; null: they are not checked.
  const unsigned *sizes = nullptr;
};

// Returns 0 on success, 1 for an unknown kernel, 2 for a wrong number of arguments, 3 if threads ended while others
// wait at a barrier, 4 for an argument of a wrong size.
inline int launch(const Entry *entries, size_t n, const char *name, unsigned blocks, void **arguments, unsigned count,
                  int descending, const unsigned *sizes = nullptr) {
  for (size_t i = 0; i < n; i++) {
    if (strcmp(entries[i].name, name) != 0) continue;
    if (entries[i].count != count) return 2;
    if (sizes && entries[i].sizes && memcmp(entries[i].sizes, sizes, count * sizeof *sizes) != 0) return 4;
    gridDim.x = blocks;
    for (unsigned block = 0; block < blocks; block++) {
      blockIdx.x = descending ? blocks - 1 - block : block;
      if (!fibers::run(entries[i].call, arguments, descending)) return 3;
    }
    return 0;
  }
  return 1;
}
