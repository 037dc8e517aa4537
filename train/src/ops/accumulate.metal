// sum += x, elementwise, where x may be narrower than the sum. One thread an element.

struct Shape {
  uint count;
};

kernel void accumulate(device float* sum [[buffer(0)]],
                       device const Element* x [[buffer(1)]],
                       constant Shape& shape [[buffer(2)]],
                       uint i [[thread_position_in_grid]]) {
  if (i < shape.count) sum[i] += float(x[i]);
}
