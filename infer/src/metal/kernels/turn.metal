// Many tokens: norm and rotation of query and key heads, and keys and values into the cache.
//
// A simdgroup for each head of each token: query heads, then key heads, then value heads. Knows no scores. Invariant:
// queries are turned in place; the cache is written at the positions of this pass only.

template <typename Kv>
[[kernel]] void turn(
    device float* q [[buffer(0)]],                                      // [tokens, heads, HEAD_DIM]
    device const float* k [[buffer(1)]],                                // [tokens, kv_heads, HEAD_DIM]
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
    uint2 at [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]
) {
    const uint token = at.y;
    if (token >= step.tokens) {
        return;
    }
    const uint position = step.position + token;
    if (at.x < shape.heads) {
        device float* head = q + (size_t(token) * shape.heads + at.x) * HEAD_DIM;
        const Head turned = turned_head(head, q_norm, angles, position, shape.eps, lane);
        store_head(turned, head, lane);
        return;
    }
    const uint place = at.x - shape.heads;
    const uint kv_head = place % shape.kv_heads;
    const size_t from = (size_t(token) * shape.kv_heads + kv_head) * HEAD_DIM;
    const size_t row = size_t(kv_head) * shape.capacity + position % shape.capacity;
    if (place < shape.kv_heads) {
        Head key = turned_head(k + from, k_norm, angles, position, shape.eps, lane);
        Kv::keep(key, keys, key_scales, row, lane);
    } else {
        Head value = load_head(v + from, lane);
        Kv::keep(value, values, value_scales, row, lane);
    }
}

template [[host_name("turn_f16")]] [[kernel]] decltype(turn<KvF16>) turn<KvF16>;
template [[host_name("turn_int8")]] [[kernel]] decltype(turn<KvInt8>) turn<KvInt8>;
