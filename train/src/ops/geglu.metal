// The gate of Gemma's MLPs, gelu(gate)·up with the GELU that PyTorch calls tanh, and its gradients. One thread an element.

struct Shape {
  uint elements;
};

inline float sigmoid(float x) { return precise::divide(1.0f, 1.0f + precise::exp(-x)); }

// Half of 1 + tanh(y/2) is the logistic function of y, this argument.
inline float argument(float x) { return 1.5957691f * (x + 0.044715f * x * x * x); }

kernel void geglu(device const Element* gate [[buffer(0)]],
                  device const Element* up [[buffer(1)]],
                  device Element* y [[buffer(2)]],
                  constant Shape& shape [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = float(gate[i]);
  y[i] = Element(x * sigmoid(argument(x)) * float(up[i]));
}

// d gate = g·up·σ·(1 + x·(1 − σ)·argument'(x)), d up = g·x·σ.
kernel void geglu_backward(device const Element* gate [[buffer(0)]],
                           device const Element* up [[buffer(1)]],
                           device const Element* g [[buffer(2)]],
                           device Element* d_gate [[buffer(3)]],
                           device Element* d_up [[buffer(4)]],
                           constant Shape& shape [[buffer(5)]],
                           uint i [[thread_position_in_grid]]) {
  if (i >= shape.elements) return;
  float x = float(gate[i]);
  float slope = float(g[i]);
  float s = sigmoid(argument(x));
  float inner = 1.5957691f * (1.0f + 0.134145f * x * x);
  d_gate[i] = Element(slope * float(up[i]) * s * (1.0f + x * (1.0f - s) * inner));
  d_up[i] = Element(slope * x * s);
}
