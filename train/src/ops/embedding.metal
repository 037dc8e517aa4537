// The gradient of a lookup: row id of the table receives the sum of the gradients at the positions of id, in their order, times what
// rows were multiplied by.
//
// The positions of id are positions[id == 0 ? 0 : ends[id − 1] .. ends[id]]. One thread an element of the table's gradient.

struct Shape {
  uint rows;
  uint width;
  float factor;
};

kernel void embedding_backward(device const Element* g [[buffer(0)]],
                               device const uint* ends [[buffer(1)]],
                               device const uint* positions [[buffer(2)]],
                               device float* d_table [[buffer(3)]],
                               constant Shape& shape [[buffer(4)]],
                               uint2 at [[thread_position_in_grid]]) {
  uint column = at.x;
  uint id = at.y;
  if (column >= shape.width || id >= shape.rows) return;
  uint first = id == 0 ? 0 : ends[id - 1];
  float total = 0.0f;
  for (uint i = first; i < ends[id]; i++) {
    total += float(g[ulong(positions[i]) * shape.width + column]);
  }
  d_table[ulong(id) * shape.width + column] = total * shape.factor;
}
