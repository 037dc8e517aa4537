// The gate of a gated MLP, silu(gate)·up, and its gradients. One thread an element; σ is computed again backward.

struct Shape {
  uint elements;
};

inline float sigmoid(float x) { return precise::divide(1.0f, 1.0f + precise::exp(-x)); }

kernel void swiglu(device const Element* gate [[buffer(0)]],
                   device const Element* up [[buffer(1)]],
                   device Element* y [[buffer(2)]],
                   constant Shape& shape [[buffer(3)]],
                   uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = float(gate[i]);
  y[i] = Element(x * sigmoid(x) * float(up[i]));
}

// d gate = g·up·σ·(1 + gate·(1 − σ)), d up = g·gate·σ.
kernel void swiglu_backward(device const Element* gate [[buffer(0)]],
                            device const Element* up [[buffer(1)]],
                            device const Element* g [[buffer(2)]],
                            device Element* d_gate [[buffer(3)]],
                            device Element* d_up [[buffer(4)]],
                            constant Shape& shape [[buffer(5)]],
                            uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = float(gate[i]);
  float slope = float(g[i]);
  float s = sigmoid(x);
  d_gate[i] = Element(slope * float(up[i]) * s * (1.0f + x * (1.0f - s)));
  d_up[i] = Element(slope * x * s);
}
