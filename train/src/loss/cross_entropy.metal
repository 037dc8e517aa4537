// Cross entropy with one right answer a row, and its gradient. One threadgroup a row.
//
// Forward reads the logits once and keeps two numbers a row, the largest logit and the sum of exponentials relative to it;
// backward reads the logits once more and writes the gradient: nothing else has the size of the logits.

struct Shape {
  uint vocab;
  // Backward: whether to add to the gradient that is there.
  uint add;
};

kernel void cross_entropy(device const Element* logits [[buffer(0)]],
                          device const uint* targets [[buffer(1)]],
                          device float* losses [[buffer(2)]],
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
  Softmax softmax = softmax_begin();
  for (uint i = index; i < shape.vocab; i += threads) softmax = softmax_add(softmax, float(x[i]), 1.0f);
  softmax = group_softmax(softmax, 1.0f, shared, at);
  if (index == 0) {
    losses[row] = precise::log(softmax.total) - (float(x[targets[row]]) - softmax.top);
    kept[2 * row] = softmax.top;
    kept[2 * row + 1] = softmax.total;
  }
}

// upstream · (softmax(x) − 1 at the target). `upstream` is the gradient of the sum over rows, one number.
kernel void cross_entropy_backward(device const Element* logits [[buffer(0)]],
                                   device const uint* targets [[buffer(1)]],
                                   device const float* kept [[buffer(2)]],
                                   device const float* upstream [[buffer(3)]],
                                   device Element* gradient [[buffer(4)]],
                                   constant Shape& shape [[buffer(5)]],
                                   uint row [[threadgroup_position_in_grid]],
                                   uint index [[thread_index_in_threadgroup]],
                                   uint threads [[threads_per_threadgroup]]) {
  ulong start = ulong(row) * shape.vocab;
  float top = kept[2 * row];
  float share = precise::divide(1.0f, kept[2 * row + 1]);
  for (uint i = index; i < shape.vocab; i += threads) {
    float p = precise::exp(float(logits[start + i]) - top) * share;
    float slope = upstream[0] * (i == targets[row] ? p - 1.0f : p);
    gradient[start + i] = Element(shape.add != 0 ? float(gradient[start + i]) + slope : slope);
  }
}
