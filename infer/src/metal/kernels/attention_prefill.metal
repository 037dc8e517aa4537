// Causal attention of many tokens, whose queries are turned and whose keys and values stand in the cache.
//
// A threadgroup for each key/value head and each ROWS rows, a row being one query head of one token, so that all heads
// of a group read a tile of keys together. A simdgroup has eight rows: their queries and their weighted values stay in
// its registers as 8 x 8 matrices of floats; scores go through threadgroup memory, where the lanes make weights of them:
// four lanes a row, online softmax (arXiv 1805.02867, 2205.14135).
//
// Knows no norm and no rotation. Invariant: keys after the last token of the threadgroup are never read, and those after
// a row's own token, or outside of its window, have no weight in it.

constant constexpr uint SIMDGROUPS = 4;
constant constexpr uint ROWS = 8 * SIMDGROUPS;
constant constexpr uint KEYS = 16;
// Floats between the rows of a tile, so that rows don't begin in the same bank.
constant constexpr uint PAD = 4;

// Keys of a tile, or values, as floats; what lies past the head or past `end` is zero. A head's rows begin at `first_row`; `round` is
// that of the oldest position.
template <typename Kv, uint WIDTH>
inline void load_tile(
    threadgroup float* tile, device const typename Kv::Code* cache, device const half* scales, size_t first_row,
    uint round, uint capacity, uint first, uint end, uint thread_index
) {
    for (uint i = thread_index; i < KEYS * WIDTH / 4; i += 32 * SIMDGROUPS) {
        const uint key = first + i / (WIDTH / 4);
        const uint element = 4 * (i % (WIDTH / 4));
        float4 x = float4(0.0f);
        if (key < end && element < HEAD_DIM) {
            const size_t row = first_row + place_of(key, round, capacity);
            x = Kv::codes(cache, row * HEAD_DIM + element) * Kv::scale(scales, row);
        }
        store4(tile + i / (WIDTH / 4) * (WIDTH + PAD) + element, x);
    }
}

// Scores of eight rows become weights e^(score - greatest) of the keys from `oldest` to before `visible`; returns what the weights so
// far are to be multiplied by. A lane has the columns lane % 4, + 4, ... of row lane / 4.
inline float softmax(threadgroup float* scores, int oldest, int visible, thread float& greatest, thread float& sum, uint lane) {
    threadgroup float* row = scores + (lane / 4) * KEYS;
    float most = greatest;
    for (uint column = lane % 4; column < KEYS; column += 4) {
        most = int(column) < visible && int(column) >= oldest ? max(most, row[column]) : most;
    }
    most = max(most, simd_shuffle_xor(most, ushort(1)));
    most = max(most, simd_shuffle_xor(most, ushort(2)));
    float total = 0.0f;
    for (uint column = lane % 4; column < KEYS; column += 4) {
        const bool is_seen = int(column) < visible && int(column) >= oldest;
        const float weight = is_seen ? exp(row[column] - most) : 0.0f;
        row[column] = weight;
        total += weight;
    }
    total += simd_shuffle_xor(total, ushort(1));
    total += simd_shuffle_xor(total, ushort(2));
    const float shrink = exp(greatest - most);
    greatest = most;
    sum = sum * shrink + total;
    return shrink;
}

// Eight rows of a head, as matrices side by side.
template <uint COUNT>
struct Fragments {
    simdgroup_float8x8 of[COUNT];
};

// Queries of eight rows, of which this lane brings those of row lane / 4 from `row` on.
template <uint COUNT>
inline void load_queries(
    thread Fragments<COUNT>& queries, device const float* row, float scale, threadgroup float* scratch, uint lane
) {
#pragma unroll
    for (uint f = 0; f < COUNT; ++f) {
        for (uint n = 0; n < 2; ++n) {
            const uint element = f * 8 + lane % 4 * 2 + n;
            scratch[lane / 4 * KEYS + lane % 4 * 2 + n] = element < HEAD_DIM ? row[element] * scale : 0.0f;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_load(queries.of[f], scratch, KEYS);
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
}

// Products of eight queries and a tile of keys.
template <uint COUNT>
inline void score(thread const Fragments<COUNT>& queries, threadgroup const float* tile, threadgroup float* scores) {
    for (uint column = 0; column < KEYS; column += 8) {
        simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
#pragma unroll
        for (uint f = 0; f < COUNT; ++f) {
            simdgroup_float8x8 key;
            simdgroup_load(key, tile + column * (COUNT * 8 + PAD) + f * 8, COUNT * 8 + PAD, ulong2(0, 0), true);
            simdgroup_multiply_accumulate(sum, queries.of[f], key, sum);
        }
        simdgroup_store(sum, scores + column, KEYS);
    }
}

// Rows times the diagonal of an 8 x 8 matrix whose other elements are zero.
template <uint COUNT>
inline void shrink_rows(thread Fragments<COUNT>& sums, threadgroup const float* diagonal) {
    simdgroup_float8x8 shrinks;
    simdgroup_load(shrinks, diagonal, 8);
#pragma unroll
    for (uint f = 0; f < COUNT; ++f) {
        simdgroup_float8x8 shrunk;
        simdgroup_multiply(shrunk, shrinks, sums.of[f]);
        sums.of[f] = shrunk;
    }
}

// Adds a tile of values under the weights.
template <uint COUNT>
inline void add_values(thread Fragments<COUNT>& sums, threadgroup const float* tile, threadgroup const float* weights) {
    for (uint column = 0; column < KEYS; column += 8) {
        simdgroup_float8x8 weight;
        simdgroup_load(weight, weights + column, KEYS);
#pragma unroll
        for (uint f = 0; f < COUNT; ++f) {
            simdgroup_float8x8 value;
            simdgroup_load(value, tile + column * (COUNT * 8 + PAD) + f * 8, COUNT * 8 + PAD);
            simdgroup_multiply_accumulate(sums.of[f], weight, value, sums.of[f]);
        }
    }
}

// Stores rows times `factor`; this lane those of row lane / 4, if it is to be stored.
template <uint COUNT>
inline void store_rows(
    thread const Fragments<COUNT>& sums, float factor, bool is_stored, device float* row, threadgroup float* scratch,
    uint lane
) {
#pragma unroll
    for (uint f = 0; f < COUNT; ++f) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_store(sums.of[f], scratch, KEYS);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint n = 0; n < 2; ++n) {
            const uint element = f * 8 + lane % 4 * 2 + n;
            if (is_stored && element < HEAD_DIM) {
                row[element] = scratch[lane / 4 * KEYS + lane % 4 * 2 + n] * factor;
            }
        }
    }
}

