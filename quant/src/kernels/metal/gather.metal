// Rows of a stored matrix as floats, one for each token: a thread decodes a piece.

struct Shape {
    uint cols;
    uint rows;
    uint row_bytes;
    // Of ternary-tensor.
    float scale;
    // What rows are multiplied by.
    float factor;
};

template <typename K>
[[kernel]] void gather(
    device const uint* ids [[buffer(0)]],
    constant Shape& shape [[buffer(1)]],
    device float* out [[buffer(2)]],
    device const uchar* blocks [[buffer(3)]],
    uint2 position [[thread_position_in_grid]]) {
    const uint p = position.x;
    if (p < pieces_of<K>(shape.cols)) {
        // The host checks ids; a wrong one must still not leave the matrix.
        const uint id = min(ids[position.y], shape.rows - 1);
        device const uchar* row = blocks + ulong(id) * shape.row_bytes;
        float weights[K::Columns::PIECE];
        decode<K>(K::load(row, p, shape.cols, shape.scale), weights);
        device float* to = out + ulong(position.y) * shape.cols;
        #pragma unroll
        for (uint r = 0; r < K::Columns::RUNS; r++) {
            #pragma unroll
            for (uint e = 0; e < 4; e++) {
                const uint column = K::Columns::first(p) + K::Columns::run(r) + e;
                if (column < shape.cols) {
                    to[column] = weights[K::Columns::place(r, e)] * shape.factor;
                }
            }
        }
    }
}

FOR_EVERY_STORAGE(gather)
