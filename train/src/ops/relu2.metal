// The gate of an MLP, max(gate, 0)²·up, and its gradients. One thread an element.

struct Shape {
  uint elements;
};

kernel void relu2(device const float* gate [[buffer(0)]],
                  device const float* up [[buffer(1)]],
                  device float* y [[buffer(2)]],
                  constant Shape& shape [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  // A NaN stays one: that is how a diverged run is noticed.
  float x = gate[i] < 0.0f ? 0.0f : gate[i];
  y[i] = x * x * up[i];
}

// With x = max(gate, 0): d gate = 2·g·up·x, d up = g·x².
kernel void relu2_backward(device const float* gate [[buffer(0)]],
                           device const float* up [[buffer(1)]],
                           device const float* g [[buffer(2)]],
                           device float* d_gate [[buffer(3)]],
                           device float* d_up [[buffer(4)]],
                           constant Shape& shape [[buffer(5)]],
                           uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = gate[i] < 0.0f ? 0.0f : gate[i];
  d_gate[i] = 2.0f * g[i] * up[i] * x;
  d_up[i] = g[i] * x * x;
}
