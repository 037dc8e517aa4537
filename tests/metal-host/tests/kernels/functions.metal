// What the headers give, one small kernel for each family.
#include <metal_stdlib>
using namespace metal;

// Values of one thread, as words.
kernel void scalars(device uint* out [[buffer(0)]], device const float* in [[buffer(1)]]) {
  const half4 h = half4(float4(in[0], in[1], in[2], in[3]));
  packed_float3 p = packed_float3(float3(h.zyx));
  uint i = 0;
  out[i++] = as_type<uint>(float(h.x + h.y * h.z));
  out[i++] = as_type<uint>(dot(float4(h), float4(1, 2, 3, 4)));
  out[i++] = as_type<uint>(p.x * 100 + p[1] * 10 + p.z);
  float4 v = float4(0);
  v.xz = float2(5, 6);
  v.w += v.zx.y;
  out[i++] = as_type<uint>(v.x * 1000 + v.y * 100 + v.z * 10 + v.w);
  const uchar4 bytes = as_type<uchar4>(0x80402010u);
  const char4 code = char4(bytes & uchar4(0xf0)) - char4(1);
  out[i++] = as_type<uint>(code);
  out[i++] = uint(any(bytes > uchar4(100))) * 2 + uint(all(bytes > uchar4(16)));
  out[i++] = popcount(0xf0fu) + clz(1u) * 100 + ctz(8u) * 10000;
  out[i++] = extract_bits(0xabcdu, 4u, 8u);
  out[i++] = uint(max(-3, 2)) + uint(min(7u, 9u)) * 10 + clamp(50u, 1u, 9u) * 100;
  out[i++] = as_type<uint>(precise::divide(1.0f, 3.0f));
  out[i++] = as_type<uint>(rint(2.5f) + rint(3.5f) * 10 + round(-2.5f) * 100);
  out[i++] = as_type<uint>(fma(in[4], in[4], -1.0f));
  out[i++] = as_type<uint>(in[5] * 0.5f);  // denormal: nothing
  out[i++] = uint(as_type<ushort>(half(65520.0f)));
  out[i++] = uint(as_type<ushort>(0.1h));
  out[i++] = uint(sizeof(float3)) * 10000 + uint(sizeof(packed_float3)) * 100 + uint(alignof(half4));
  out[i++] = uint(int8_t(-1) < 0) + select(20u, 10u, true);
  out[i++] = as_type<uint>(exp2(10.0f) + saturate(3.0f) + fract(2.25f));
}

// What the lanes of a simdgroup say to each other.
kernel void lanes(device uint* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]], uint index [[thread_index_in_threadgroup]],
                  uint quad [[thread_index_in_quadgroup]]) {
  const uint all[] = {
      simd_sum(lane),
      simd_max(lane ^ 5),
      uint(simd_min(int(lane) - 7)),
      simd_prefix_exclusive_sum(lane),
      simd_prefix_inclusive_sum(1u),
      simd_shuffle(lane, 31 - lane),
      simd_shuffle_xor(lane, 8),
      simd_broadcast(lane, 9),
      simd_broadcast_first(lane + 3),
      lane < 16 ? 0 : 1,
      uint(uint64_t(simd_ballot(lane % 3 == 0))),
      quad_sum(lane),
      quad_shuffle_xor(lane, 1),
      quad_broadcast(lane, 2),
      simd_shuffle_and_fill_down(lane, 100 + lane, 4),
      uint(simd_any(lane == 40)) + uint(simd_all(lane < 40)) * 2,
      simd_or(1u << lane),
      quad,
  };
  const uint down = simd_shuffle_down(lane, 2), up = simd_shuffle_up(lane, 1);
  for (uint i = 0; i < 18; i++) out[index * 20 + i] = all[i];
  out[index * 20 + 18] = lane < 30 ? down : 0;
  out[index * 20 + 19] = lane > 0 ? up : 0;
}

// c = a·b + c for 8 × 8 matrices, one of them transposed, in both precisions.
template <typename T>
[[kernel]] void product(device const T* a [[buffer(0)]], device const T* b [[buffer(1)]], device float* c [[buffer(2)]]) {
  simdgroup_matrix<T, 8, 8> left, right;
  simdgroup_float8x8 sum;
  simdgroup_load(left, a, 8);
  simdgroup_load(right, b, 10, ulong2(1, 0), true);
  simdgroup_load(sum, c);
  simdgroup_multiply_accumulate(sum, left, right, sum);
  simdgroup_store(sum, c, 8);
}
template [[host_name("product_float")]] [[kernel]] decltype(product<float>) product<float>;
template [[host_name("product_half")]] [[kernel]] decltype(product<half>) product<half>;

// Counters of all threads, in device and in threadgroup memory.
kernel void counters(device atomic_uint* counts [[buffer(0)]], device atomic_float* sum [[buffer(1)]], uint place [[thread_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]]) {
  threadgroup atomic_int local;
  if (index == 0) atomic_store_explicit(&local, 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&local, int(index), memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index == 0) {
    atomic_fetch_add_explicit(&counts[0], uint(atomic_load_explicit(&local, memory_order_relaxed)), memory_order_relaxed);
  }
  atomic_fetch_max_explicit(&counts[1], place, memory_order_relaxed);
  atomic_fetch_min_explicit(&counts[2], place, memory_order_relaxed);
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
  uint seen = atomic_load_explicit(&counts[3], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&counts[3], &seen, seen + 2, memory_order_relaxed, memory_order_relaxed)) {
  }
}

// Where each thread is, in a grid that its threadgroups don't divide.
kernel void places(device uint* out [[buffer(0)]], uint2 place [[thread_position_in_grid]], uint2 extent [[threads_per_grid]],
                   ushort2 within [[thread_position_in_threadgroup]], uint2 size [[threads_per_threadgroup]],
                   uint2 full [[dispatch_threads_per_threadgroup]], uint index [[thread_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup uint total;
  if (index == 0) total = size.x * size.y;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint lanes = simd_sum(1u);
  device uint* mine = out + 6 * (place.y * extent.x + place.x);
  mine[0] = within.y * size.x + within.x == index;
  mine[1] = total;
  mine[2] = full.x * full.y;
  mine[3] = simdgroups;
  mine[4] = lanes;
  mine[5] = lane;
}
