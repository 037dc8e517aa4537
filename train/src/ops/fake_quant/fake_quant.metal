// Fake quantization of weights on the grid that is stored, to the bit what qat_quant::fake_quant gives, and its gradients.
//
// A grid is scale·q + bias with q in lo..hi. A group of `group` consecutive weights has one scale and, where BIAS, one bias;
// both have been rounded to their storage type (see scales.metal). With one scale for the tensor, `group` is its whole length. Weights are
// rounded in f32; the result, and the gradient that comes back, are in the type of the products that they are for.

struct Shape {
  uint weights;
  uint group;
  float lo;
  float hi;
  // Warm-up from float (0) to the grid (1).
  float lambda;
  // How far beyond the outermost codes the gradient of a weight still passes, in steps of the grid.
  float margin;
  // LSQ's γ.
  float gamma;
  // Quantization noise: weights whose hash is below the threshold are rounded; all of them where it is 0.
  uint key0;
  uint key1;
  uint threshold;
  // Turns after which a weight is held at its code; 0: none is.
  uint after;
};

// What is remembered of a weight that may be held: see turns.rs.
constant constexpr uint DIRECTION = 5;
constant constexpr uint COUNT = 7;

inline bool holds(uint turns, constant Shape& shape) {
  return turns >> COUNT >= shape.after;
}

inline float code_in(uint turns, constant Shape& shape) {
  uint code = turns & ((1u << DIRECTION) - 1);
  return float(code == 0 ? 0 : code - 1) + shape.lo;
}

