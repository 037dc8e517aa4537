// The parts of a past that `attention_decode` has split, joined.
//
// A simdgroup for each query head; a lane for each part. Invariant: a part that saw nothing has no weight.

struct Joining {
    uint head_dim;
    uint parts;  // at most 32
};

[[kernel]] void attention_join(
    constant Joining& shape [[buffer(11)]],
    device float* out [[buffer(12)]],             // [heads, head_dim]
    device const float* partials [[buffer(13)]],  // [heads, parts, head_dim + 2]
    uint head [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]
) {
    const uint width = shape.head_dim + 2;
    device const float* of_head = partials + size_t(head) * shape.parts * width;
    device const float* own = of_head + min(lane, shape.parts - 1) * width + shape.head_dim;
    const float greatest = simd_max(own[0]);
    const float keep = lane < shape.parts ? exp(own[0] - greatest) : 0.0f;
    const float weight = keep / simd_sum(keep * own[1]);
    for (uint first = 0; first < shape.head_dim; first += 32) {
        const uint d = first + lane;
        float value = 0.0f;
        for (uint part = 0; part < shape.parts; ++part) {
            const float of_part = simd_shuffle(weight, ushort(part));
            value += d < shape.head_dim ? of_part * of_head[part * width + d] : 0.0f;
        }
        if (d < shape.head_dim) {
            out[size_t(head) * shape.head_dim + d] = value;
        }
    }
}
