// Divergences between softened distributions P (the teacher's) and Q (the student's), and the gradient by the student's
// logits. One threadgroup a row.
//
// Forward reads both rows twice: what a softmax needs, then the sum. It keeps six numbers a row; backward reads both rows once
// and writes the gradient: nothing else has the size of the logits. ln(p/q) comes from the logits, because a quotient of
// probabilities would be 0/0 where both underflow.

struct Shape {
  uint vocab;
  // 1/τ.
  float sharpness;
  // τ.
  float temperature;
  // β or α: weight of the teacher in the mixture M, where the divergence has one.
  float beta;
  // Backward: whether to add to the gradient that is there.
  uint add;
};

// What forward keeps of a row.
struct Row {
  float top_p;
  float total_p;
  float top_q;
  float total_q;
  // ln(total_q / total_p).
  float offset;
  // What the gradient is centred about: Σ q·h, with h as `slope_of` has it.
  float centre;
};

constant constexpr uint ROW_LENGTH = 6;

enum Kind { FORWARD_KL, REVERSE_KL, JSD, SKEW_KL, SKEW_REVERSE_KL };

// Beyond e^±80 the smaller of p and q is 0 and its logarithm no longer matters.
constant constexpr float FAR_APART = 80.0f;

struct Pair {
  float p;
  float q;
  // ln(p/q).
  float ratio;
};

inline Pair pair_of(float x, float y, Row row, constant Shape& shape) {
  float over_p = (x - row.top_p) * shape.sharpness;
  float over_q = (y - row.top_q) * shape.sharpness;
  Pair pair;
  pair.p = precise::divide(precise::exp(over_p), row.total_p);
  pair.q = precise::divide(precise::exp(over_q), row.total_q);
  pair.ratio = ((x - row.top_p) - (y - row.top_q)) * shape.sharpness + row.offset;
  return pair;
}

inline float quotient_of(Pair pair) {
  float r = pair.ratio;
  return precise::exp(r < -FAR_APART ? -FAR_APART : (r > FAR_APART ? FAR_APART : r));
}

// m/q and m/p with the mixture m = β·p + (1 − β)·q.
inline float m_over_q(float quotient, float beta) { return (1.0f - beta) + beta * quotient; }
inline float m_over_p(float quotient, float beta) { return beta + precise::divide(1.0f - beta, quotient); }

// h, by which the derivative of the divergence by the student's logit is q·(h − Σ q·h), but for forward KL, where it is q − p.
template <Kind KIND>
inline float slope_of(Pair pair, float beta) {
  float quotient = quotient_of(pair);
  if (KIND == REVERSE_KL) return -pair.ratio;
  if (KIND == JSD) return -precise::log(m_over_q(quotient, beta)) * (1.0f - beta);
  if (KIND == SKEW_KL) return -precise::divide(1.0f - beta, m_over_p(quotient, beta));
  if (KIND == SKEW_REVERSE_KL) {
    float over_q = m_over_q(quotient, beta);
    return -precise::log(over_q) - precise::divide(1.0f - beta, over_q);
  }
  return 0.0f;
}

// The part of one outcome in the divergence.
template <Kind KIND>
inline float value_of(Pair pair, float beta) {
  float quotient = quotient_of(pair);
  if (KIND == REVERSE_KL) return -pair.q * pair.ratio;
  if (KIND == JSD) {
    return -beta * pair.p * precise::log(m_over_p(quotient, beta)) -
           (1.0f - beta) * pair.q * precise::log(m_over_q(quotient, beta));
  }
  if (KIND == SKEW_KL) return -pair.p * precise::log(m_over_p(quotient, beta));
  if (KIND == SKEW_REVERSE_KL) return -pair.q * precise::log(m_over_q(quotient, beta));
  return pair.p * pair.ratio;
}

