// A causal convolution of each channel over the last tokens of its window, gated before and behind, and its gradients.
// A row of x is b, c and u: y[t] = c[t]·m[t] with m[t] = Σ over j of kernel[j]·p[t − (taps − 1) + j] and p = b·u.

struct Shape {
  uint rows;
  uint width;
  uint taps;
  uint ctx;
  uint rows_each;
  // Whether documents lie apart, so that places are read.
  uint apart;
};

// Tokens before row `row` that it may see.
inline uint place(device const uint* places, uint row, constant Shape& shape) {
  return shape.apart != 0 ? places[row] : row % shape.ctx;
}

// p at row `row` + `tap` − (taps − 1), or 0 before the window or document.
inline float product(device const Element* x, device const uint* places, uint row, uint tap, uint channel,
                     constant Shape& shape) {
  uint before = shape.taps - 1 - tap;
  if (place(places, row, shape) < before) return 0.0f;
  device const Element* at = x + ulong(row - before) * 3 * shape.width + channel;
  return float(at[0]) * float(at[2 * shape.width]);
}

inline float mixed(device const Element* x, device const float* weights, device const uint* places, uint row, uint channel,
                   constant Shape& shape) {
  float sum = 0.0f;
  for (uint tap = 0; tap < shape.taps; tap++) {
    sum += weights[channel * shape.taps + tap] * product(x, places, row, tap, channel, shape);
  }
  return sum;
}

// One thread an element.
kernel void short_conv(device const Element* x [[buffer(0)]],
                       device const float* weights [[buffer(1)]],
                       device const uint* places [[buffer(2)]],
                       device Element* y [[buffer(3)]],
                       constant Shape& shape [[buffer(4)]],
                       uint i [[thread_position_in_grid]]) {
  if (i >= shape.rows * shape.width) return;
  uint row = i / shape.width;
  uint channel = i % shape.width;
  float c = float(x[(ulong(row) * 3 + 1) * shape.width + channel]);
  y[i] = Element(c * mixed(x, weights, places, row, channel, shape));
}

// dc = g·m; with dm = g·c and dp[s] = Σ over j of kernel[j]·dm[s + (taps − 1) − j]: db = dp·u, du = dp·b. One thread an element.
kernel void short_conv_backward(device const Element* x [[buffer(0)]],
                                device const float* weights [[buffer(1)]],
                                device const Element* g [[buffer(2)]],
                                device const uint* places [[buffer(3)]],
                                device Element* dx [[buffer(4)]],
                                constant Shape& shape [[buffer(5)]],
                                uint i [[thread_position_in_grid]]) {
  if (i >= shape.rows * shape.width) return;
  uint row = i / shape.width;
  uint channel = i % shape.width;
  ulong at = ulong(row) * 3 * shape.width + channel;
  float dp = 0.0f;
  for (uint tap = 0; tap < shape.taps; tap++) {
    uint behind = shape.taps - 1 - tap;
    uint later_row = row + behind;
    if (later_row < shape.rows && place(places, later_row, shape) >= behind) {
      ulong later = later_row;
      float dm = float(g[later * shape.width + channel]) * float(x[(later * 3 + 1) * shape.width + channel]);
      dp += weights[channel * shape.taps + tap] * dm;
    }
  }
  dx[at] = Element(dp * float(x[at + 2 * shape.width]));
  dx[at + shape.width] = Element(float(g[i]) * mixed(x, weights, places, row, channel, shape));
  dx[at + 2 * shape.width] = Element(dp * float(x[at]));
}

// partials[group] = Σ over its `rows_each` rows of dm[t]·p[t − (taps − 1) + j], [width, taps]. One thread a group and channel.
kernel void short_conv_weights(device const Element* x [[buffer(0)]],
                               device const Element* g [[buffer(1)]],
                               device const uint* places [[buffer(2)]],
                               device float* partials [[buffer(3)]],
                               constant Shape& shape [[buffer(4)]],
                               uint i [[thread_position_in_grid]]) {
  uint groups = (shape.rows + shape.rows_each - 1) / shape.rows_each;
  if (i >= groups * shape.width) return;
  uint group = i / shape.width;
  uint channel = i % shape.width;
  uint first = group * shape.rows_each;
  uint end = min(first + shape.rows_each, shape.rows);
  for (uint tap = 0; tap < shape.taps; tap++) {
    float sum = 0.0f;
    for (uint row = first; row < end; row++) {
      float c = float(x[(ulong(row) * 3 + 1) * shape.width + channel]);
      sum += float(g[ulong(row) * shape.width + channel]) * c * product(x, places, row, tap, channel, shape);
    }
    partials[(ulong(group) * shape.width + channel) * shape.taps + tap] = sum;
  }
}
