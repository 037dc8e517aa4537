// The order of logits, in whole numbers: fast math may not know what a NaN is.
//
// Invariant: a greater logit has a greater key, equal ones (zeros of both signs among them) the same, and every NaN the
// least of all, 0.

inline uint key_of(float logit) {
    const uint bits = as_type<uint>(logit);
    const uint magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0;
    }
    if (magnitude == 0) {
        return 0x80000000u;
    }
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
