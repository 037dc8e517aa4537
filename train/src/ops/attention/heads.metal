// Heads from the order of a projection's output into the order of the products of attention, and back.
//
// `in` is [outer, a, b, d] and `out` [outer, b, a, d]. One thread an element of `out`; where d is a multiple of four, one thread four
// of them, because finding the place takes longer than moving the element.

struct Shape {
  uint elements;
  uint a;
  uint b;
  uint d;
};

// Moved at once.
struct alignas(4 * sizeof(Element)) Four {
  Element values[4];
};

// Row of `in` for row `row` of `out`.
inline uint row_before(uint row, constant Shape& shape) {
  uint in_b = row / shape.a;
  uint row_a = row % shape.a;
  uint row_b = in_b % shape.b;
  uint outer = in_b / shape.b;
  return (outer * shape.a + row_a) * shape.b + row_b;
}

kernel void swap_middle(device const Element* in [[buffer(0)]],
                        device Element* out [[buffer(1)]],
                        constant Shape& shape [[buffer(2)]],
                        uint i [[thread_position_in_grid]]) {
  if (i < shape.elements) out[i] = in[row_before(i / shape.d, shape) * shape.d + i % shape.d];
}

kernel void swap_middle_by_four(device const Four* in [[buffer(0)]],
                                device Four* out [[buffer(1)]],
                                constant Shape& shape [[buffer(2)]],
                                uint i [[thread_position_in_grid]]) {
  uint quarter = shape.d / 4;
  if (i < shape.elements / 4) out[i] = in[row_before(i / quarter, shape) * quarter + i % quarter];
}