template <typename Kv, uint WIDTH>
[[kernel]] void attention_prefill(
    device const float* q [[buffer(0)]],                   // [tokens, heads, HEAD_DIM]
    device const typename Kv::Code* keys [[buffer(6)]],    // [kv_heads, capacity, HEAD_DIM]
    device const typename Kv::Code* values [[buffer(7)]],  // the same
    device const half* key_scales [[buffer(8)]],           // [kv_heads, capacity]
    device const half* value_scales [[buffer(9)]],         // the same
    device const Step& step [[buffer(10)]],
    constant Shape& shape [[buffer(11)]],
    device float* out [[buffer(12)]],  // [tokens, heads, HEAD_DIM]
    uint2 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]
) {
    // Of float4, so that four elements may be written at once.
    threadgroup float4 tile4[KEYS * (WIDTH + PAD) / 4];
    threadgroup float scores_of[SIMDGROUPS][8 * KEYS];
    threadgroup float diagonals[SIMDGROUPS][64];
    threadgroup float* tile = (threadgroup float*)tile4;
    threadgroup float* scores = scores_of[simdgroup];
    threadgroup float* diagonal = diagonals[simdgroup];

    const uint group = shape.heads / shape.kv_heads;
    const uint rows = step.tokens * group;
    if (at.x * ROWS >= rows) {
        return;
    }
    // The row of this lane, the last of its simdgroup, and the last of the threadgroup. Rows past the end repeat the last
    // one, and are not stored.
    const uint row = at.x * ROWS + simdgroup * 8 + lane / 4;
    const uint here = min(row, rows - 1);
    const uint last = min(at.x * ROWS + simdgroup * 8 + 7, rows - 1);
    const uint last_of_all = min(at.x * ROWS + ROWS - 1, rows - 1);
    const int visible = int(step.position + here / group + 1);
    const int oldest = int(oldest_of(step.position + here / group, shape.window));
    // Tiles before the window of the threadgroup's first row are seen by nobody.
    const uint oldest_of_all = oldest_of(step.position + at.x * ROWS / group, shape.window);
    const uint seen = step.position + last / group + 1;
    const uint end = step.position + last_of_all / group + 1;
    const size_t head = size_t(here / group) * shape.heads + at.y * group + here % group;
    const size_t first_row = size_t(at.y) * shape.capacity;

    Fragments<WIDTH / 8> queries;
    Fragments<WIDTH / 8> sums;
    load_queries(queries, q + head * HEAD_DIM, shape.scale, scores, lane);
#pragma unroll
    for (uint f = 0; f < WIDTH / 8; ++f) {
        sums.of[f] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    diagonal[lane] = 0.0f;
    diagonal[lane + 32] = 0.0f;
    float greatest = LOWEST;
    float sum = 0.0f;
    const uint oldest_tile = oldest_of_all / KEYS * KEYS;
    const uint round = round_of(oldest_tile, shape.capacity);
    for (uint first = oldest_tile; first < end; first += KEYS) {
        const bool is_seen = first < seen;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile<Kv, WIDTH>(tile, keys, key_scales, first_row, round, shape.capacity, first, end, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (is_seen) {
            score(queries, tile, scores);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile<Kv, WIDTH>(tile, values, value_scales, first_row, round, shape.capacity, first, end, thread_index);
        if (is_seen) {
            const float shrink = softmax(scores, oldest - int(first), visible - int(first), greatest, sum, lane);
            if (lane % 4 == 0) {
                diagonal[lane / 4 * 9] = shrink;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            if (simd_any(shrink != 1.0f)) {
                shrink_rows(sums, diagonal);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (is_seen) {
            add_values(sums, tile, scores);
        }
    }
    store_rows(sums, precise::divide(1.0f, sum), row < rows, out + head * HEAD_DIM, scores, lane);
}

#define PREFILL(KV, NAME, WIDTH) \
    template [[host_name("attention_prefill_" NAME "_" #WIDTH)]] [[kernel]] \
    decltype(attention_prefill<KV, WIDTH>) attention_prefill<KV, WIDTH>;
#define PREFILL_WIDTHS(KV, NAME) PREFILL(KV, NAME, 64) PREFILL(KV, NAME, 96) PREFILL(KV, NAME, 128) PREFILL(KV, NAME, 256)

PREFILL_WIDTHS(KvF16, "f16")
PREFILL_WIDTHS(KvInt8, "int8")
