// to += from, for sums that no product could make on the way.
//
// A thread for each element.

[[kernel]] void add(
    device float* to [[buffer(0)]],          // [len]
    device const float* from [[buffer(1)]],  // [len]
    constant uint& len [[buffer(2)]],
    uint i [[thread_position_in_grid]]
) {
    if (i < len) {
        to[i] += from[i];
    }
}
