// Random numbers that are functions of a seed and an index.
#pragma once
#include "device.cuh"

// The finalizer of SplitMix64, as in core/rng.rs.
__device__ __forceinline__ u64 splitmix64(u64 x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Whether dropout keeps the element whose index has been added to the seed.
__device__ __forceinline__ bool is_kept(u64 seed, float drop) { return float(splitmix64(seed) >> 40) / 16777216.f >= drop; }