// A hash of 32 bits: see noise.rs.
inline uint scrambled(uint x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

inline bool rounds(uint i, constant Shape& shape) {
  return shape.threshold == 0 || scrambled(scrambled(i ^ shape.key0) ^ shape.key1) < shape.threshold;
}

// Weights of one simdgroup's work in a backward pass where groups are longer: see `learned`.
constant constexpr uint SPAN = 256;

struct Grid {
  float scale;
  float bias;
};

template <bool BIAS>
inline Grid grid_of(device const float* scales, device const float* biases, uint group) {
  Grid grid = {scales[group], 0.0f};
  if (BIAS) grid.bias = biases[group];
  return grid;
}

// Where w lies between the codes; a grid without a step has everything at code 0.
inline float position_of(Grid grid, float w) {
  return grid.scale == 0.0f ? 0.0f : precise::divide(w - grid.bias, grid.scale);
}

// The nearest code, ties to even. NaN stays NaN; adding zero turns −0 into +0.
inline float code_of(float position, constant Shape& shape) {
  float q = rint(position);
  return (q < shape.lo ? shape.lo : (q > shape.hi ? shape.hi : q)) + 0.0f;
}

template <bool BIAS>
[[kernel]] void quantize(device const float* w [[buffer(0)]],
                         device const float* scales [[buffer(1)]],
                         device const float* biases [[buffer(2)]],
                         device Element* out [[buffer(3)]],
                         constant Shape& shape [[buffer(4)]],
                         uint i [[thread_position_in_grid]]) {
  if (i >= shape.weights) return;
  Grid grid = grid_of<BIAS>(scales, biases, i / shape.group);
  if (!rounds(i, shape)) {
    out[i] = Element(w[i]);
    return;
  }
  float value = grid.scale * code_of(position_of(grid, w[i]), shape) + grid.bias;
  out[i] = Element(shape.lambda == 1.0f ? value : w[i] + (value - w[i]) * shape.lambda);
}

// The weights that codes stand for.
template <bool BIAS>
[[kernel]] void values(device const float* codes [[buffer(0)]],
                       device const float* scales [[buffer(1)]],
                       device const float* biases [[buffer(2)]],
                       device Element* out [[buffer(3)]],
                       constant Shape& shape [[buffer(4)]],
                       uint i [[thread_position_in_grid]]) {
  if (i >= shape.weights) return;
  Grid grid = grid_of<BIAS>(scales, biases, i / shape.group);
  out[i] = Element(grid.scale * codes[i] + grid.bias);
}

inline float passed(float u, float g, constant Shape& shape) {
  return u >= shape.lo - shape.margin && u <= shape.hi + shape.margin ? g : 0.0f;
}

template <bool BIAS>
[[kernel]] void clipped(device const float* w [[buffer(0)]],
                        device const float* scales [[buffer(1)]],
                        device const float* biases [[buffer(2)]],
                        device const Element* g [[buffer(3)]],
                        device float* dw [[buffer(4)]],
                        constant Shape& shape [[buffer(5)]],
                        uint i [[thread_position_in_grid]]) {
  if (i >= shape.weights) return;
  Grid grid = grid_of<BIAS>(scales, biases, i / shape.group);
  float slope = float(g[i]);
  dw[i] = rounds(i, shape) ? passed(position_of(grid, w[i]), slope, shape) : slope;
}

// dw, and per span the sums of what its weights add to the gradients of scale and bias, times γ.
//
// One simdgroup a span. A span is a group, or SPAN weights of a tensor with one scale: then `ds` holds partial sums. Where CODES, `w`
// are codes that stay as they are, and `dw` isn't there. `turns` is there where weights may be held.
template <bool BIAS, bool CODES>
[[kernel]] void learned(device const float* w [[buffer(0)]],
                        device const float* scales [[buffer(1)]],
                        device const float* biases [[buffer(2)]],
                        device const Element* g [[buffer(3)]],
                        device float* dw [[buffer(4)]],
                        device float* ds [[buffer(5)]],
                        device float* db [[buffer(6)]],
                        device const float* turns [[buffer(7)]],
                        constant Shape& shape [[buffer(8)]],
                        uint threadgroup_index [[threadgroup_position_in_grid]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
  uint length = min(shape.group, SPAN);
  uint span = threadgroup_index * simdgroups + simdgroup;
  uint first = span * length;
  // The whole simdgroup leaves, or none of it.
  if (first >= shape.weights) return;
  uint end = min(first + length, shape.weights);
  Grid grid = grid_of<BIAS>(scales, biases, first / shape.group);
  float scale_sum = 0.0f;
  float bias_sum = 0.0f;
  for (uint i = first + lane; i < end; i += 32) {
    float slope = float(g[i]);
    if (CODES) {
      scale_sum += slope * w[i];
      if (BIAS) bias_sum += slope;
      continue;
    }
    if (shape.after != 0 && holds(uint(turns[i]), shape)) {
      dw[i] = 0.0f;
      scale_sum += slope * code_in(uint(turns[i]), shape);
      if (BIAS) bias_sum += slope;
      continue;
    }
    if (!rounds(i, shape)) {
      dw[i] = slope;
      continue;
    }
    float u = position_of(grid, w[i]);
    float q = code_of(u, shape);
    bool inside = u >= shape.lo && u <= shape.hi;
    dw[i] = passed(u, slope, shape);
    scale_sum += slope * (inside ? q - u : q);
    if (BIAS) bias_sum += inside ? 0.0f : slope;
  }
  scale_sum = simd_sum(scale_sum);
  if (lane == 0) ds[span] = scale_sum * shape.gamma;
  if (BIAS) {
    bias_sum = simd_sum(bias_sum);
    if (lane == 0) db[span] = bias_sum * shape.gamma;
  }
}

// After weights or scales have moved: counts the turns of each weight, and puts those that are held in the middle of their cells.
template <bool BIAS>
[[kernel]] void follow(device float* w [[buffer(0)]],
                       device const float* scales [[buffer(1)]],
                       device const float* biases [[buffer(2)]],
                       device float* turns [[buffer(3)]],
                       constant Shape& shape [[buffer(4)]],
                       uint i [[thread_position_in_grid]]) {
  if (i >= shape.weights) return;
  Grid grid = grid_of<BIAS>(scales, biases, i / shape.group);
  uint known = uint(turns[i]);
  if (!holds(known, shape)) {
    float code = code_of(position_of(grid, w[i]), shape);
    uint now = (code > shape.lo ? uint(code - shape.lo) : 0) + 1;
    uint was = known & ((1u << DIRECTION) - 1);
    uint last = (known >> DIRECTION) & 3;
    uint direction = was == 0 ? 0 : (now > was ? 1 : (now < was ? 2 : last));
    uint count = (known >> COUNT) + (last != 0 && direction != last ? 1 : 0);
    known = (count << COUNT) | (direction << DIRECTION) | now;
    turns[i] = float(known);
  }
  if (holds(known, shape)) w[i] = grid.scale * code_in(known, shape) + grid.bias;
}

template [[host_name("quantize")]] [[kernel]] decltype(quantize<false>) quantize<false>;
template [[host_name("quantize_bias")]] [[kernel]] decltype(quantize<true>) quantize<true>;
template [[host_name("clipped")]] [[kernel]] decltype(clipped<false>) clipped<false>;
template [[host_name("clipped_bias")]] [[kernel]] decltype(clipped<true>) clipped<true>;
template [[host_name("values")]] [[kernel]] decltype(values<false>) values<false>;
template [[host_name("values_bias")]] [[kernel]] decltype(values<true>) values<true>;
template [[host_name("learned")]] [[kernel]] decltype(learned<false, false>) learned<false, false>;
template [[host_name("learned_bias")]] [[kernel]] decltype(learned<true, false>) learned<true, false>;
template [[host_name("of_codes")]] [[kernel]] decltype(learned<false, true>) learned<false, true>;
template [[host_name("of_codes_bias")]] [[kernel]] decltype(learned<true, true>) learned<true, true>;
template [[host_name("follow")]] [[kernel]] decltype(follow<false>) follow<false>;
template [[host_name("follow_bias")]] [[kernel]] decltype(follow<true>) follow<true>;
