// The most likely next token, left where the next pass looks for its id, and written down in the text.
//
// One threadgroup. Knows no model. Invariant: of equal logits the first wins, a NaN never does; where all are NaN the id
// is 0. The text is written by position, so that a pass that is repeated leaves the same text.

// Whether the step moves on to the new token.
constant bool ADVANCE [[function_constant(0)]];

struct Vocabulary {
    uint len;   // of the logits
    uint text;  // places of the text
};

[[kernel]] void argmax(
    device const float* logits [[buffer(0)]],  // [len], of the last token of the pass
    constant Vocabulary& shape [[buffer(1)]],
    device uint* ids [[buffer(2)]],   // [1]: what the next pass begins with
    device uint* text [[buffer(3)]],  // [text]: the id of each position
    device Step& step [[buffer(4)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint threads [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]
) {
    threadgroup uint keys[32];
    threadgroup uint places[32];
    uint greatest = 0;
    uint place = 0xffffffffu;
    for (uint i = thread_index; i < shape.len; i += threads) {
        const uint key = key_of(logits[i]);
        if (key > greatest || place == 0xffffffffu) {
            greatest = key;
            place = i;
        }
    }
    const uint most = simd_max(greatest);
    place = simd_min(greatest == most ? place : 0xffffffffu);
    if (lane == 0) {
        keys[simdgroup] = most;
        places[simdgroup] = place;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        uint best = 0;
        for (uint s = 1; s < simdgroups; ++s) {
            if (keys[s] > keys[best] || (keys[s] == keys[best] && places[s] < places[best])) {
                best = s;
            }
        }
        const uint next = step.position + step.tokens;
        ids[0] = places[best];
        if (next < shape.text) {
            text[next] = places[best];
        }
        if (ADVANCE) {
            step.position = next;
            step.tokens = 1;
        }
    }
}
