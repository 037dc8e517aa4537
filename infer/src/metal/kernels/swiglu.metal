// gate = silu(gate) * up, where silu(x) = x / (1 + e^-x), for gates that no product could make on the way.
//
// A thread for each element.

[[kernel]] void swiglu(
    device float* gate [[buffer(0)]],      // [len]
    device const float* up [[buffer(1)]],  // [len]
    constant uint& len [[buffer(2)]],
    uint i [[thread_position_in_grid]]
) {
    if (i < len) {
        const float x = gate[i];
        // Beyond 88 the exponential would be infinite; the quotient is as good as zero long before.
        gate[i] = x / (1.0f + exp(min(-x, 88.0f))) * up[i];
    }
}
