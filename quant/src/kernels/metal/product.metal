// What all products share: the shape, the buffers, which rows a threadgroup has, and what happens to an output.
//
// Knows no storage. The tables of buffers and constants stand beside the host's side, in product.rs.

constant bool BIAS [[function_constant(2)]];
constant uint EPILOGUE [[function_constant(3)]];
constant uint MATRICES [[function_constant(4)]];

constant constexpr uint STORE = 0;
constant constexpr uint ADD = 1;
constant constexpr uint GATE = 2;

// Which buffers are bound at all.
constant bool SECOND = MATRICES > 1;
constant bool SECOND_OUT = MATRICES > 1 && EPILOGUE != GATE;
constant bool SECOND_BIAS = MATRICES > 1 && BIAS;
constant bool THIRD = MATRICES > 2;
constant bool THIRD_BIAS = MATRICES > 2 && BIAS;

struct Shape {
    uint cols;
    uint tokens;
    uint row_bytes;
    uint rows[3];
    // Of ternary-tensor.
    float scale[3];
    float eps;
};

#define MATRIX_BUFFERS                                                          \
    device float* out0 [[buffer(3)]],                                           \
    device float* out1 [[buffer(4), function_constant(SECOND_OUT)]],            \
    device float* out2 [[buffer(5), function_constant(THIRD)]],                 \
    device const uchar* blocks0 [[buffer(6)]],                                  \
    device const uchar* blocks1 [[buffer(7), function_constant(SECOND)]],       \
    device const uchar* blocks2 [[buffer(8), function_constant(THIRD)]],        \
    device const float* bias0 [[buffer(9), function_constant(BIAS)]],           \
    device const float* bias1 [[buffer(10), function_constant(SECOND_BIAS)]],   \
    device const float* bias2 [[buffer(11), function_constant(THIRD_BIAS)]]

// The buffers again, as arguments of `tile_of`.
#define MATRICES_BOUND out0, out1, out2, blocks0, blocks1, blocks2, bias0, bias1, bias2

// Rows of one matrix that a threadgroup computes; for a gate, rows of both.
struct Tile {
    device float* out;
    device const uchar* blocks;
    device const float* bias;
    // The second matrix of a gate.
    device const uchar* up_blocks;
    device const float* up_bias;
    ulong row_bytes;
    uint rows;
    uint first;
    float scale;
    float up_scale;
};

// Threadgroups take the tiles of the first matrix, then those of the next: tile `group`, of `slots` rows. A gate has half
// of its slots in each of its two matrices.
inline Tile tile_of(
    constant Shape& shape, uint group, uint slots, device float* out0, device float* out1, device float* out2,
    device const uchar* blocks0, device const uchar* blocks1, device const uchar* blocks2, device const float* bias0,
    device const float* bias1, device const float* bias2) {
    Tile tile;
    tile.row_bytes = shape.row_bytes;
    uint matrix = 0;
    if (EPILOGUE == GATE) {
        slots /= 2;
        tile.up_blocks = blocks1;
        tile.up_bias = bias1;
        tile.up_scale = shape.scale[1];
    } else {
        while (matrix + 1 < MATRICES) {
            const uint tiles = (shape.rows[matrix] + slots - 1) / slots;
            if (group < tiles) {
                break;
            }
            group -= tiles;
            matrix++;
        }
    }
    tile.out = out0;
    tile.blocks = blocks0;
    tile.bias = bias0;
    // Conditions on constants: what is not bound is not named.
    if (MATRICES > 1 && EPILOGUE != GATE && matrix == 1) {
        tile.out = out1;
        tile.blocks = blocks1;
        tile.bias = bias1;
    }
    if (MATRICES > 2 && matrix == 2) {
        tile.out = out2;
        tile.blocks = blocks2;
        tile.bias = bias2;
    }
    tile.rows = shape.rows[matrix];
    tile.scale = shape.scale[matrix];
    tile.first = group * slots;
    return tile;
}

// Rows that a run of `slots` slots holds.
inline uint rows_of(uint slots) {
    return EPILOGUE == GATE ? slots / 2 : slots;
}

// A row of weights and its tensor's scale.
struct Row {
    device const uchar* bytes;
    float scale;
};

// Row `row` of the tile's matrix, or, for a gate, of its second one. A row past the end is the last one, whose outputs
// nobody stores.
inline Row row_of(thread const Tile& tile, uint row, bool up) {
    const ulong offset = ulong(min(row, tile.rows - 1)) * tile.row_bytes;
    if (EPILOGUE == GATE && up) {
        return {tile.up_blocks + offset, tile.up_scale};
    }
    return {tile.blocks + offset, tile.scale};
}

// Stores output `row` of `token`; `up` is that of the second matrix of a gate.
inline void finish(thread const Tile& tile, uint token, uint row, float value, float up) {
    device float* out = tile.out + ulong(token) * tile.rows + row;
    if (BIAS) {
        value += tile.bias[row];
    }
    if (EPILOGUE == GATE) {
        if (BIAS) {
            up += tile.up_bias[row];
        }
        // e^88 is finite, and past it the quotient is 0 to a float.
        const float power = precise::exp(min(-value, 88.0f));
        *out = precise::divide(value, 1.0f + power) * up;
    } else if (EPILOGUE == ADD) {
        *out += value;
    } else {
        *out = value;
    }
}
