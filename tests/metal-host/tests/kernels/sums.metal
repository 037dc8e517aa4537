// Sums of rows: one threadgroup a row, its simdgroups combined in threadgroup memory.
#include <metal_stdlib>
using namespace metal;

struct Shape {
  uint rows;
  uint cols;
};

constant bool SQUARED [[function_constant(0)]];
constant bool WEIGHTED [[function_constant(1)]];
constant float SCALE [[function_constant(2)]];
constant float FACTOR = is_function_constant_defined(SCALE) ? SCALE : 1.0;

template <typename T>
METAL_FUNC float term(T x) {
  return SQUARED ? float(x) * float(x) : float(x);
}

template <typename T, ushort SIMDGROUPS>
[[kernel]] void row_sum(device const T* x [[buffer(0)]],
                        constant Shape& shape [[buffer(1)]],
                        device float* out [[buffer(2)]],
                        device const float* weights [[buffer(3), function_constant(WEIGHTED)]],
                        uint row [[threadgroup_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]],
                        ushort lane [[thread_index_in_simdgroup]],
                        ushort simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[SIMDGROUPS];
  float sum = 0.0f;
  for (uint i = thread_index; i < shape.cols; i += 32 * SIMDGROUPS) {
    sum += term(x[ulong(row) * shape.cols + i]) * (WEIGHTED ? weights[i] : 1.0f);
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    parts[simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index == 0) {
    float total = 0.0f;
    for (ushort i = 0; i < SIMDGROUPS; i++) {
      total += parts[i];
    }
    out[row] = total * FACTOR;
  }
}

#define ROW_SUM(name, T, n) template [[host_name(name)]] [[kernel]] decltype(row_sum<T, n>) row_sum<T, n>;
ROW_SUM("row_sum_float", float, 2)
ROW_SUM("row_sum_half", half, 4)
