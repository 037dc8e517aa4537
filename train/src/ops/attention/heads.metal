// Heads from the order of a projection's output into the order of the products of attention, and back.
//
// `in` is [outer, a, b, d] and `out` [outer, b, a, d]. One thread an element of `out`.

struct Shape {
  uint elements;
  uint a;
  uint b;
  uint d;
};

kernel void swap_middle(device const Element* in [[buffer(0)]],
                        device Element* out [[buffer(1)]],
                        constant Shape& shape [[buffer(2)]],
                        uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  uint row = i / shape.d;
  uint in_b = row / shape.a;
  uint row_a = row % shape.a;
  uint row_b = in_b % shape.b;
  uint outer = in_b / shape.b;
  out[i] = in[((outer * shape.a + row_a) * shape.b + row_b) * shape.d + i % shape.d];
}
