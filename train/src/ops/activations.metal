// int8 activations with one scale a token: the arithmetic of qat_quant::int8_tokens, to the bit. One threadgroup a row.

struct Shape {
  uint width;
  float lambda;
};

kernel void int8_tokens(device const Element* x [[buffer(0)]],
                        device Element* y [[buffer(1)]],
                        constant Shape& shape [[buffer(2)]],
                        uint row [[threadgroup_position_in_grid]],
                        uint index [[thread_index_in_threadgroup]],
                        uint threads [[threads_per_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  ulong start = ulong(row) * shape.width;
  float peak = 0.0f;
  for (uint i = index; i < shape.width; i += threads) {
    float magnitude = fabs(float(x[start + i]));
    peak = magnitude > peak ? magnitude : peak;
  }
  peak = group_max(peak, shared, at);
  // Below 2^-119 a token is zero, as for the CPU.
  bool zero = peak < 1.50463277e-36f;
  float scale = precise::divide(peak, 127.0f);
  float inverse = precise::divide(127.0f, peak);
  for (uint i = index; i < shape.width; i += threads) {
    float value = float(x[start + i]);
    float rounded = 0.0f;
    if (!zero) {
      float code = rint(value * inverse);
      code = code < -128.0f ? -128.0f : (code > 127.0f ? 127.0f : code);
      rounded = scale * code;
    }
    y[start + i] = Element(shape.lambda == 1.0f ? rounded : value + (rounded - value) * shape.lambda);
  }
}
