// Attention of one token over its past, with its own key and value taken into the cache on the way.
//
// A threadgroup for each key/value head and each part of the past. Its simdgroups share out the query heads of the group
// and, where there are fewer heads than simdgroups, the keys in stripes. Eight lanes read a key together, so that a
// simdgroup has four keys in hand at a time. Each eight lanes have an online softmax of their own (arXiv 1805.02867);
// these are joined at the end: lanes by shuffles, stripes through threadgroup memory, parts by `attention_join`.
//
// Knows no other token. Invariant: the cache at the token's position is written by part 0 alone and read by nobody in
// this dispatch: what is attended there comes from registers, rounded as the cache rounds it.

constant bool SPLIT [[function_constant(3)]];

// Most simdgroups of a threadgroup.
constant constexpr uint MOST = 8;
// Lanes that share a key.
constant constexpr uint LANES = 8;
// Keys that a lane takes part in before weights are made of their scores.
constant constexpr uint ROUND = 4;
constant constexpr uint BLOCK = ROUND * (32 / LANES);

// A softmax under way: the greatest score, the sum of weights e^(score - greatest), the values under these weights.
// A lane has four elements of a head for each c: those from 4 * (lane % LANES + LANES * c) on.
template <uint CHUNKS>
struct Online {
    float greatest;
    float sum;
    float4 values[CHUNKS];
};

// What threadgroup memory holds of the stripes.
struct Stripes {
    threadgroup float* values;    // [simdgroups, WIDTH]
    threadgroup float* greatest;  // [simdgroups]
    threadgroup float* sums;      // the same
};

inline uint element_of(uint lane, uint c) { return 4 * (lane % LANES + LANES * c); }

// Weights become relative to a greater score.
template <uint CHUNKS>
inline void raise(thread Online<CHUNKS>& seen, float to) {
    const float shrink = exp(seen.greatest - to);
    seen.greatest = to;
    seen.sum *= shrink;
#pragma unroll
    for (uint c = 0; c < CHUNKS; ++c) {
        seen.values[c] *= shrink;
    }
}

// The sum over the lanes that share a key.
inline float sum_of_key(float x) {
    for (ushort far = 1; far < LANES; far *= 2) {
        x += simd_shuffle_xor(x, far);
    }
    return x;
}

// What a simdgroup has seen when it begins: nothing, or (`is_first`) the token itself, whose key and value lie in
// threadgroup memory. The first of its lanes see it.
template <uint CHUNKS>
inline Online<CHUNKS> beginning(
    thread const float4* query, threadgroup const float* key, threadgroup const float* value, bool is_first, uint lane
) {
    Online<CHUNKS> seen;
    const bool sees = is_first && lane < LANES;
    float score = 0.0f;
#pragma unroll
    for (uint c = 0; c < CHUNKS; ++c) {
        const uint at = element_of(lane, c);
        const bool inside = sees && at < HEAD_DIM;
        score += inside ? dot(query[c], load4(key + at)) : 0.0f;
        seen.values[c] = inside ? load4(value + at) : float4(0.0f);
    }
    score = sum_of_key(score);
    seen.greatest = sees ? score : LOWEST;
    seen.sum = sees ? 1.0f : 0.0f;
    return seen;
}

// Where the keys and values of a head are: from `row` on, `capacity` positions, around which go those from `begin` on.
struct Ring {
    size_t row;
    uint begin;
    uint capacity;

    size_t row_of(uint position) const { return row + place_of(position, begin, capacity); }
};

