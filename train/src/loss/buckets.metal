// Rows over the tokens that are known of a teacher, and one outcome for all others. One threadgroup a row.
//
// The ids of a row ascend, so that whether a token is among them is found in a few steps.

struct Shape {
  uint vocab;
  // Known tokens of a row.
  uint known;
  // 1/τ.
  float sharpness;
  // spread: whether to add to the gradient that is there.
  uint add;
};

// The place of `token` among the ids, or `known` if it is not there.
inline uint place_of(uint token, device const uint* ids, uint known) {
  uint low = 0;
  uint high = known;
  while (low < high) {
    uint middle = (low + high) / 2;
    if (ids[middle] < token) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < known && ids[low] == token ? low : known;
}

kernel void gather(device const Element* logits [[buffer(0)]],
                   device const uint* all_ids [[buffer(1)]],
                   device float* logs [[buffer(2)]],
                   device float* kept [[buffer(3)]],
                   constant Shape& shape [[buffer(4)]],
                   uint row [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   uint threads [[threads_per_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  device const Element* x = logits + ulong(row) * shape.vocab;
  device const uint* ids = all_ids + ulong(row) * shape.known;
  device float* out = logs + ulong(row) * (shape.known + 1);
  float top = -3.0e38f;
  for (uint i = index; i < shape.vocab; i += threads) {
    float value = float(x[i]);
    top = value > top ? value : top;
  }
  top = group_max(top, shared, at);
  float rest = 0.0f;
  for (uint i = index; i < shape.vocab; i += threads) {
    if (place_of(i, ids, shape.known) == shape.known) rest += precise::exp((float(x[i]) - top) * shape.sharpness);
  }
  rest = group_sum(rest, shared, at);
  // e^−80, as on the CPU. Comparing so keeps a NaN.
  rest = rest < 1.8048514e-35f ? 1.8048514e-35f : rest;
  for (uint i = index; i < shape.known; i += threads) out[i] = (float(x[ids[i]]) - top) * shape.sharpness;
  if (index == 0) {
    out[shape.known] = precise::log(rest);
    kept[2 * row] = top;
    kept[2 * row + 1] = rest;
  }
}

// The gradient by the logits from that by `logs`, in `slopes`.
kernel void spread(device const Element* logits [[buffer(0)]],
                   device const uint* all_ids [[buffer(1)]],
                   device const float* kept [[buffer(2)]],
                   device const float* slopes [[buffer(3)]],
                   device Element* gradient [[buffer(4)]],
                   constant Shape& shape [[buffer(5)]],
                   uint row [[threadgroup_position_in_grid]],
                   uint index [[thread_index_in_threadgroup]],
                   uint threads [[threads_per_threadgroup]]) {
  ulong start = ulong(row) * shape.vocab;
  device const uint* ids = all_ids + ulong(row) * shape.known;
  device const float* slope = slopes + ulong(row) * (shape.known + 1);
  float top = kept[2 * row];
  float share = precise::divide(slope[shape.known] * shape.sharpness, kept[2 * row + 1]);
  for (uint i = index; i < shape.vocab; i += threads) {
    uint place = place_of(i, ids, shape.known);
    float g = place < shape.known ? slope[place] * shape.sharpness
                                  : share * precise::exp((float(logits[start + i]) - top) * shape.sharpness);
    gradient[start + i] = Element(shape.add != 0 ? float(gradient[start + i]) + g : g);
  }
}
