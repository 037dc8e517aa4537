// The gate of an MLP, max(gate, 0)²·up, and its gradients. One thread an element.

struct Shape {
  uint elements;
};

// A NaN stays one: that is how a diverged run is noticed.
inline float opened(float gate) { return gate < 0.0f ? 0.0f : gate; }

kernel void relu2(device const Element* gate [[buffer(0)]],
                  device const Element* up [[buffer(1)]],
                  device Element* y [[buffer(2)]],
                  constant Shape& shape [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = opened(float(gate[i]));
  y[i] = Element(x * x * float(up[i]));
}

// With x = max(gate, 0): d gate = 2·g·up·x, d up = g·x².
kernel void relu2_backward(device const Element* gate [[buffer(0)]],
                           device const Element* up [[buffer(1)]],
                           device const Element* g [[buffer(2)]],
                           device Element* d_gate [[buffer(3)]],
                           device Element* d_up [[buffer(4)]],
                           constant Shape& shape [[buffer(5)]],
                           uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = opened(float(gate[i]));
  float slope = float(g[i]);
  d_gate[i] = Element(2.0f * slope * float(up[i]) * x);
  d_up[i] = Element(slope * x * x);
}
