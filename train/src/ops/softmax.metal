// Softmax of scaled scores under a causal mask, and its gradient, both in place. One threadgroup a row.
//
// Row r is the query at position r mod `length` and sees the columns up to its own; the rest is 0, and never read. A thread
// owns the columns index, index + threads, …

struct Shape {
  uint length;
  float scale;
};

// Scores become weights.
kernel void causal_softmax(device float* scores [[buffer(0)]],
                           constant Shape& shape [[buffer(1)]],
                           uint row [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint threads [[threads_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  uint seen = row % shape.length + 1;
  device float* s = scores + ulong(row) * shape.length;
  Softmax softmax = softmax_begin();
  for (uint i = index; i < seen; i += threads) softmax = softmax_add(softmax, s[i] * shape.scale, 1.0f);
  softmax = group_softmax(softmax, 1.0f, shared, at);
  float share = precise::divide(1.0f, softmax.total);
  for (uint i = index; i < shape.length; i += threads) {
    s[i] = i < seen ? precise::exp(s[i] * shape.scale - softmax.top) * share : 0.0f;
  }
}

// Gradients of weights become those of scores: scale·w·(g − ⟨g, w⟩).
kernel void causal_softmax_backward(device const float* weights [[buffer(0)]],
                                    device float* g [[buffer(1)]],
                                    constant Shape& shape [[buffer(2)]],
                                    uint row [[threadgroup_position_in_grid]],
                                    uint index [[thread_index_in_threadgroup]],
                                    uint threads [[threads_per_threadgroup]],
                                    uint lane [[thread_index_in_simdgroup]],
                                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                                    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  uint seen = row % shape.length + 1;
  ulong start = ulong(row) * shape.length;
  float products = 0.0f;
  for (uint i = index; i < seen; i += threads) products += weights[start + i] * g[start + i];
  float mean = group_sum(products, shared, at);
  for (uint i = index; i < shape.length; i += threads) {
    g[start + i] = i < seen ? shape.scale * weights[start + i] * (g[start + i] - mean) : 0.0f;
  }
}
