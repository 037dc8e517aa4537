// How keys and values are kept: the arithmetic of the CPU's cache, bit for bit.
//
// A cache is [kv_heads, capacity, HEAD_DIM] codes and, for 8 bits, [kv_heads, capacity] scales; `row` counts heads and
// positions. Knows no attention. Invariant: `keep` leaves in the registers what `codes` and `scale` will give back.

// Half precision, rounded to nearest even; beyond its range the largest finite number.
struct KvF16 {
    typedef half Code;

    static float scale(device const half*, size_t) { return 1.0f; }

    static float4 codes(device const half* cache, size_t at) { return float4(*(device const half4*)(cache + at)); }

    static half rounded(float x) { return half(clamp(x, -65504.0f, 65504.0f)); }

    static void keep(thread Head& head, device half* cache, device half*, size_t row, uint lane) {
        device half* to = cache + row * HEAD_DIM;
        for (uint n = 0; n < PAIRS; ++n) {
            const uint i = lane + 32 * n;
            const half left = rounded(head.left[n]);
            const half right = rounded(head.right[n]);
            if (i < HEAD_DIM / 2) {
                to[left_of(i)] = left;
                to[right_of(i)] = right;
            }
            head.left[n] = float(left);
            head.right[n] = float(right);
        }
    }
};

// Codes -127..=127 times the scale of the head and position, which is rounded before codes are chosen.
struct KvInt8 {
    typedef char Code;

    static float scale(device const half* scales, size_t row) { return float(scales[row]); }

    static float4 codes(device const char* cache, size_t at) { return float4(*(device const char4*)(cache + at)); }

    static float code(float x, float inverse) { return clamp(rint(x * inverse), -127.0f, 127.0f); }

    static void keep(thread Head& head, device char* cache, device half* scales, size_t row, uint lane) {
        float peak = 0.0f;
        for (uint n = 0; n < PAIRS; ++n) {
            peak = max(peak, max(abs(head.left[n]), abs(head.right[n])));
        }
        const half stored = KvF16::rounded(precise::divide(simd_max(peak), 127.0f));
        const float scale = float(stored);
        const float inverse = scale > 0.0f ? precise::divide(1.0f, scale) : 0.0f;
        device char* to = cache + row * HEAD_DIM;
        for (uint n = 0; n < PAIRS; ++n) {
            const uint i = lane + 32 * n;
            const float left = code(head.left[n], inverse);
            const float right = code(head.right[n], inverse);
            if (i < HEAD_DIM / 2) {
                to[left_of(i)] = char(left);
                to[right_of(i)] = char(right);
            }
            head.left[n] = left * scale;
            head.right[n] = right * scale;
        }
        if (lane == 0) {
            scales[row] = stored;
        }
    }
};
