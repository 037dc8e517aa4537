// Root-mean-square normalization of rows: y = x·r·w with r = 1/sqrt(mean(x²) + eps), and its gradients.
//
// One threadgroup a row forward; backward one for `rows_each` consecutive rows, which leaves the sum of their weight
// gradients in one row of `partials`. A thread owns the columns index, index + threads, … of all its rows.

struct Shape {
  uint rows;
  uint width;
  uint rows_each;
  float eps;
};

inline float reciprocal_root(device const Element* x, constant Shape& shape, threadgroup float* shared, Place at) {
  float squares = 0.0f;
  for (uint i = at.thread_index; i < shape.width; i += at.threads) {
    float xi = float(x[i]);
    squares += xi * xi;
  }
  float mean = group_sum(squares, shared, at) / float(shape.width);
  return precise::divide(1.0f, precise::sqrt(mean + shape.eps));
}

kernel void rms_norm(device const Element* x [[buffer(0)]],
                     device const float* weight [[buffer(1)]],
                     device Element* y [[buffer(2)]],
                     constant Shape& shape [[buffer(3)]],
                     uint row [[threadgroup_position_in_grid]],
                     uint index [[thread_index_in_threadgroup]],
                     uint threads [[threads_per_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  ulong start = ulong(row) * shape.width;
  float r = reciprocal_root(x + start, shape, shared, at);
  for (uint i = index; i < shape.width; i += threads) {
    y[start + i] = Element(float(x[start + i]) * r * weight[i]);
  }
}

// With h = g·w: dx = r·(h − x·r²·mean(h·x)); partials[group] = Σ over its rows of g·x·r.
kernel void rms_norm_backward(device const Element* x [[buffer(0)]],
                              device const float* weight [[buffer(1)]],
                              device const Element* g [[buffer(2)]],
                              device Element* dx [[buffer(3)]],
                              device float* partials [[buffer(4)]],
                              constant Shape& shape [[buffer(5)]],
                              uint group [[threadgroup_position_in_grid]],
                              uint index [[thread_index_in_threadgroup]],
                              uint threads [[threads_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  device float* partial = partials + ulong(group) * shape.width;
  for (uint i = index; i < shape.width; i += threads) partial[i] = 0.0f;
  uint first = group * shape.rows_each;
  uint end = min(first + shape.rows_each, shape.rows);
  for (uint row = first; row < end; row++) {
    ulong start = ulong(row) * shape.width;
    float r = reciprocal_root(x + start, shape, shared, at);
    float products = 0.0f;
    for (uint i = index; i < shape.width; i += threads) {
      products += float(g[start + i]) * weight[i] * float(x[start + i]);
    }
    float along = r * r * group_sum(products, shared, at) / float(shape.width);
    for (uint i = index; i < shape.width; i += threads) {
      float xi = float(x[start + i]);
      float gi = float(g[start + i]);
      dx[start + i] = Element(r * (gi * weight[i] - xi * along));
      partial[i] += gi * (xi * r);
    }
  }
}