// Up to BLOCK keys and values of the cache from position `first` on; there are none from `end` on.
template <typename Kv, uint CHUNKS>
inline void see_block(
    thread Online<CHUNKS>& seen, thread const float4* query, device const typename Kv::Code* keys,
    device const typename Kv::Code* values, device const half* key_scales, device const half* value_scales,
    Ring ring, uint first, uint end, uint lane
) {
    float scores[ROUND];
    float greatest = seen.greatest;
#pragma unroll
    for (uint n = 0; n < ROUND; ++n) {
        const uint position = first + lane / LANES + n * (32 / LANES);
        float score = 0.0f;
        if (position < end) {
            const size_t row = ring.row_of(position);
#pragma unroll
            for (uint c = 0; c < CHUNKS; ++c) {
                const uint at = element_of(lane, c);
                score += at < HEAD_DIM ? dot(query[c], Kv::codes(keys, row * HEAD_DIM + at)) : 0.0f;
            }
            score *= Kv::scale(key_scales, row);
        }
        scores[n] = sum_of_key(score);
        greatest = position < end ? max(greatest, scores[n]) : greatest;
    }
    raise(seen, greatest);
#pragma unroll
    for (uint n = 0; n < ROUND; ++n) {
        const uint position = first + lane / LANES + n * (32 / LANES);
        if (position < end) {
            const size_t row = ring.row_of(position);
            const float weight = exp(scores[n] - greatest);
            seen.sum += weight;
            const float scaled = weight * Kv::scale(value_scales, row);
#pragma unroll
            for (uint c = 0; c < CHUNKS; ++c) {
                const uint at = element_of(lane, c);
                if (at < HEAD_DIM) {
                    seen.values[c] += scaled * Kv::codes(values, row * HEAD_DIM + at);
                }
            }
        }
    }
}

// Joins what the lanes have seen, and leaves it to the other simdgroups.
template <uint CHUNKS>
inline void leave(thread Online<CHUNKS>& seen, Stripes stripes, uint width, uint simdgroup, uint lane) {
    for (ushort far = LANES; far < 32; far *= 2) {
        raise(seen, max(seen.greatest, simd_shuffle_xor(seen.greatest, far)));
        seen.sum += simd_shuffle_xor(seen.sum, far);
#pragma unroll
        for (uint c = 0; c < CHUNKS; ++c) {
            seen.values[c] += simd_shuffle_xor(seen.values[c], far);
        }
    }
#pragma unroll
    for (uint c = 0; c < CHUNKS; ++c) {
        const uint at = element_of(lane, c);
        if (lane < LANES && at < HEAD_DIM) {
            store4(stripes.values + simdgroup * width + at, seen.values[c]);
        }
    }
    if (lane == 0) {
        stripes.greatest[simdgroup] = seen.greatest;
        stripes.sums[simdgroup] = seen.sum;
    }
}

// Joins `count` stripes of a head from `first` on: the mean of the values, or (SPLIT) their sum under the weights, the
// greatest score and the sum of weights.
inline void join_stripes(Stripes stripes, uint width, uint first, uint count, device float* out, uint lane) {
    float greatest = LOWEST;
    for (uint s = first; s < first + count; ++s) {
        greatest = max(greatest, stripes.greatest[s]);
    }
    float sum = 0.0f;
    for (uint s = first; s < first + count; ++s) {
        sum += stripes.sums[s] * exp(stripes.greatest[s] - greatest);
    }
    for (uint d = lane; d < HEAD_DIM; d += 32) {
        float value = 0.0f;
        for (uint s = first; s < first + count; ++s) {
            value += stripes.values[s * width + d] * exp(stripes.greatest[s] - greatest);
        }
        out[d] = SPLIT ? value : value / sum;
    }
    if (SPLIT && lane == 0) {
        out[HEAD_DIM] = greatest;
        out[HEAD_DIM + 1] = sum;
    }
}

