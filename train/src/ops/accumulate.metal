// sum += x, elementwise. One thread an element.

struct Shape {
  uint count;
};

kernel void accumulate(device float* sum [[buffer(0)]],
                       device const float* x [[buffer(1)]],
                       constant Shape& shape [[buffer(2)]],
                       uint i [[thread_position_in_grid]]) {
  if (i < shape.count) sum[i] += x[i];
}
