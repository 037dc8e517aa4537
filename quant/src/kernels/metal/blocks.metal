// How a stored row becomes numbers: one struct for each storage, as the formats' block layouts lie in the file.
//
// A row is read in pieces of PIECE columns, one piece by one lane. A piece is raw codes, one scale and one bias:
//     weight = scale * code + bias
// Zero points are in the bias (-8 scales for int4-g32, -1 scale for ternary codes). Both products are exact in float, so
// that a weight has the very bits that the portable decoder gives, fused into one operation or not.
//
// What each storage says:
//     load(...)            piece p of a row of `cols` columns; codes of columns past the end are 0
//     Columns, which columns a piece has:
//         PIECE, RUNS      how many, and in how many runs of four consecutive ones they lie
//         first(p)         the first column of piece p
//         run(r)           columns from there to run r
//         place(r, e)      which code of the piece belongs to column e of run r
//     Codes, what a word means:
//         raw(piece, i)    code i divided by unit(i), a power of two: codes are masked, not shifted, and activations
//                          are multiplied by the unit instead. Powers of two keep both exact.
//         HAS_BIAS         whether the bias may be other than 0
//
// Knows no products. A matrix begins at a multiple of 4 bytes; blocks of 18, 34 and 66 bytes at multiples of 2.

#include <metal_stdlib>
using namespace metal;

// Weights that share a scale and a bias, and how those are stored: of affine blocks only.
constant uint GROUP [[function_constant(5)]];
constant bool BF16_SCALES [[function_constant(6)]];

constant constexpr uint SIMD = 32;

inline float from_f16(ushort bits) {
    return float(as_type<half>(bits));
}

inline float from_bf16(ushort bits) {
    return as_type<float>(uint(bits) << 16);
}

// Four bytes at a multiple of 2.
inline uint word(device const ushort* at) {
    return uint(at[0]) | uint(at[1]) << 16;
}

template <uint WORDS>
struct Piece {
    uint words[WORDS];
    float scale;
    float bias;
};

// Codes of BITS bits, PER of them in a word, the first in the low bits.
template <uint BITS, uint PER>
struct Masked {
    static constant constexpr bool HAS_BIAS = true;

    template <uint WORDS>
    static float raw(thread const Piece<WORDS>& piece, uint i) {
        const uint mask = (1u << BITS) - 1u;
        return float(piece.words[i / PER] & (mask << (BITS * (i % PER))));
    }

    static float unit(uint i) {
        return as_type<float>((127u - BITS * (i % PER)) << 23);
    }
};

// Four bytes a word, signed.
struct SignedBytes {
    static constant constexpr bool HAS_BIAS = false;

    static float raw(thread const Piece<4>& piece, uint i) {
        return float(as_type<char4>(piece.words[i / 4])[i % 4]);
    }

    static float unit(uint) {
        return 1.0f;
    }
};

// A float a word.
struct Whole {
    static constant constexpr bool HAS_BIAS = false;

    static float raw(thread const Piece<8>& piece, uint i) {
        return as_type<float>(piece.words[i]);
    }

    static float unit(uint) {
        return 1.0f;
    }
};

// Columns in the order of their codes.
template <uint LENGTH>
struct Consecutive {
    static constant constexpr uint PIECE = LENGTH;
    static constant constexpr uint RUNS = LENGTH / 4;

    static uint first(uint p) {
        return PIECE * p;
    }

    static uint run(uint r) {
        return 4 * r;
    }

    static uint place(uint r, uint e) {
        return 4 * r + e;
    }
};

// Bytes j of 16 hold columns j (low nibble) and j + 16; a piece is 8 bytes.
struct Halves {
    static constant constexpr uint PIECE = 16;
    static constant constexpr uint RUNS = 4;

    static uint first(uint p) {
        return 32 * (p / 2) + 8 * (p % 2);
    }

    static uint run(uint r) {
        return 4 * (r % 2) + 16 * (r / 2);
    }

    static uint place(uint r, uint e) {
        return 8 * (r % 2) + 2 * e + r / 2;
    }
};

// Bytes m of 32 hold columns m, m + 32, m + 64, m + 96; a piece is 4 bytes.
struct Stripes {
    static constant constexpr uint PIECE = 16;
    static constant constexpr uint RUNS = 4;

