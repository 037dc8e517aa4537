// Sums of partial results: the last step of every reduction that one threadgroup can't do alone.

struct Shape {
  uint rows;
  uint columns;
  float factor;
};

// out[column] = factor · Σ of in[row][column] over the rows. One threadgroup for 32 columns: a simdgroup adds up every n-th row of
// them, then the simdgroups' sums are joined in their order.
kernel void sum_rows(device const Element* in [[buffer(0)]],
                     device float* out [[buffer(1)]],
                     constant Shape& shape [[buffer(2)]],
                     uint block [[threadgroup_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float parts[1024];
  uint column = block * 32 + lane;
  // Four sums, so that four rows are on their way at a time.
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (column < shape.columns) {
    for (uint row = simdgroup; row < shape.rows; row += 4 * simdgroups) {
      for (uint i = 0; i < 4; i++) {
        uint at = row + i * simdgroups;
        if (at < shape.rows) sums[i] += float(in[ulong(at) * shape.columns + column]);
      }
    }
  }
  float total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  parts[simdgroup * 32 + lane] = total;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup != 0 || column >= shape.columns) return;
  for (uint i = 1; i < simdgroups; i++) total += parts[i * 32 + lane];
  out[column] = total * shape.factor;
}

// out[0] = factor · Σ of in[0..rows]. One threadgroup.
kernel void sum_all(device const float* in [[buffer(0)]],
                    device float* out [[buffer(1)]],
                    constant Shape& shape [[buffer(2)]],
                    uint index [[thread_index_in_threadgroup]],
                    uint threads [[threads_per_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]],
                    uint simdgroup [[simdgroup_index_in_threadgroup]],
                    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  float total = 0.0f;
  for (uint i = index; i < shape.rows; i += threads) total += in[i];
  total = group_sum(total, shared, at);
  if (index == 0) out[0] = total * shape.factor;
}
