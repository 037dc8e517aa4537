// gate = max(gate, 0)² * up, for gates that no product could make on the way.
//
// A thread for each element.

[[kernel]] void relu2(
    device float* gate [[buffer(0)]],      // [len]
    device const float* up [[buffer(1)]],  // [len]
    constant uint& len [[buffer(2)]],
    uint i [[thread_position_in_grid]]
) {
    if (i < len) {
        const float open = max(gate[i], 0.0f);
        gate[i] = open * open * up[i];
    }
}
