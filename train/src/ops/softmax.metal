// Softmax of scaled scores under a causal mask, and its gradient, both in place. One simdgroup a row.
//
// Row r is the query at position r mod `length` and sees `window` columns up to its own; the rest is 0, and never read. A lane
// owns every thirty-second column of those.

struct Shape {
  uint rows;
  uint length;
  float scale;
  uint window;
};

// The first column that the query at `position` sees.
inline uint oldest_of(uint position, uint window) { return position < window ? 0 : position - window + 1; }

// Scores become weights. A NaN or +∞ among the scores makes the whole row NaN: that is how a diverged run is noticed.
kernel void causal_softmax(device Element* scores [[buffer(0)]],
                           constant Shape& shape [[buffer(1)]],
                           uint threadgroup_index [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  // The whole simdgroup leaves, or none of it.
  if (row >= shape.rows) return;
  uint seen = row % shape.length + 1;
  uint oldest = oldest_of(row % shape.length, shape.window);
  device Element* s = scores + ulong(row) * shape.length;
  // Finite from the start, so that a lane without a column brings in no infinity.
  float top = -3.0e38f;
  for (uint i = oldest + lane; i < seen; i += 32) {
    float x = float(s[i]) * shape.scale;
    top = x > top ? x : top;
  }
  top = simd_max(top);
  float total = 0.0f;
  for (uint i = oldest + lane; i < seen; i += 32) total += precise::exp(float(s[i]) * shape.scale - top);
  float share = precise::divide(1.0f, simd_sum(total));
  // Computed again and not kept meanwhile: what is kept would be rounded to an Element.
  for (uint i = oldest + lane; i < seen; i += 32) s[i] = Element(precise::exp(float(s[i]) * shape.scale - top) * share);
  for (uint i = lane; i < oldest; i += 32) s[i] = Element(0.0f);
  for (uint i = seen + lane; i < shape.length; i += 32) s[i] = Element(0.0f);
}

// Gradients of weights become those of scores: scale·w·(g − ⟨g, w⟩).
kernel void causal_softmax_backward(device const Element* weights [[buffer(0)]],
                                    device Element* g [[buffer(1)]],
                                    constant Shape& shape [[buffer(2)]],
                                    uint threadgroup_index [[threadgroup_position_in_grid]],
                                    uint lane [[thread_index_in_simdgroup]],
                                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                                    uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint row = threadgroup_index * simdgroups + simdgroup;
  if (row >= shape.rows) return;
  uint seen = row % shape.length + 1;
  uint oldest = oldest_of(row % shape.length, shape.window);
  ulong start = ulong(row) * shape.length;
  float products = 0.0f;
  for (uint i = oldest + lane; i < seen; i += 32) {
    products += float(weights[start + i]) * float(g[start + i]);
  }
  float mean = simd_sum(products);
  for (uint i = lane; i < shape.length; i += 32) {
    float slope = i >= oldest && i < seen ? shape.scale * float(weights[start + i]) * (float(g[start + i]) - mean) : 0.0f;
    g[start + i] = Element(slope);
  }
}
