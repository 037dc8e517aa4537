// One token: out = W x, with the norm of x and its rounding to int8 done on the way.
//
// Two simdgroups a threadgroup, each with SLOTS rows of its own. Lanes run along the columns, a piece each; a lane's
// activations stay in registers for all of its rows; lanes are summed once per row.

constant bool NORM [[function_constant(0)]];
constant bool INT8 [[function_constant(1)]];

constant constexpr uint SLOTS = 4;
constant constexpr uint SIMDGROUPS = 2;

// What x is multiplied by, and then rounded to.
struct Input {
    device const float* x;
    device const float* weight;
    uint cols;
    // 1 / sqrt(mean of squares + eps)
    float inverse;
    // The largest magnitude / 127, and 127 / the largest magnitude: 0, which makes all codes 0, where that is below 2^-119.
    float scale;
    float reciprocal;
};

inline float4 normed(thread const Input& input, uint column) {
    float4 x = four(input.x, column, input.cols);
    if (NORM) {
        x = x * input.inverse * four(input.weight, column, input.cols);
    }
    return x;
}

// Four activations as they are multiplied: normed, and codes where they are rounded.
inline float4 activations(thread const Input& input, uint column) {
    float4 x = normed(input, column);
    if (INT8) {
        #pragma unroll
        for (uint e = 0; e < 4; e++) {
            // That of the peak is 127 within two roundings: nothing is left to clamp.
            x[e] = rint(x[e] * input.reciprocal);
        }
    }
    return x;
}

// The whole of x is read by every threadgroup, all of which find the same numbers.
inline void prepare(thread Input& input, float eps, threadgroup float* shared, uint thread_index, uint simdgroup,
                    uint lane) {
    const uint stride = 4 * SIMD * SIMDGROUPS;
    if (NORM) {
        float squares = 0.0f;
        for (uint c = 4 * thread_index; c < input.cols; c += stride) {
            const float4 x = four(input.x, c, input.cols);
            squares += dot(x, x);
        }
        squares = simd_sum(squares);
        if (lane == 0) {
            shared[simdgroup] = squares;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const float mean = (shared[0] + shared[1]) / float(input.cols);
        input.inverse = precise::divide(1.0f, precise::sqrt(mean + eps));
    }
    if (INT8) {
        float peak = 0.0f;
        for (uint c = 4 * thread_index; c < input.cols; c += stride) {
            const float4 x = abs(normed(input, c));
            peak = max(peak, max(max(x[0], x[1]), max(x[2], x[3])));
        }
        peak = simd_max(peak);
        if (lane == 0) {
            shared[SIMDGROUPS + simdgroup] = peak;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        peak = max(shared[SIMDGROUPS], shared[SIMDGROUPS + 1]);
        input.scale = precise::divide(peak, 127.0f);
        input.reciprocal = peak < 1.50463277e-36f ? 0.0f : precise::divide(127.0f, peak);
    }
}

template <typename K>
[[kernel]] void matvec(
    device const float* x [[buffer(0)]],
    constant Shape& shape [[buffer(1)]],
    device const float* norm [[buffer(2), function_constant(NORM)]],
    MATRIX_BUFFERS,
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float shared[2 * SIMDGROUPS];
    const uint cols = shape.cols;
    Input input = {x, NORM ? norm : x, cols, 1.0f, 1.0f, 1.0f};
    prepare(input, shape.eps, shared, thread_index, simdgroup, lane);

    const Tile tile = tile_of(shape, group, SIMDGROUPS * SLOTS, MATRICES_BOUND);
    const uint first = tile.first + simdgroup * rows_of(SLOTS);
    Row rows[SLOTS];
    float sums[SLOTS];
    #pragma unroll
    for (uint s = 0; s < SLOTS; s++) {
        // The slots of a gate are a row of the first matrix, the same of the second, and so on.
        rows[s] = EPILOGUE == GATE ? row_of(tile, first + s / 2, s % 2 == 1) : row_of(tile, first + s, false);
        sums[s] = 0.0f;
    }

    for (uint p = lane; p < pieces_of<K>(cols); p += SIMD) {
        float y[K::Columns::PIECE];
        float total = 0.0f;
        #pragma unroll
        for (uint r = 0; r < K::Columns::RUNS; r++) {
            const float4 values = activations(input, K::Columns::first(p) + K::Columns::run(r));
            total += (values[0] + values[1]) + (values[2] + values[3]);
            #pragma unroll
            for (uint e = 0; e < 4; e++) {
                y[K::Columns::place(r, e)] = values[e] * K::Codes::unit(K::Columns::place(r, e));
            }
        }
        #pragma unroll
        for (uint s = 0; s < SLOTS; s++) {
            const auto piece = K::load(rows[s].bytes, p, cols, rows[s].scale);
            float sum = 0.0f;
            #pragma unroll
            for (uint i = 0; i < K::Columns::PIECE; i++) {
                sum += K::Codes::raw(piece, i) * y[i];
            }
            sums[s] += K::Codes::HAS_BIAS ? piece.scale * sum + piece.bias * total : piece.scale * sum;
        }
    }

    #pragma unroll
    for (uint s = 0; s < SLOTS; s++) {
        sums[s] = simd_sum(sums[s]) * (INT8 ? input.scale : 1.0f);
    }
    // One lane a row.
    #pragma unroll
    for (uint s = 0; s < SLOTS; s++) {
        const uint row = first + s;
        if (lane == s && s < rows_of(SLOTS) && row < tile.rows) {
            if (EPILOGUE == GATE) {
                finish(tile, 0, row, sums[(2 * s) % SLOTS], sums[(2 * s + 1) % SLOTS]);
            } else {
                finish(tile, 0, row, sums[s], 0.0f);
            }
        }
    }
}

FOR_EVERY_STORAGE(matvec)
