// gate = gelu(gate) * up with the GELU that PyTorch calls tanh, for gates that no product could make on the way.
//
// A thread for each element.

[[kernel]] void geglu(
    device float* gate [[buffer(0)]],      // [len]
    device const float* up [[buffer(1)]],  // [len]
    constant uint& len [[buffer(2)]],
    uint i [[thread_position_in_grid]]
) {
    if (i < len) {
        const float x = gate[i];
        // Half of 1 + tanh(y) is the logistic function of 2y.
        const float twice = 1.5957691f * (x + 0.044715f * x * x * x);
        // Beyond 88 the exponential would be infinite; the quotient is as good as zero long before.
        gate[i] = x / (1.0f + exp(min(-twice, 88.0f))) * up[i];
    }
}
