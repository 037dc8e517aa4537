// The norm of the gradients of all variables, and the share of them that clipping leaves.

struct Squares {
  uint elements;
  // Elements of a threadgroup.
  uint chunk;
  // Place of the first sum.
  uint at;
};

// sums[at + row] = Σ of in² over chunk `row`. One threadgroup a chunk.
kernel void square_sums(device const float* in [[buffer(0)]],
                        device float* sums [[buffer(1)]],
                        constant Squares& shape [[buffer(2)]],
                        uint row [[threadgroup_position_in_grid]],
                        uint index [[thread_index_in_threadgroup]],
                        uint threads [[threads_per_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  uint begin = row * shape.chunk;
  uint end = min(begin + shape.chunk, shape.elements);
  float total = 0.0f;
  for (uint i = begin + index; i < end; i += threads) total += in[i] * in[i];
  total = group_sum(total, shared, at);
  if (index == 0) sums[shape.at + row] = total;
}

struct Limit {
  // Sums of weights and norms, and behind them those of what belongs to grids.
  uint weights;
  uint grids;
  // Largest norm; 0: any.
  float limit;
};

inline float total_of(device const float* sums, uint begin, uint end, threadgroup float* shared, Place at) {
  float total = 0.0f;
  for (uint i = begin + at.thread_index; i < end; i += at.threads) total += sums[i];
  return group_sum(total, shared, at);
}

inline float kept_of(float norm, float limit) {
  return limit > 0.0f && norm > limit ? precise::divide(limit, norm) : 1.0f;
}

// out = the norms of weights and of grids, and the shares of both that are left. One threadgroup.
kernel void clip(device const float* sums [[buffer(0)]],
                 device float* out [[buffer(1)]],
                 constant Limit& shape [[buffer(2)]],
                 uint index [[thread_index_in_threadgroup]],
                 uint threads [[threads_per_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]],
                 uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  float weights = precise::sqrt(total_of(sums, 0, shape.weights, shared, at));
  float grids = precise::sqrt(total_of(sums, shape.weights, shape.weights + shape.grids, shared, at));
  if (index == 0) {
    out[0] = weights;
    out[1] = grids;
    out[2] = kept_of(weights, shape.limit);
    out[3] = kept_of(grids, shape.limit);
  }
}
