// Scales and biases of groups, rounded to the type in which they are stored: the runtimes' own rules (qat_quant's
// `ScaleRule::Absmax`), and the rounding of learned ones. The numbers are those of qat_quant, to the bit.
//
// Sums of magnitudes are exact integers of 64 bits below a common exponent, because there is no f64 here. What is cut off
// lies 2⁻⁵⁶ below the largest magnitude.

struct Shape {
  // Weights of a group: a multiple of 32, or the whole tensor.
  uint group;
  // Groups; of learned scales: numbers to round.
  uint groups;
  // Whether the storage type is bf16 rather than f16.
  uint bf16;
  // Which rule where there is no bias: 0 int4 (the peak on code −8), 1 int8 (the peak on code 127), 2 ternary.
  uint rule;
  // Affine: steps between the outermost codes.
  float steps;
  // Ternary with one scale for the tensor: partial totals, and the bits that a sum of so many needs on top.
  uint partials;
  uint headroom;
};

// The nearest bf16, ties to even, saturating at 2¹¹⁸.
inline float as_bf16(float v) {
  float limit = as_type<float>(0x7a800000u);
  v = v > limit ? limit : (v < -limit ? -limit : v);
  uint bits = as_type<uint>(v);
  return as_type<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

inline float stored(float v, uint bf16) {
  if (isnan(v)) return v;
  return bf16 != 0 ? as_bf16(v) : as_f16(v);
}

// Rounds learned scales or biases. One thread a number.
kernel void round_scales(device const float* in [[buffer(0)]],
                         device float* out [[buffer(1)]],
                         constant Shape& shape [[buffer(2)]],
                         uint i [[thread_position_in_grid]]) {
  if (i < shape.groups) out[i] = stored(in[i], shape.bf16);
}

// A magnitude as an integer: its 24 bits stand `place` bits above the lowest, if its exponent is `top`, else lower. `top` is
// the (biased) exponent of the largest magnitude there is.
inline ulong fixed_point(float w, uint top, uint place) {
  uint bits = as_type<uint>(w) & 0x7fffffffu;
  uint exponent = bits >> 23;
  uint below = top - exponent;
  // A subnormal is 0 to this GPU.
  if (exponent == 0 || below >= 64) return 0;
  return (ulong((bits & 0x7fffffu) | 0x800000u) << place) >> below;
}

inline ulong simd_total(ulong v) {
  for (ushort step = 16; step > 0; step /= 2) {
    uint low = simd_shuffle_xor(uint(v), step);
    uint high = simd_shuffle_xor(uint(v >> 32), step);
    v += (ulong(high) << 32) | low;
  }
  return v;
}

// total / count · 2^(top − 127 − 23 − place), rounded once, ties to even. `total` is a sum of `fixed_point`s.
inline float mean_of(ulong total, uint count, uint top, int place) {
  if (top == 255) return INFINITY;
  if (total == 0) return 0.0f;
  // With the highest bit of the total in place 63, the quotient has at least 32 bits.
  int shift = int(clz(total));
  total <<= shift;
  ulong quotient = total / count;
  bool rest = total % count != 0;
  int exponent = int(top) - 127 - 23 - place - shift;
  int excess = 64 - int(clz(quotient)) - 24;
  ulong half_way = ulong(1) << (excess - 1);
  ulong low = quotient & ((ulong(1) << excess) - 1);
  ulong high = quotient >> excess;
  if (low > half_way || (low == half_way && (rest || (high & 1) != 0))) high += 1;
  return ldexp(float(uint(high)), exponent + excess);
}

// One simdgroup a group: scale[group] and, where BIAS (the affine rule), bias[group].
template <bool BIAS>
[[kernel]] void choose_scales(device const float* weights [[buffer(0)]],
                          device float* scale [[buffer(1)]],
                          device float* bias [[buffer(2)]],
                          constant Shape& shape [[buffer(3)]],
                          uint threadgroup_index [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint group = threadgroup_index * simdgroups + simdgroup;
  // The whole simdgroup leaves, or none of it.
  if (group >= shape.groups) return;
  device const float* w = weights + ulong(group) * shape.group;
  float low = w[lane];
  float high = low;
  bool broken = isnan(low);
  for (uint i = lane + 32; i < shape.group; i += 32) {
    low = w[i] < low ? w[i] : low;
    high = w[i] > high ? w[i] : high;
    broken = broken || isnan(w[i]);
  }
  low = simd_min(low);
  high = simd_max(high);
  float magnitude = -low > high ? -low : high;
  float s = 0.0f;
  if (BIAS) {
    // MLX: the edge of larger magnitude and zero lie on the grid.
    float step = precise::divide(high - low, shape.steps);
    step = step < 1e-7f ? 1e-7f : step;
    bool from_below = fabs(low) > fabs(high);
    float edge = from_below ? low : high;
    step = from_below ? step : -step;
    float code_of_zero = rint(precise::divide(edge, step));
    s = code_of_zero == 0.0f ? step : precise::divide(edge, code_of_zero);
    if (lane == 0) bias[group] = stored(code_of_zero == 0.0f ? 0.0f : edge, shape.bf16);
  } else if (shape.rule == 0) {
    // llama.cpp: the first element of largest magnitude gives the sign.
    uint first = 0xffffffffu;
    for (uint i = lane; i < shape.group; i += 32) {
      if (fabs(w[i]) == magnitude && i < first) first = i;
    }
    first = simd_min(first);
    s = first < shape.group ? w[first] / -8.0f : 0.0f;
  } else if (shape.rule == 1) {
    s = precise::divide(magnitude, 127.0f);
  } else {
    uint top = as_type<uint>(magnitude) >> 23;
    ulong total = 0;
    for (uint i = lane; i < shape.group; i += 32) total += fixed_point(w[i], top, 32);
    s = mean_of(simd_total(total), shape.group, top, 32);
  }
  // A weight that is no number spoils its group, so that it is seen.
  if (simd_any(broken)) s = NAN;
  if (lane == 0) scale[group] = stored(s, shape.bf16);
}

template [[host_name("choose_scales")]] [[kernel]] decltype(choose_scales<false>) choose_scales<false>;
template [[host_name("choose_scales_bias")]] [[kernel]] decltype(choose_scales<true>) choose_scales<true>;

// The mean magnitude of a tensor, in two steps. First one threadgroup for each CHUNK weights: its total, as an integer below
// the chunk's own exponent. Three numbers a chunk: the total's low and high half, and the exponent.
constant constexpr uint CHUNK = 4096;

// 24 bits, 28 below them and 12 above for the sum of CHUNK terms fill the 64.
constant constexpr uint CHUNK_PLACE = 28;

// `shared` has two halves for each simdgroup.
inline ulong group_total(ulong value, threadgroup uint* shared, Place at) {
  value = simd_total(value);
  if (at.lane == 0) {
    shared[2 * at.simdgroup] = uint(value);
    shared[2 * at.simdgroup + 1] = uint(value >> 32);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  ulong total = 0;
  for (uint i = 0; i < at.simdgroups; i++) total += (ulong(shared[2 * i + 1]) << 32) | shared[2 * i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return total;
}

kernel void tensor_partials(device const float* weights [[buffer(0)]],
                            device uint* partials [[buffer(1)]],
                            constant Shape& shape [[buffer(2)]],
                            uint chunk [[threadgroup_position_in_grid]],
                            uint index [[thread_index_in_threadgroup]],
                            uint threads [[threads_per_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float tops[32];
  threadgroup uint totals[64];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  uint first = chunk * CHUNK;
  uint end = min(first + CHUNK, shape.group);
  float magnitude = 0.0f;
  for (uint i = first + index; i < end; i += threads) {
    // What is no number counts as infinite, so that it is seen.
    float m = isnan(weights[i]) ? INFINITY : fabs(weights[i]);
    magnitude = m > magnitude ? m : magnitude;
  }
  uint top = as_type<uint>(group_max(magnitude, tops, at)) >> 23;
  ulong total = 0;
  for (uint i = first + index; i < end; i += threads) total += fixed_point(weights[i], top, CHUNK_PLACE);
  total = group_total(total, totals, at);
  if (index == 0) {
    partials[3 * chunk] = uint(total);
    partials[3 * chunk + 1] = uint(total >> 32);
    partials[3 * chunk + 2] = top;
  }
}

// Then one threadgroup: scale[0] from all partial totals, each of which gives up its lowest `headroom` bits.
kernel void tensor_scale(device const uint* partials [[buffer(0)]],
                         device float* scale [[buffer(1)]],
                         constant Shape& shape [[buffer(2)]],
                         uint index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float tops[32];
  threadgroup uint totals[64];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  uint highest = 0;
  for (uint i = index; i < shape.partials; i += threads) highest = max(highest, partials[3 * i + 2]);
  uint top = uint(group_max(float(highest), tops, at));
  ulong total = 0;
  for (uint i = index; i < shape.partials; i += threads) {
    ulong bits = (ulong(partials[3 * i + 1]) << 32) | partials[3 * i];
    uint below = top - partials[3 * i + 2] + shape.headroom;
    total += below < 64 ? bits >> below : 0;
  }
  total = group_total(total, totals, at);
  float mean = mean_of(total, shape.group, top, int(CHUNK_PLACE) - int(shape.headroom));
  if (index == 0) scale[0] = stored(mean, shape.bf16);
}