template <Kind KIND>
[[kernel]] void divergence(device const Element* student [[buffer(0)]],
                           device const Element* teacher [[buffer(1)]],
                           device float* losses [[buffer(2)]],
                           device float* kept [[buffer(3)]],
                           constant Shape& shape [[buffer(4)]],
                           uint row_index [[threadgroup_position_in_grid]],
                           uint index [[thread_index_in_threadgroup]],
                           uint threads [[threads_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float shared[32];
  Place at = {index, threads, lane, simdgroup, simdgroups};
  device const Element* x = teacher + ulong(row_index) * shape.vocab;
  device const Element* y = student + ulong(row_index) * shape.vocab;
  Softmax of_p = softmax_begin();
  Softmax of_q = softmax_begin();
  for (uint i = index; i < shape.vocab; i += threads) {
    of_p = softmax_add(of_p, float(x[i]), shape.sharpness);
    of_q = softmax_add(of_q, float(y[i]), shape.sharpness);
  }
  of_p = group_softmax(of_p, shape.sharpness, shared, at);
  of_q = group_softmax(of_q, shape.sharpness, shared, at);
  Row row = {of_p.top, of_p.total, of_q.top, of_q.total, 0.0f, 0.0f};
  row.offset = precise::log(row.total_q) - precise::log(row.total_p);
  float value = 0.0f;
  float centre = 0.0f;
  for (uint i = index; i < shape.vocab; i += threads) {
    Pair pair = pair_of(float(x[i]), float(y[i]), row, shape);
    value += value_of<KIND>(pair, shape.beta);
    centre += pair.q * slope_of<KIND>(pair, shape.beta);
  }
  value = group_sum(value, shared, at);
  row.centre = group_sum(centre, shared, at);
  if (index == 0) {
    // τ² keeps the size of the gradient independent of τ.
    losses[row_index] = value * shape.temperature * shape.temperature;
    device float* k = kept + ROW_LENGTH * row_index;
    k[0] = row.top_p;
    k[1] = row.total_p;
    k[2] = row.top_q;
    k[3] = row.total_q;
    k[4] = row.offset;
    k[5] = row.centre;
  }
}

// upstream · τ · the derivative by the student's softened logits. `upstream` is the gradient of the sum over rows, one number.
template <Kind KIND>
[[kernel]] void divergence_backward(device const Element* student [[buffer(0)]],
                                    device const Element* teacher [[buffer(1)]],
                                    device const float* kept [[buffer(2)]],
                                    device const float* upstream [[buffer(3)]],
                                    device Element* gradient [[buffer(4)]],
                                    constant Shape& shape [[buffer(5)]],
                                    uint row_index [[threadgroup_position_in_grid]],
                                    uint index [[thread_index_in_threadgroup]],
                                    uint threads [[threads_per_threadgroup]]) {
  ulong start = ulong(row_index) * shape.vocab;
  device const float* k = kept + ROW_LENGTH * row_index;
  Row row = {k[0], k[1], k[2], k[3], k[4], k[5]};
  float factor = upstream[0] * shape.temperature;
  for (uint i = index; i < shape.vocab; i += threads) {
    Pair pair = pair_of(float(teacher[start + i]), float(student[start + i]), row, shape);
    float slope = KIND == FORWARD_KL ? pair.q - pair.p : pair.q * (slope_of<KIND>(pair, shape.beta) - row.centre);
    float added = factor * slope;
    gradient[start + i] = Element(shape.add != 0 ? float(gradient[start + i]) + added : added);
  }
}

template [[host_name("forward_kl")]] [[kernel]] decltype(divergence<FORWARD_KL>) divergence<FORWARD_KL>;
template [[host_name("reverse_kl")]] [[kernel]] decltype(divergence<REVERSE_KL>) divergence<REVERSE_KL>;
template [[host_name("jsd")]] [[kernel]] decltype(divergence<JSD>) divergence<JSD>;
template [[host_name("skew_kl")]] [[kernel]] decltype(divergence<SKEW_KL>) divergence<SKEW_KL>;
template [[host_name("skew_reverse_kl")]] [[kernel]] decltype(divergence<SKEW_REVERSE_KL>)
    divergence<SKEW_REVERSE_KL>;
template [[host_name("forward_kl_backward")]] [[kernel]] decltype(divergence_backward<FORWARD_KL>)
    divergence_backward<FORWARD_KL>;
template [[host_name("reverse_kl_backward")]] [[kernel]] decltype(divergence_backward<REVERSE_KL>)
    divergence_backward<REVERSE_KL>;
template [[host_name("jsd_backward")]] [[kernel]] decltype(divergence_backward<JSD>) divergence_backward<JSD>;
template [[host_name("skew_kl_backward")]] [[kernel]] decltype(divergence_backward<SKEW_KL>) divergence_backward<SKEW_KL>;
template [[host_name("skew_reverse_kl_backward")]] [[kernel]] decltype(divergence_backward<SKEW_REVERSE_KL>)
    divergence_backward<SKEW_REVERSE_KL>;
