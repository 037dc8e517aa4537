// Rotary position embedding, half-split: element j of a head is rotated with element j + half. One thread a pair.
//
// `direction` is 1 forward; −1 turns back, which is the gradient of a rotation.

struct Shape {
  uint pairs;
  uint positions;
  uint heads;
  uint half_dim;
  float direction;
};

kernel void rope(device const Element* x [[buffer(0)]],
                 device const float* cosines [[buffer(1)]],
                 device const float* sines [[buffer(2)]],
                 device Element* y [[buffer(3)]],
                 constant Shape& shape [[buffer(4)]],
                 uint pair [[thread_position_in_grid]]) {
  if (pair >= shape.pairs) return;
  uint j = pair % shape.half_dim;
  uint head = pair / shape.half_dim;
  uint position = head / shape.heads % shape.positions;
  ulong low_at = ulong(head) * 2 * shape.half_dim + j;
  ulong high_at = low_at + shape.half_dim;
  float c = cosines[position * shape.half_dim + j];
  float s = sines[position * shape.half_dim + j] * shape.direction;
  float low = float(x[low_at]);
  float high = float(x[high_at]);
  y[low_at] = Element(low * c - high * s);
  y[high_at] = Element(high * c + low * s);
}
