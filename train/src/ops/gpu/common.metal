// Compiled in front of every kernel of the trainer: sums and maxima over a threadgroup, half precision.
//
// A threadgroup is a whole number of simdgroups of 32. `shared` has one float for each simdgroup, at most 32. Results are the
// same in every thread and don't depend on the order in which threads run: simdgroups are joined in their order.

#include <metal_stdlib>
using namespace metal;

// a·b + c is rounded twice, as on the CPU: values on a grid are the same bits on both.
#pragma METAL fp contract(off)

// Where a thread stands: what every kernel with one threadgroup for a row is told.
struct Place {
  uint thread_index;
  uint threads;
  uint lane;
  uint simdgroup;
  uint simdgroups;
};

inline float group_sum(float value, threadgroup float* shared, Place at) {
  value = simd_sum(value);
  if (at.lane == 0) shared[at.simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint i = 0; i < at.simdgroups; i++) total += shared[i];
  // The next reduction writes where this one was read.
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return total;
}

inline float group_max(float value, threadgroup float* shared, Place at) {
  value = simd_max(value);
  if (at.lane == 0) shared[at.simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float top = shared[0];
  for (uint i = 1; i < at.simdgroups; i++) top = shared[i] > top ? shared[i] : top;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return top;
}

// Largest value and the sum of exp((x − top)·sharpness) over the numbers x seen so far. Finite from the start, so that no
// thread without a number of its own brings in an infinity.
struct Softmax {
  float top;
  float total;
};

inline Softmax softmax_begin() { return Softmax{-3.0e38f, 0.0f}; }

inline Softmax softmax_add(Softmax s, float x, float sharpness) {
  if (x > s.top) {
    s.total = s.total * precise::exp((s.top - x) * sharpness) + 1.0f;
    s.top = x;
  } else {
    // A NaN lands here and makes the total NaN: that is how a diverged run is noticed.
    s.total += precise::exp((x - s.top) * sharpness);
  }
  return s;
}

inline Softmax group_softmax(Softmax s, float sharpness, threadgroup float* shared, Place at) {
  float top = group_max(s.top, shared, at);
  return Softmax{top, group_sum(s.total * precise::exp((s.top - top) * sharpness), shared, at)};
}

// The nearest f16, ties to even, saturating at 65504.
inline float as_f16(float v) {
  uint sign = as_type<uint>(v) & 0x80000000u;
  float magnitude = fabs(v);
  magnitude = magnitude > 65504.0f ? 65504.0f : magnitude;
  uint bits = as_type<uint>(magnitude);
  if (bits >= 0x38800000u) {
    bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  } else {
    // Below 2⁻¹⁴ numbers stand 2⁻²⁴ apart; scaling by a power of two is exact.
    bits = as_type<uint>(rint(magnitude * 16777216.0f) * 5.9604644775390625e-8f);
  }
  return as_type<float>(bits | sign);
}
