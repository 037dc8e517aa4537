// Many tokens: out = x Wᵀ in tiles of 64 rows by 32 tokens, 32 columns at a time, on 8 by 8 simdgroup matrices of float.
//
// Four simdgroups a threadgroup; each multiplies 32 rows by 16 tokens. Columns are taken in the order of the pieces' codes,
// the activations' as the weights', so that no storage has to be unscrambled: a sum doesn't mind its order. Rows, tokens
// and columns past the ends are zeros, or are not stored.

constant constexpr uint ROWS = 64;
constant constexpr uint TOKENS = 32;
constant constexpr uint STEP = 32;
constant constexpr uint THREADS = 128;
// Floats of an 8 by 8 matrix, which lie together in threadgroup memory.
constant constexpr uint BLOCK = 64;

// Where the weight of column k and row r of a tile lies: matrices of [8 columns, 8 rows], ROWS / 8 of them side by side.
inline uint weight_at(uint k, uint r) {
    return BLOCK * ((k / 8) * (ROWS / 8) + r / 8) + 8 * (k % 8) + r % 8;
}

// Where the activation of token t and column k lies: matrices of [8 tokens, 8 columns].
inline uint token_at(uint t, uint k) {
    return BLOCK * ((k / 8) * (TOKENS / 8) + t / 8) + 8 * (t % 8) + k % 8;
}

// Two threads a row, half of the step's pieces each.
template <typename K>
inline void load_weights(thread const Row& row, uint step, uint cols, uint thread_index, threadgroup float* weights) {
    const uint half_step = STEP / K::Columns::PIECE / 2;
    const uint half_index = thread_index % 2;
    #pragma unroll
    for (uint q = 0; q < half_step; q++) {
        const uint in_step = half_index * half_step + q;
        const uint p = step * (STEP / K::Columns::PIECE) + in_step;
        float values[K::Columns::PIECE] = {};
        if (p < pieces_of<K>(cols)) {
            decode<K>(K::load(row.bytes, p, cols, row.scale), values);
        }
        #pragma unroll
        for (uint i = 0; i < K::Columns::PIECE; i++) {
            weights[weight_at(K::Columns::PIECE * in_step + i, thread_index / 2)] = values[i];
        }
    }
}

// Four threads a token, two runs of four columns each.
template <typename K>
inline void load_tokens(device const float* x, constant Shape& shape, uint step, uint first_token, uint thread_index,
                        threadgroup float* tokens) {
    const uint t = thread_index / 4;
    const bool is_token = first_token + t < shape.tokens;
    device const float* token = x + ulong(is_token ? first_token + t : 0) * shape.cols;
    #pragma unroll
    for (uint i = 0; i < 2; i++) {
        const uint run = 2 * (thread_index % 4) + i;
        const uint in_step = run / K::Columns::RUNS;
        const uint r = run % K::Columns::RUNS;
        // A piece past the end has columns past the end, which are zeros.
        const uint p = step * (STEP / K::Columns::PIECE) + in_step;
        float4 values = 0.0f;
        if (is_token) {
            values = four(token, K::Columns::first(p) + K::Columns::run(r), shape.cols);
        }
        #pragma unroll
        for (uint e = 0; e < 4; e++) {
            tokens[token_at(t, K::Columns::PIECE * in_step + K::Columns::place(r, e))] = values[e];
        }
    }
}

template <typename K>
[[kernel]] void matmul(
    device const float* x [[buffer(0)]],
    constant Shape& shape [[buffer(1)]],
    MATRIX_BUFFERS,
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    // First the weights of a step, at last the outputs [TOKENS, ROWS].
    threadgroup float weights[ROWS * STEP];
    threadgroup float tokens[TOKENS * STEP];

    const Tile tile = tile_of(shape, group.x, ROWS, MATRICES_BOUND);
    const uint first_token = group.y * TOKENS;
    // The upper half of the rows of a gate are those of the second matrix.
    const uint own = thread_index / 2;
    const Row row = row_of(tile, tile.first + own % rows_of(ROWS), own >= rows_of(ROWS));

    const uint row_block = 4 * (simdgroup % 2);
    const uint token_block = 2 * (simdgroup / 2);
    simdgroup_float8x8 sums[2][4];
    #pragma unroll
    for (uint t = 0; t < 2; t++) {
        #pragma unroll
        for (uint r = 0; r < 4; r++) {
            sums[t][r] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
    }

    const uint steps = (pieces_of<K>(shape.cols) * K::Columns::PIECE + STEP - 1) / STEP;
    for (uint step = 0; step < steps; step++) {
        load_weights<K>(row, step, shape.cols, thread_index, weights);
        load_tokens<K>(x, shape, step, first_token, thread_index, tokens);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        #pragma unroll
        for (uint k = 0; k < STEP / 8; k++) {
            simdgroup_float8x8 of_tokens[2];
            simdgroup_float8x8 of_rows[4];
            #pragma unroll
            for (uint t = 0; t < 2; t++) {
                simdgroup_load(of_tokens[t], tokens + BLOCK * (k * (TOKENS / 8) + token_block + t), 8);
            }
            #pragma unroll
            for (uint r = 0; r < 4; r++) {
                simdgroup_load(of_rows[r], weights + BLOCK * (k * (ROWS / 8) + row_block + r), 8);
            }
            #pragma unroll
            for (uint t = 0; t < 2; t++) {
                #pragma unroll
                for (uint r = 0; r < 4; r++) {
                    simdgroup_multiply_accumulate(sums[t][r], of_tokens[t], of_rows[r], sums[t][r]);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    #pragma unroll
    for (uint t = 0; t < 2; t++) {
        #pragma unroll
        for (uint r = 0; r < 4; r++) {
            simdgroup_store(sums[t][r], weights + 8 * (token_block + t) * ROWS + 8 * (row_block + r), ROWS);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint height = rows_of(ROWS);
    for (uint i = thread_index; i < TOKENS * height; i += THREADS) {
        const uint t = i / height;
        const uint r = i % height;
        if (first_token + t < shape.tokens && tile.first + r < tile.rows) {
            const float up = EPILOGUE == GATE ? weights[t * ROWS + height + r] : 0.0f;
            finish(tile, first_token + t, tile.first + r, weights[t * ROWS + r], up);
        }
    }
}

FOR_EVERY_STORAGE(matmul)
