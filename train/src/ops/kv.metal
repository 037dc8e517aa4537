// What a KV cache gives back of keys and values: the arithmetic of qat_infer's caches, to the bit. One thread for all that share a scale.

struct Shape {
  uint groups;
  // Elements of a head, and how many of them share a scale; the last group of a head may be shorter.
  uint width;
  uint group;
  // 0: f16, 1: int8, 2: int4.
  uint kind;
  float lambda;
};

// The stored scale of x[0..n].
inline float scale_of(device const Element* x, uint n, uint kind) {
  float peak = 0.0f;
  for (uint i = 0; i < n; i++) {
    float value = float(x[i]);
    peak = fabs(value) > fabs(peak) ? value : peak;
  }
  float most = 3.40282347e38f;
  peak = peak > most ? most : (peak < -most ? -most : peak);
  return as_f16(kind == 1 ? precise::divide(fabs(peak), 127.0f) : precise::divide(peak, -8.0f));
}

kernel void kv_cache(device const Element* x [[buffer(0)]],
                     device Element* y [[buffer(1)]],
                     constant Shape& shape [[buffer(2)]],
                     uint at [[thread_position_in_grid]]) {
  if (at >= shape.groups) return;
  uint in_head = (shape.width + shape.group - 1) / shape.group;
  uint first = at % in_head * shape.group;
  ulong start = ulong(at / in_head) * shape.width + first;
  uint n = min(shape.group, shape.width - first);
  float scale = shape.kind == 0 ? 0.0f : scale_of(x + start, n, shape.kind);
  float inverse = scale == 0.0f ? 0.0f : precise::divide(1.0f, scale);
  float least = shape.kind == 1 ? -127.0f : -8.0f;
  float most = shape.kind == 1 ? 127.0f : 7.0f;
  for (uint i = 0; i < n; i++) {
    float value = float(x[start + i]);
    float rounded;
    if (shape.kind == 0) {
      rounded = as_f16(value);
    } else {
      // Code −0 is 0.
      float code = rint(value * inverse) + 0.0f;
      rounded = (code < least ? least : (code > most ? most : code)) * scale;
    }
    y[start + i] = Element(shape.lambda == 1.0f ? rounded : value + (rounded - value) * shape.lambda);
  }
}