template <typename Kv, uint WIDTH>
[[kernel]] void attention_decode(
    device const float* q [[buffer(0)]],                                // [heads, HEAD_DIM]
    device const float* k [[buffer(1)]],                                // [kv_heads, HEAD_DIM]
    device const float* v [[buffer(2)]],                                // the same
    device const float* q_norm [[buffer(3), function_constant(NORM)]],  // [HEAD_DIM]
    device const float* k_norm [[buffer(4), function_constant(NORM)]],  // the same
    device const float* angles [[buffer(5), function_constant(ROPE)]],  // [positions, cosines then sines, ROTARY / 2]
    device typename Kv::Code* keys [[buffer(6)]],                       // [kv_heads, capacity, HEAD_DIM]
    device typename Kv::Code* values [[buffer(7)]],                     // the same
    device half* key_scales [[buffer(8)]],                              // [kv_heads, capacity]
    device half* value_scales [[buffer(9)]],                            // the same
    device const Step& step [[buffer(10)]],
    constant Shape& shape [[buffer(11)]],
    device float* out [[buffer(12)]],                                 // [heads, HEAD_DIM]
    device float* partials [[buffer(13), function_constant(SPLIT)]],  // [heads, parts, HEAD_DIM + 2]
    uint2 at [[threadgroup_position_in_grid]],
    uint2 grid [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]
) {
    constexpr uint CHUNKS = WIDTH / (4 * LANES);
    // Of float4, so that four elements may be read at once.
    threadgroup float4 own[2][WIDTH / 4];
    threadgroup float4 rows[MOST][WIDTH / 4];
    threadgroup float greatest[MOST];
    threadgroup float sums[MOST];
    threadgroup float* own_key = (threadgroup float*)own;
    threadgroup float* own_value = own_key + WIDTH;
    const Stripes seen_by = {(threadgroup float*)rows, greatest, sums};
    threadgroup float* row = seen_by.values + simdgroup * WIDTH;

    const uint kv_head = at.x;
    const uint oldest = oldest_of(step.position, shape.window);
    const Ring ring = {size_t(kv_head) * shape.capacity, round_of(oldest, shape.capacity), shape.capacity};
    const size_t own_row = ring.row_of(step.position);
    const size_t from = size_t(kv_head) * HEAD_DIM;
    if (at.y == 0 && simdgroup == 0) {
        Head key = turned_head(k + from, k_norm, angles, step.position, shape.eps, lane);
        Kv::keep(key, keys, key_scales, own_row, lane);
        store_head(key, own_key, lane);
    }
    if (at.y == 0 && simdgroup == simdgroups - 1) {
        Head value = load_head(v + from, lane);
        Kv::keep(value, values, value_scales, own_row, lane);
        store_head(value, own_value, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const uint len = (step.position - oldest + grid.y - 1) / grid.y;
    const uint begin = min(oldest + at.y * len, step.position);
    const uint end = min(begin + len, step.position);
    const uint group = shape.heads / shape.kv_heads;
    const uint at_once = min(group, simdgroups);
    const uint stripes = simdgroups / at_once;
    const uint stripe = simdgroup % stripes;
    for (uint round = 0; round < group; round += at_once) {
        const uint of_group = round + simdgroup / stripes;
        const bool is_active = simdgroup / stripes < at_once && of_group < group;
        const uint head = kv_head * group + of_group;
        if (is_active) {
            Head turned = turned_head(q + size_t(head) * HEAD_DIM, q_norm, angles, step.position, shape.eps, lane);
            scale_head(turned, shape.scale);
            store_head(turned, row, lane);
            simdgroup_barrier(mem_flags::mem_threadgroup);
            float4 query[CHUNKS];
#pragma unroll
            for (uint c = 0; c < CHUNKS; ++c) {
                const uint element = element_of(lane, c);
                query[c] = element < HEAD_DIM ? load4(row + element) : float4(0.0f);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            Online<CHUNKS> seen = beginning<CHUNKS>(query, own_key, own_value, at.y == 0 && stripe == 0, lane);
            for (uint key = begin + stripe * BLOCK; key < end; key += stripes * BLOCK) {
                see_block<Kv, CHUNKS>(seen, query, keys, values, key_scales, value_scales, ring, key, end, lane);
            }
            leave<CHUNKS>(seen, seen_by, WIDTH, simdgroup, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (is_active && stripe == 0) {
            device float* partial = partials + (size_t(head) * grid.y + at.y) * (HEAD_DIM + 2);
            join_stripes(seen_by, WIDTH, simdgroup, stripes, SPLIT ? partial : out + size_t(head) * HEAD_DIM, lane);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}

#define DECODE(KV, NAME, WIDTH) \
    template [[host_name("attention_decode_" NAME "_" #WIDTH)]] [[kernel]] \
    decltype(attention_decode<KV, WIDTH>) attention_decode<KV, WIDTH>;
#define DECODE_WIDTHS(KV, NAME) DECODE(KV, NAME, 64) DECODE(KV, NAME, 96) DECODE(KV, NAME, 128) DECODE(KV, NAME, 256)

DECODE_WIDTHS(KvF16, "f16")
DECODE_WIDTHS(KvInt8, "int8")
