// A causal convolution of each channel over the last tokens, gated before and behind:
// out[t] = c[t] * sum over j of kernel[j] * (b * u)[t - (taps - 1) + j], where a row of x is b, c and u.
//
// A thread for each channel, which goes through the tokens in their order and then keeps the last products for the next call.
// Whether there is something to remember, the position says. Sums are taken oldest token first, as on the CPU.

struct Shape {
    uint width;
    uint taps;
    uint tokens;
};

[[kernel]] void short_conv(
    device const float* x [[buffer(0)]],       // [tokens, 3 * width]
    device const float* kernel_ [[buffer(1)]], // [width, taps]
    device float* out [[buffer(2)]],           // [tokens, width]
    device float* recent [[buffer(3)]],        // [taps - 1, width], oldest first
    device const Step* step [[buffer(4)]],
    constant Shape& shape [[buffer(5)]],
    uint channel [[thread_position_in_grid]]
) {
    if (channel >= shape.width) {
        return;
    }
    const uint width = shape.width;
    const uint before = shape.taps - 1;
    const bool is_first = step->position == 0;
    for (uint token = 0; token < shape.tokens; token++) {
        float sum = 0.0f;
        for (uint tap = 0; tap < shape.taps; tap++) {
            // Counted from the oldest of the remembered rows.
            const uint at = token + tap;
            float product = 0.0f;
            if (at >= before) {
                device const float* row = x + ulong(at - before) * 3 * width;
                product = row[channel] * row[2 * width + channel];
            } else if (!is_first) {
                product = recent[at * width + channel];
            }
            sum += kernel_[channel * shape.taps + tap] * product;
        }
        out[ulong(token) * width + channel] = x[(ulong(token) * 3 + 1) * width + channel] * sum;
    }
    for (uint slot = 0; slot < before; slot++) {
        const uint at = slot + shape.tokens;
        float product = 0.0f;
        if (at >= before) {
            device const float* row = x + ulong(at - before) * 3 * width;
            product = row[channel] * row[2 * width + channel];
        } else if (!is_first) {
            product = recent[at * width + channel];
        }
        recent[slot * width + channel] = product;
    }
}
