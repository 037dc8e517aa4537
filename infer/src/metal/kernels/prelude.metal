// What every kernel of the model begins with.
//
// Knows no operation. Invariant: no infinities and no NaN are computed with, so that fast math changes roundings only.

#include <metal_stdlib>
using namespace metal;

// Below every score; a finite one, whose distance to a score is finite too.
constant constexpr float LOWEST = -3.0e38f;

// Where a pass stands. Written by the host before a prompt, by `argmax` after each token.
struct Step {
    uint position;  // of the first token
    uint tokens;
};
