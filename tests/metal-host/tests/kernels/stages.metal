// One threadgroup turns a block of 64 values around, in stages that each can go wrong in their own way.
#include <metal_stdlib>
using namespace metal;

struct Shape {
  uint count;
};

constant bool BIASED [[function_constant(0)]];

kernel void turned(device const float* x [[buffer(0)]],
                   constant Shape& shape [[buffer(1)]],
                   device float* out [[buffer(2)]],
                   device atomic_uint* finished [[buffer(3)]],
                   device const uchar* bytes [[buffer(4)]],
                   device const float* bias [[buffer(5), function_constant(BIASED)]],
                   threadgroup float* tile [[threadgroup(0)]],
                   uint group [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   ushort lane [[thread_index_in_simdgroup]],
                   ushort simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tops[2];
  threadgroup float lines[2][32];
  const uint place = group * 64 + index;
  const bool inside = place < shape.count;

  // Into threadgroup memory, and out the other way round.
  tile[index] = inside ? x[place] : 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float value = tile[63 - index];

  // The largest of the block, by simdgroup.
  float top = simd_max(value);
  if (lane == 0) {
    tops[simdgroup] = top;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  top = max(tops[0], tops[1]);

  // A neighbour's value, through the simdgroup's line.
  lines[simdgroup][lane] = value;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const float neighbour = lines[simdgroup][lane ^ 1];

  // Two bytes at a time, which lie at even places.
  const ushort code = *(device const ushort*)(bytes + 2 * index);
  float parts[4];
  for (ushort i = 0; i < 4; i++) {
    parts[i] = float((code >> (4 * i)) & 15);
  }
  const float extra = parts[0] + parts[1] + parts[2] + parts[3] + (BIASED ? bias[index] : 0.0f);
  if (inside) {
    out[place] = value + neighbour + top + extra;
  }
  if (index == 0) {
    atomic_fetch_add_explicit(finished, 1u, memory_order_relaxed);
  }
}
