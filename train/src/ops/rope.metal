// Rotary position embedding, half-split: of a head's first elements, j is rotated with j + pairs; the rest stays. One thread a pair, and
// one for each element of the rest.
//
// `direction` is 1 forward; −1 turns back, which is the gradient of a rotation.

struct Shape {
  uint threads;
  uint positions;
  uint heads;
  uint head_dim;
  uint pairs;
  float direction;
};

kernel void rope(device const Element* x [[buffer(0)]],
                 device const float* cosines [[buffer(1)]],
                 device const float* sines [[buffer(2)]],
                 device Element* y [[buffer(3)]],
                 constant Shape& shape [[buffer(4)]],
                 uint at [[thread_position_in_grid]]) {
  if (at >= shape.threads) return;
  uint of_head = shape.head_dim - shape.pairs;
  uint j = at % of_head;
  uint head = at / of_head;
  ulong low_at = ulong(head) * shape.head_dim + j;
  ulong high_at = low_at + shape.pairs;
  if (j >= shape.pairs) {
    y[high_at] = x[high_at];
    return;
  }
  uint position = head / shape.heads % shape.positions;
  float c = cosines[position * shape.pairs + j];
  float s = sines[position * shape.pairs + j] * shape.direction;
  float low = float(x[low_at]);
  float high = float(x[high_at]);
  y[low_at] = Element(low * c - high * s);
  y[high_at] = Element(high * c + low * s);
}
