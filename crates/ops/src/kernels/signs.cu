// The transform on activations: signs of the input side before the product, and, for banks in f32 or bf16, gains and signs of the
// output side after it. Signs are made in registers from the variant's key.
#include "images.cuh"
#include "parts.cuh"

struct SignIn {
    const void *x;    // [rows, input]
    void *out;        // [parts, input]
    const Part *parts;
    const u32 *keys;  // [variants][8], input side
    u32 input;
};

// Sixteen bytes of numbers with signs changed, by the low bits.
template <typename T>
DEVICE uint4 flipped(uint4 v, u32 signs);
template <>
DEVICE uint4 flipped<float>(uint4 v, u32 signs) {
    return make_uint4(v.x ^ signs << 31, v.y ^ (signs >> 1) << 31, v.z ^ (signs >> 2) << 31, v.w ^ (signs >> 3) << 31);
}
template <>
DEVICE uint4 flipped<bf16>(uint4 v, u32 signs) { return flipped8(v, signs); }

// A block to a part (grid x) and 4 * SIGNS columns (grid y), a warp to a block of signs.
template <typename T>
DEVICE void sign_in(const SignIn &a) {
    const Part part = a.parts[blockIdx.x];
    const u32 index = blockIdx.y * 4 + warp_id();
    const u32 column = index * SIGNS + lane_id() * 16;
    const T *x = static_cast<const T *>(a.x) + size_t(part.row) * a.input;
    T *out = static_cast<T *>(a.out) + size_t(blockIdx.x) * a.input;
    const u32 signs = signs_of_lane(a.keys + 8 * part.variant, index);
    if (a.input % 16 == 0) {
        if (column >= a.input) return;
        const u32 words = sizeof(T);  // uint4s to sixteen numbers
#pragma unroll
        for (u32 word = 0; word < words; word++) {
            const u32 first = word * 16 / words, here = signs >> first;
            store16(out + column + first, flipped<T>(load16(x + column + first), here));
        }
        return;
    }
    for (u32 i = 0; i < 16 && column + i < a.input; i++) {
        const float value = widen(x[column + i]);
        out[column + i] = narrow<T>(signs >> i & 1 ? -value : value);
    }
}

KERNEL(sign_in_f32, SignIn, 128) { sign_in<float>(a); }
KERNEL(sign_in_bf16, SignIn, 128) { sign_in<bf16>(a); }

struct SignRows {
    const void *x;        // [rows, input]
    u8 *out;              // [groups][super-blocks] images
    const Part *parts;
    const Group *groups;
    const u32 *keys;      // [variants][8], input side
    u32 input;
    u32 rows;             // of an image
};

// The rows of groups as images, for banks in tiles. A block to a row (grid x) and 4 * SIGNS columns (grid y), a warp to a block of signs:
// a lane has the sixteen inputs that a lane of a tile has.
template <typename T>
DEVICE void sign_rows(const SignRows &a) {
    const u32 row = blockIdx.x % a.rows, index = blockIdx.y * 4 + warp_id(), supers = (a.input + TILE_IN - 1) / TILE_IN;
    const Group group = a.groups[blockIdx.x / a.rows];
    const u32 super = 2 * index + lane_id() / 16;
    const bool there = row < group.count && super < supers;
    Part part;
    u32 signs = 0;
    if (row < group.count) {
        part = a.parts[group.first + row];
        signs = signs_of_lane(a.keys + 8 * part.variant, index);
    }
    await_before();
    let_next_start();
    if (!there) return;
    const u32 column = index * SIGNS + 16 * lane_id(), left = column < a.input ? a.input - column : 0;
    const T *x = static_cast<const T *>(a.x) + size_t(part.row) * a.input + column;
    u8 *image = a.out + (size_t(blockIdx.x / a.rows) * supers + super) * a.rows * IMAGE_ROW;
    put_inputs<T>(image, a.rows, row, lane_id() / 4 % 4, lane_id() % 4, x, left, a.input % 16 == 0, signs);
}

KERNEL_EARLY(sign_rows_f32, SignRows, 128, 4) { sign_rows<float>(a); }
KERNEL_EARLY(sign_rows_bf16, SignRows, 128, 4) { sign_rows<bf16>(a); }

struct SignOut {
    const float *products;  // [parts, out]
    float *y;               // [rows, pitch]
    const Part *parts;      // no two of one row
    const bf16 *outputs;    // [variants][out]: c a l
    u32 out;
    u32 pitch;
};

// A block to a part (grid x) and 256 outputs (grid y).
KERNEL(sign_out, SignOut, 256) {
    const u32 output = blockIdx.y * 256 + threadIdx.x;
    if (output >= a.out) return;
    const Part part = a.parts[blockIdx.x];
    const float gain = widen(a.outputs[size_t(part.variant) * a.out + output]);
    float &y = a.y[size_t(part.row) * a.pitch + output];
    y = fused(part.weight * gain, a.products[size_t(blockIdx.x) * a.out + output], y);
}
