// Two to eight tokens: out = x Wᵀ, every weight decoded once for all of them.
//
// Two simdgroups a threadgroup, each with SLOTS rows of its own; lanes run along the columns, a piece each. Loops over
// tokens have a constant number of turns, so that sums are registers; those past the last token are skipped by all.

constant constexpr uint SLOTS = 2;
constant constexpr uint SIMDGROUPS = 2;
constant constexpr uint TOKENS = 8;

template <typename K>
[[kernel]] void matfew(
    device const float* x [[buffer(0)]],
    constant Shape& shape [[buffer(1)]],
    MATRIX_BUFFERS,
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
    const uint cols = shape.cols;
    const Tile tile = tile_of(shape, group, SIMDGROUPS * SLOTS, MATRICES_BOUND);
    const uint first = tile.first + simdgroup * rows_of(SLOTS);
    Row rows[SLOTS];
    float sums[SLOTS][TOKENS];
    #pragma unroll
    for (uint s = 0; s < SLOTS; s++) {
        // The slots of a gate are a row of the first matrix and the same of the second.
        rows[s] = EPILOGUE == GATE ? row_of(tile, first, s == 1) : row_of(tile, first + s, false);
        #pragma unroll
        for (uint t = 0; t < TOKENS; t++) {
            sums[s][t] = 0.0f;
        }
    }

    for (uint p = lane; p < pieces_of<K>(cols); p += SIMD) {
        float weights[SLOTS][K::Columns::PIECE];
        #pragma unroll
        for (uint s = 0; s < SLOTS; s++) {
            decode<K>(K::load(rows[s].bytes, p, cols, rows[s].scale), weights[s]);
        }
        #pragma unroll
        for (uint t = 0; t < TOKENS; t++) {
            if (t < shape.tokens) {
                device const float* token = x + ulong(t) * cols;
                #pragma unroll
                for (uint r = 0; r < K::Columns::RUNS; r++) {
                    const float4 values = four(token, K::Columns::first(p) + K::Columns::run(r), cols);
                    #pragma unroll
                    for (uint e = 0; e < 4; e++) {
                        #pragma unroll
                        for (uint s = 0; s < SLOTS; s++) {
                            sums[s][t] += weights[s][K::Columns::place(r, e)] * values[e];
                        }
                    }
                }
            }
        }
    }

    #pragma unroll
    for (uint t = 0; t < TOKENS; t++) {
        if (t < shape.tokens) {
            const float one = simd_sum(sums[0][t]);
            const float other = simd_sum(sums[1][t]);
            // One lane a row; the other sum of a gate belongs to the same row.
            if (lane < rows_of(SLOTS) && first + lane < tile.rows) {
                finish(tile, t, first + lane, lane == 0 ? one : other, other);
            }
        }
    }
}

FOR_EVERY_STORAGE(matfew)