    static uint first(uint p) {
        return 128 * (p / 8) + 4 * (p % 8);
    }

    static uint run(uint r) {
        return 32 * r;
    }

    static uint place(uint r, uint e) {
        return 4 * e + r;
    }
};

// 18 bytes: f16 scale, two nibbles a byte in halves.
struct Int4G32 {
    using Columns = Halves;
    using Codes = Masked<4, 8>;

    static Piece<2> load(device const uchar* row, uint p, uint, float) {
        device const ushort* block = (device const ushort*)(row + 18 * (p / 2));
        device const ushort* codes = block + 1 + 4 * (p % 2);
        const float scale = from_f16(block[0]);
        return {{word(codes), word(codes + 2)}, scale, -8.0f * scale};
    }
};

// 34 bytes: f16 scale, 32 signed bytes.
struct Int8G32 {
    using Columns = Consecutive<16>;
    using Codes = SignedBytes;

    static Piece<4> load(device const uchar* row, uint p, uint, float) {
        device const ushort* block = (device const ushort*)(row + 34 * (p / 2));
        device const ushort* codes = block + 1 + 8 * (p % 2);
        return {{word(codes), word(codes + 2), word(codes + 4), word(codes + 6)}, from_f16(block[0]), 0.0f};
    }
};

// A scale or bias of an affine block.
inline float stored(ushort bits) {
    return BF16_SCALES ? from_bf16(bits) : from_f16(bits);
}

// Where piece p of a row of affine blocks lies: the first byte of its block, and the piece within that.
inline uint2 affine_place(uint p, uint bits) {
    const uint pieces = GROUP / 16;
    return uint2((p / pieces) * (4 + GROUP * bits / 8), p % pieces);
}

// The first or second three of six bytes at a multiple of 2; no code is in the fourth byte of the word.
inline uint eight_codes(device const ushort* at, uint which) {
    const uint low = at[which];
    const uint high = at[which + 1];
    return which == 0 ? low | high << 16 : low >> 8 | high << 8;
}

// 4 + GROUP·BITS/8 bytes: scale, bias, then a little-endian bit stream, whose words of eight 3-bit codes have 24 bits.
template <uint BITS>
struct Affine {
    using Columns = Consecutive<16>;
    using Codes = Masked<BITS, BITS == 8 ? 4 : BITS == 2 ? 16 : 8>;
    static constant constexpr uint WORDS = BITS == 3 ? 2 : BITS / 2;

    static Piece<WORDS> load(device const uchar* row, uint p, uint, float) {
        const uint2 place = affine_place(p, BITS);
        device const uchar* block = row + place[0];
        device const ushort* header = (device const ushort*)block;
        device const uchar* codes = block + 4 + 2 * BITS * place[1];
        Piece<WORDS> piece;
        piece.scale = stored(header[0]);
        piece.bias = stored(header[1]);
        for (uint i = 0; i < WORDS; i++) {
            piece.words[i] = BITS == 3 ? eight_codes((device const ushort*)codes, i) : ((device const uint*)codes)[i];
        }
        return piece;
    }
};

// 18 bytes: f16 scale, four consecutive codes a byte.
struct TernaryG64 {
    using Columns = Consecutive<16>;
    using Codes = Masked<2, 16>;

    static Piece<1> load(device const uchar* row, uint p, uint, float) {
        device const ushort* block = (device const ushort*)(row + 18 * (p / 4));
        const float scale = from_f16(block[0]);
        return {{word(block + 1 + 2 * (p % 4))}, scale, -scale};
    }
};

// 66 bytes: two times 32 bytes of stripes, f16 scale.
struct TernaryG256 {
    using Columns = Stripes;
    using Codes = Masked<2, 16>;

    static Piece<1> load(device const uchar* row, uint p, uint, float) {
        device const ushort* block = (device const ushort*)(row + 66 * (p / 16));
        const float scale = from_f16(block[32]);
        return {{word(block + 2 * (p % 16))}, scale, -scale};
    }
};

