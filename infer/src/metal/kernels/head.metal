// One head of one token in the registers of a simdgroup: its RMS norm and its rotation.
//
// Lane l has the pairs of i = l, l + 32, ...: first those that a rotation turns, (i, i + ROTARY / 2), then the rest, in halves too.
// Knows no cache and no scores. Invariant: pairs past the head are zeros, and are never read from memory nor written to it.

// At most 256, a multiple of 4.
constant uint HEAD_DIM [[function_constant(0)]];
constant bool NORM [[function_constant(1)]];
constant bool ROPE [[function_constant(2)]];
// Elements that a rotation turns, the first of the head: at least 2, even, at most HEAD_DIM.
constant uint ROTARY [[function_constant(4)]];

// Pairs of a lane when heads are as wide as they may be: 256.
constant constexpr uint PAIRS = 4;

struct Shape {
    uint heads;
    uint kv_heads;
    uint capacity;  // positions of the cache, which later ones go around
    float eps;      // of the head norms
    float scale;    // of the scores
    uint window;    // positions that a token sees, its own included
};

struct Head {
    float left[PAIRS];
    float right[PAIRS];
};

// Where the two elements of pair i stand.
inline uint left_of(uint i) { return i < ROTARY / 2 ? i : i + ROTARY / 2; }

inline uint right_of(uint i) { return i < ROTARY / 2 ? i + ROTARY / 2 : i + HEAD_DIM / 2; }

// The first position that is seen from `position`.
inline uint oldest_of(uint position, uint window) { return position < window ? 0 : position - window + 1; }

// The round that `position` stands in, by its first position.
inline uint round_of(uint position, uint capacity) { return position / capacity * capacity; }

// The place of `position` among the cached ones: it is in round `begin`, or in the one after.
inline uint place_of(uint position, uint begin, uint capacity) {
    const uint place = position - begin;
    return place < capacity ? place : place - capacity;
}

inline Head load_head(device const float* x, uint lane) {
    Head head;
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        const uint i = lane + 32 * n;
        head.left[n] = i < HEAD_DIM / 2 ? x[left_of(i)] : 0.0f;
        head.right[n] = i < HEAD_DIM / 2 ? x[right_of(i)] : 0.0f;
    }
    return head;
}

// `out` is device or threadgroup memory.
template <typename Out>
inline void store_head(thread const Head& head, Out out, uint lane) {
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        const uint i = lane + 32 * n;
        if (i < HEAD_DIM / 2) {
            out[left_of(i)] = head.left[n];
            out[right_of(i)] = head.right[n];
        }
    }
}

inline void scale_head(thread Head& head, float factor) {
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        head.left[n] *= factor;
        head.right[n] *= factor;
    }
}

// x / sqrt(mean(x^2) + eps) * weight
inline void norm_head(thread Head& head, device const float* weight, float eps, uint lane) {
    float squares = 0.0f;
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        squares += head.left[n] * head.left[n] + head.right[n] * head.right[n];
    }
    const float inverse = precise::rsqrt(simd_sum(squares) / float(HEAD_DIM) + eps);
    const Head weights = load_head(weight, lane);
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        head.left[n] = head.left[n] * inverse * weights.left[n];
        head.right[n] = head.right[n] * inverse * weights.right[n];
    }
}

// `angles`: the cosines of a position, then its sines.
inline void rotate_head(thread Head& head, device const float* angles, uint lane) {
#pragma unroll
    for (uint n = 0; n < PAIRS; ++n) {
        const uint i = lane + 32 * n;
        if (i < ROTARY / 2) {
            const float cosine = angles[i];
            const float sine = angles[i + ROTARY / 2];
            const float left = head.left[n];
            const float right = head.right[n];
            head.left[n] = left * cosine - right * sine;
            head.right[n] = right * cosine + left * sine;
        }
    }
}

// A head of a query or a key as attention needs it. `angles` begins at position 0.
inline Head turned_head(
    device const float* x, device const float* weight, device const float* angles, uint position, float eps, uint lane
) {
    Head head = load_head(x, lane);
    if (NORM) {
        norm_head(head, weight, eps, lane);
    }
    if (ROPE) {
        rotate_head(head, angles + size_t(position) * ROTARY, lane);
    }
    return head;
}

// Four elements of a row in threadgroup memory that begins at a multiple of 16 bytes.
inline float4 load4(threadgroup const float* from) { return *(threadgroup const float4*)from; }

inline void store4(threadgroup float* to, float4 x) {
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}
