// Softmax of scaled scores under a causal mask, and its gradient, both in place. One simdgroup a row.
//
// Row r is the query at position r mod `length` and sees the columns up to its own, in documents from the first of its own on; the rest
// is 0, and never read. A lane owns the columns first + lane, first + lane + 32, …

struct Shape {
  uint rows;
  uint length;
  float scale;
};

struct DocumentShape {
  uint rows;
  uint length;
  float scale;
  // The key head, counted over all windows, that the first row is of; query heads of a key head; key heads of a window.
  uint first_unit;
  uint group;
  uint kv_heads;
};

// Scores become weights. A NaN or +∞ among the scores makes the whole row NaN: that is how a diverged run is noticed.
inline void soften(device Element* s, uint first, uint seen, uint length, float scale, uint lane) {
  // Finite from the start, so that a lane without a column brings in no infinity.
  float top = -3.0e38f;
  for (uint i = first + lane; i < seen; i += 32) {
    float x = float(s[i]) * scale;
    top = x > top ? x : top;
  }
  top = simd_max(top);
  float total = 0.0f;
  for (uint i = first + lane; i < seen; i += 32) total += precise::exp(float(s[i]) * scale - top);
  float share = precise::divide(1.0f, simd_sum(total));
  // Computed again and not kept meanwhile: what is kept would be rounded to an Element.
  for (uint i = first + lane; i < seen; i += 32) s[i] = Element(precise::exp(float(s[i]) * scale - top) * share);
  for (uint i = lane; i < first; i += 32) s[i] = Element(0.0f);
  for (uint i = seen + lane; i < length; i += 32) s[i] = Element(0.0f);
}

// Gradients of weights become those of scores: scale·w·(g − ⟨g, w⟩).
inline void soften_backward(device const Element* w, device Element* g, uint first, uint seen, uint length, float scale,
                            uint lane) {
  float products = 0.0f;
  for (uint i = first + lane; i < seen; i += 32) products += float(w[i]) * float(g[i]);
  float mean = simd_sum(products);
  // By the lane that has read it.
  for (uint i = first + lane; i < seen; i += 32) g[i] = Element(scale * float(w[i]) * (float(g[i]) - mean));
  for (uint i = lane; i < first; i += 32) g[i] = Element(0.0f);
  for (uint i = seen + lane; i < length; i += 32) g[i] = Element(0.0f);
}

// Where the document of row `row` begins.
inline uint first_of(device const uint* firsts, uint row, constant DocumentShape& shape) {
  uint window = (shape.first_unit + row / shape.length / shape.group) / shape.kv_heads;
  return firsts[ulong(window) * shape.length + row % shape.length];
}

kernel void causal_softmax(device Element* scores [[buffer(0)]],
                           constant Shape& shape [[buffer(1)]],
                           uint threadgroup_index [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  // The whole simdgroup leaves, or none of it.
  if (row >= shape.rows) return;
  device Element* s = scores + ulong(row) * shape.length;
  soften(s, 0, row % shape.length + 1, shape.length, shape.scale, lane);
}

kernel void document_softmax(device Element* scores [[buffer(0)]],
                             device const uint* firsts [[buffer(1)]],
                             constant DocumentShape& shape [[buffer(2)]],
                             uint threadgroup_index [[threadgroup_position_in_grid]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  if (row >= shape.rows) return;
  device Element* s = scores + ulong(row) * shape.length;
  soften(s, first_of(firsts, row, shape), row % shape.length + 1, shape.length, shape.scale, lane);
}

kernel void causal_softmax_backward(device const Element* weights [[buffer(0)]],
                                    device Element* g [[buffer(1)]],
                                    constant Shape& shape [[buffer(2)]],
                                    uint threadgroup_index [[threadgroup_position_in_grid]],
                                    uint lane [[thread_index_in_simdgroup]],
                                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                                    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  if (row >= shape.rows) return;
  ulong start = ulong(row) * shape.length;
  soften_backward(weights + start, g + start, 0, row % shape.length + 1, shape.length, shape.scale, lane);
}

kernel void document_softmax_backward(device const Element* weights [[buffer(0)]],
                                      device Element* g [[buffer(1)]],
                                      device const uint* firsts [[buffer(2)]],
                                      constant DocumentShape& shape [[buffer(3)]],
                                      uint threadgroup_index [[threadgroup_position_in_grid]],
                                      uint lane [[thread_index_in_simdgroup]],
                                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                                      uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  if (row >= shape.rows) return;
  ulong start = ulong(row) * shape.length;
  uint first = first_of(firsts, row, shape);
  soften_backward(weights + start, g + start, first, row % shape.length + 1, shape.length, shape.scale, lane);
}
