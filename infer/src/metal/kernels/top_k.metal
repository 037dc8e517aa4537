// The k most likely next tokens and their logits, the most likely first.
//
// One threadgroup. A lower bound of the k-th largest is the k-th largest of any set of at least k of the logits: at first
// of the greatest that each eight threads find among their own. All logits that reach the bound are then collected; should
// they be too many for the list, those that are in it give a higher bound, until they fit. That is once for logits as
// models make them. Knows no sampling. Invariant: what comes out depends on the logits alone: of equal ones the first comes
// first, a NaN comes after every number.

// Threads, and places of the list.
constant constexpr uint LIST = 1024;
// Threads that together give one of the first bounds; there are LIST / SHARE of them, at least as many as k may be.
constant constexpr uint SHARE = 8;

struct Choice {
    uint len;  // of the logits
    uint k;    // at most `len` and LIST / SHARE
};

// A logit and its place as one number, greater when it comes first; never 0.
inline ulong rank_of(device const float* logits, uint i) { return ulong(key_of(logits[i])) << 32 | (0xffffffffu - i); }

inline ulong greater(ulong a, ulong b) { return a > b ? a : b; }

// How many of the list come before `rank`.
inline uint count_before(ulong rank, threadgroup const ulong* list, uint len) {
    uint before = 0;
    for (uint i = 0; i < len; ++i) {
        before += list[i] > rank ? 1 : 0;
    }
    return before;
}

[[kernel]] void top_k(
    device const float* logits [[buffer(0)]],  // [len]
    constant Choice& shape [[buffer(1)]],
    device float* values [[buffer(2)]],  // [k]
    device uint* ids [[buffer(3)]],      // [k]
    uint thread_index [[thread_index_in_threadgroup]]
) {
    threadgroup ulong list[LIST];
    threadgroup ulong bound;
    threadgroup atomic_uint count;
    ulong own = 0;
    for (uint i = thread_index; i < shape.len; i += LIST) {
        own = greater(own, rank_of(logits, i));
    }
    for (ushort far = 1; far < SHARE; far *= 2) {
        const uint high = simd_shuffle_xor(uint(own >> 32), far);
        own = greater(own, ulong(high) << 32 | simd_shuffle_xor(uint(own), far));
    }
    if (thread_index % SHARE == 0) {
        list[thread_index / SHARE] = own;
    }
    uint len = LIST / SHARE;
    bool is_crowded = false;
    do {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (thread_index == 0) {
            bound = 0;
            atomic_store_explicit(&count, 0, memory_order_relaxed);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        own = thread_index < len ? list[thread_index] : 0;
        if (own != 0 && count_before(own, list, len) == shape.k - 1) {
            bound = own;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = thread_index; i < shape.len; i += LIST) {
            const ulong rank = rank_of(logits, i);
            if (rank >= bound) {
                const uint place = atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);
                if (place < LIST) {
                    list[place] = rank;
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint reached = atomic_load_explicit(&count, memory_order_relaxed);
        is_crowded = reached > LIST;
        len = min(reached, LIST);
    } while (is_crowded);
    if (thread_index < len) {
        own = list[thread_index];
        const uint before = count_before(own, list, len);
        if (before < shape.k) {
            const uint id = 0xffffffffu - uint(own);
            values[before] = logits[id];
            ids[before] = id;
        }
    }
}
