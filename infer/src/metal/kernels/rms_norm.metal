// What is done to each row before products: residual sum, RMS norm, rounding to int8, whichever are asked for.
//
// A threadgroup for each row. Knows no matrix. Invariant: a row depends on its own values only, and is rounded exactly as
// the CPU rounds it: scale max|x| / 127, the products with 127 / max|x| to nearest even.

constant bool NORM [[function_constant(0)]];
constant bool INT8 [[function_constant(1)]];
constant bool RESIDUAL [[function_constant(2)]];

struct Shape {
    uint width;
    float eps;
};

// Most simdgroups of a threadgroup.
constant constexpr uint MOST = 32;

// The sum, or the greatest, over the threadgroup, for every thread; zero where there is nothing. `scratch` has a place
// for each simdgroup.
template <bool IS_SUM>
inline float over_all(float x, threadgroup float* scratch, uint lane, uint simdgroup, uint simdgroups) {
    x = IS_SUM ? simd_sum(x) : simd_max(x);
    if (lane == 0) {
        scratch[simdgroup] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    x = lane < simdgroups ? scratch[lane] : 0.0f;
    return IS_SUM ? simd_sum(x) : simd_max(x);
}

[[kernel]] void rms_norm(
    device const float* x [[buffer(0)]],                              // [rows, width]
    device const float* weight [[buffer(1), function_constant(NORM)]],  // [width]
    device float* out [[buffer(2)]],                                  // [rows, width]; may be x
    constant Shape& shape [[buffer(3)]],
    device float* residual [[buffer(4), function_constant(RESIDUAL)]],  // [rows, width]: x is added to it, the sum normed
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]
) {
    threadgroup float squares_of[MOST];
    threadgroup float peaks_of[MOST];
    const size_t first = size_t(row) * shape.width;
    float squares = 0.0f;
    for (uint i = thread_index; i < shape.width; i += threads) {
        float value = x[first + i];
        if (RESIDUAL) {
            value += residual[first + i];
            residual[first + i] = value;
        }
        out[first + i] = value;
        squares += value * value;
    }
    if (NORM) {
        const float mean = over_all<true>(squares, squares_of, lane, simdgroup, simdgroups) / float(shape.width);
        const float inverse = precise::rsqrt(mean + shape.eps);
        for (uint i = thread_index; i < shape.width; i += threads) {
            out[first + i] = out[first + i] * inverse * weight[i];
        }
    }
    if (INT8) {
        float peak = 0.0f;
        for (uint i = thread_index; i < shape.width; i += threads) {
            peak = max(peak, abs(out[first + i]));
        }
        peak = over_all<false>(peak, peaks_of, lane, simdgroup, simdgroups);
        // Below 2^-119 a row is zero, as for the CPU.
        const float scale = precise::divide(peak, 127.0f);
        const float inverse = peak < 1.50463277e-36f ? 0.0f : precise::divide(127.0f, peak);
        for (uint i = thread_index; i < shape.width; i += threads) {
            const float code = clamp(rint(out[first + i] * inverse), -128.0f, 127.0f);
            out[first + i] = scale * code;
        }
    }
}
