// One step of AdamW on one variable, in place: value and both moments are read and written once. One thread an element.
//
// The constants are worked out on the host; the order of the roundings is that of the step on the CPU.

struct Step {
  uint elements;
  // Which norm clips it: 0 that of weights and norms, 1 that of what belongs to grids.
  uint of_grid;
  // What a unit of the rate is: 0 one, 1 the magnitude of the value itself, 2 that of `unit`.
  uint relative;
  float beta1;
  float rest1;
  float beta2;
  float rest2;
  float correction1;
  float correction2;
  float eps;
  float rate;
  // 1 − rate · weight decay.
  float decay;
};

// `clip` is as clip.metal leaves it.
kernel void adamw(device float* value [[buffer(0)]],
                  device float* first [[buffer(1)]],
                  device float* second [[buffer(2)]],
                  device const float* gradient [[buffer(3)]],
                  device const float* unit [[buffer(4)]],
                  device const float* clip [[buffer(5)]],
                  constant Step& step [[buffer(6)]],
                  uint i [[thread_position_in_grid]]) {
  if (i >= step.elements) return;
  float g = gradient[i] * clip[2 + step.of_grid];
  float m = first[i] * step.beta1 + g * step.rest1;
  float v = second[i] * step.beta2 + g * g * step.rest2;
  float update = precise::divide(m * step.correction1, precise::sqrt(v * step.correction2) + step.eps);
  float old = value[i];
  if (step.relative == 1) update *= fabs(old);
  if (step.relative == 2) update *= fabs(unit[i]);
  first[i] = m;
  second[i] = v;
  value[i] = old * step.decay - update * step.rate;
}