// Four consecutive codes a byte and nothing else; the scale is the tensor's. A row may begin at any byte, and end within
// a piece.
struct TernaryTensor {
    using Columns = Consecutive<16>;
    using Codes = Masked<2, 16>;

    static Piece<1> load(device const uchar* row, uint p, uint cols, float scale) {
        device const uchar* at = row + 4 * p;
        uint codes = 0;
        if (cols % 16 == 0) {
            // Then every row begins at a multiple of 4 bytes.
            codes = *(device const uint*)at;
        } else {
            const uint bytes = min(4u, cols / 4 - 4 * p);
            for (uint i = 0; i < bytes; i++) {
                codes |= uint(at[i]) << (8 * i);
            }
        }
        return {{codes}, scale, -scale};
    }
};

// Plain floats, of any number of columns.
template <typename T, typename T4>
struct Floats {
    using Columns = Consecutive<8>;
    using Codes = Whole;

    static uint bits(float value) {
        return as_type<uint>(value);
    }

    static uint bits(half value) {
        return as_type<uint>(float(value));
    }

    // bf16, which no older GPU has a type for.
    static uint bits(ushort value) {
        return uint(value) << 16;
    }

    static Piece<8> load(device const uchar* row, uint p, uint cols, float) {
        device const T* at = (device const T*)row + 8 * p;
        Piece<8> piece;
        piece.scale = 1.0f;
        piece.bias = 0.0f;
        if (8 * p + 8 <= cols) {
            T4 low = *(device const T4*)at;
            T4 high = *(device const T4*)(at + 4);
            #pragma unroll
            for (uint i = 0; i < 4; i++) {
                piece.words[i] = bits(T(low[i]));
                piece.words[4 + i] = bits(T(high[i]));
            }
        } else {
            #pragma unroll
            for (uint i = 0; i < 8; i++) {
                piece.words[i] = 8 * p + i < cols ? bits(at[i]) : 0u;
            }
        }
        return piece;
    }
};

// Pieces of a row, the last of which may be short.
template <typename K>
inline uint pieces_of(uint cols) {
    return (cols + K::Columns::PIECE - 1) / K::Columns::PIECE;
}

// The weights of a piece, in the order of its codes.
template <typename K, typename P>
inline void decode(thread const P& piece, thread float* weights) {
    #pragma unroll
    for (uint i = 0; i < K::Columns::PIECE; i++) {
        const float code = K::Codes::raw(piece, i) * K::Codes::unit(i);
        weights[i] = K::Codes::HAS_BIAS ? piece.scale * code + piece.bias : piece.scale * code;
    }
}

// Four consecutive floats of a row of `cols`; 0 past its end.
inline float4 four(device const float* row, uint column, uint cols) {
    if (column + 4 <= cols) {
        const packed_float4 values = *(device const packed_float4*)(row + column);
        return float4(values);
    }
    float4 values = 0.0f;
    for (uint e = 0; e < 4; e++) {
        if (column + e < cols) {
            values[e] = row[column + e];
        }
    }
    return values;
}

#define INSTANTIATE(operation, storage, ...)                            \
    template [[host_name(#operation "_" storage)]] [[kernel]]           \
    decltype(operation<__VA_ARGS__>) operation<__VA_ARGS__>;

// The kernel template `operation` for every storage.
#define FOR_EVERY_STORAGE(operation)                                    \
    INSTANTIATE(operation, "int4_g32", Int4G32)                         \
    INSTANTIATE(operation, "int8_g32", Int8G32)                         \
    INSTANTIATE(operation, "affine2", Affine<2>)                        \
    INSTANTIATE(operation, "affine3", Affine<3>)                        \
    INSTANTIATE(operation, "affine4", Affine<4>)                        \
    INSTANTIATE(operation, "affine8", Affine<8>)                        \
    INSTANTIATE(operation, "ternary_g64", TernaryG64)                   \
    INSTANTIATE(operation, "ternary_g256", TernaryG256)                 \
    INSTANTIATE(operation, "ternary_tensor", TernaryTensor)             \
    INSTANTIATE(operation, "f32", Floats<float, packed_float4>)         \
    INSTANTIATE(operation, "f16", Floats<half, packed_half4>)           \
    INSTANTIATE(operation, "bf16", Floats<ushort, packed_ushort4>)
