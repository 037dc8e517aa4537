// x by a factor that a device has, rounded once. One thread an element.

struct Shape {
  uint count;
};

kernel void scale(device const Element* x [[buffer(0)]],
                  device const float* factor [[buffer(1)]],
                  device Element* y [[buffer(2)]],
                  constant Shape& shape [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
  if (i < shape.count) y[i] = Element(float(x[i]) * factor[0]);
}
