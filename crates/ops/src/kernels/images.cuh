// Rows of x as the tensor cores take them beside tiles: an image of ROWS rows by 256 inputs in bfloat16, signs folded in, is
// [4][ROWS][128 bytes], the first index by 64 inputs. A row's 64 inputs lie in eight pieces of sixteen bytes, piece c at place
// c ^ (row % 8), so that rows of one piece are in different banks; piece c holds, for every t below 4, the inputs 16 t + 2 c
// and the next: what lane t of a tile has in step c / 2 of sixteen inputs.
#pragma once
#include "tiles.cuh"
#include "wgmma.cuh"

// Bytes of an image to a row.
const u32 IMAGE_ROW = 2 * TILE_IN;

// Where the pair of inputs 16 t + 2 `piece` of a row's 64 inputs `quarter` lies, in bytes.
DEVICE u32 image_pair(u32 rows, u32 quarter, u32 row, u32 piece, u32 t) {
    return (quarter * rows + row) * 128 + (piece ^ (row % 8)) * 16 + 4 * t;
}

// Puts sixteen of a row's inputs, 16 `t` and next of 64 inputs `quarter`, into an image, with signs changed by the low bits of
// `signs`. `x` is the first of them; `left` are left of the row, of which each begins at a multiple of sixteen bytes if `aligned`.
template <typename T>
DEVICE void put_inputs(u8 *image, u32 rows, u32 row, u32 quarter, u32 t, const T *x, u32 left, bool aligned, u32 signs) {
    u32 pairs[8];
    if (IsBf16<T>::yes && aligned) {
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 low = left > 0 ? load16(x) : zero, high = left > 0 ? load16(x + 8) : zero;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = word_of(low, i);
            pairs[i + 4] = word_of(high, i);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const float first = 2 * i < left ? widen(x[2 * i]) : 0.0f, second = 2 * i + 1 < left ? widen(x[2 * i + 1]) : 0.0f;
            pairs[i] = pack_bf16(first, second);
        }
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 both = signs >> (2 * i);
        *reinterpret_cast<u32 *>(image + image_pair(rows, quarter, row, i, t)) = pairs[i] ^ ((both & 1) << 15 | (both & 2) << 30);
    }
}

// sums [16 outputs, ROWS] += weights [16, 16] x^T, all of a warp's, in the fragments of mma_bf16; of four warps of a block one
// after the other, the first a multiple of four, each has sixteen outputs of its own, and all take the same `step` of sixteen of
// an image's 64 inputs `quarter`. From `products_begin` on neither sums nor weights may be touched until `products_wait`
// says so: products of up to LEFT commits may still run after it.
#ifdef TENSOR_ROWS
typedef u32 Image;
DEVICE Image image_at(const u8 *image) { return matrix_at(image); }
template <int ROWS>
DEVICE void products_of(float (&sums)[ROWS / 8][4], const u32 (&weights)[4], Image image, int quarter, int step) {
    tensor_rows<ROWS>(sums, weights, image + ((quarter * ROWS * 128 + 32 * step) >> 4));
}
#else
typedef const u8 *Image;
DEVICE Image image_at(const u8 *image) { return image; }
DEVICE void products_begin() {}
DEVICE void products_commit() {}
template <int LEFT>
DEVICE void products_wait() {}
template <int ROWS>
DEVICE void products_of(float (&sums)[ROWS / 8][4], const u32 (&weights)[4], Image image, int quarter, int step) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int column = 0; column < ROWS / 8; column++) {
        u32 x[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            x[half] = *reinterpret_cast<const u32 *>(image + image_pair(ROWS, quarter, 8 * column + g, 2 * step + half, t));
        }
        mma_bf16(sums[column], weights, x[0], x[1]);
    }
}
#endif
