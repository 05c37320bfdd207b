// S ← S ± l ⊙ (d / a) ⊙ r in fixed point: exact, so the same bits in any order and on any device.
#include "rng.cuh"

struct Accumulate {
    void *cells;            // [rows, cols], i16 or i32
    const i8 *levels;       // [rows, cols]: the archived delta
    const double *factors;  // [rows]: cells to a level; 0 for a row without a delta
    const u32 *negative;    // [rows]: all ones where the row's sign and the direction make it negative, else 0
    const u32 *key;         // [8], input side
    u32 *wrapped;           // set to 1 where a cell wrapped around
    u32 rows;
    u32 cols;
};

template <typename T>
DEVICE T add_cell(T cell, i8 level, double factor, u32 negative, bool &wrapped) {
    const u32 value = u32(rounded(double(level) * factor));
    const u32 sum = u32(i32(cell)) + ((value ^ negative) - negative);
    const long long wide = (long long)(cell) + (negative ? -(long long)(i32(value)) : (long long)(i32(value)));
    wrapped |= wide != (long long)(T(sum));
    return T(sum);
}

// A block to 512 columns (grid x) and 32 rows (grid y), four rows to a warp, sixteen columns to a lane.
template <typename T>
DEVICE void accumulate(const Accumulate &a) {
    const u32 signs = signs_of_lane(a.key, blockIdx.x);
    const u32 column = blockIdx.x * SIGNS + lane_id() * 16;
    const u32 left = column >= a.cols ? 0 : a.cols - column < 16 ? a.cols - column : 16;
    const bool whole = left == 16 && a.cols % 16 == 0;
    bool wrapped = false;
#pragma unroll 2
    for (int i = 0; i < 4; i++) {
        const u32 row = blockIdx.y * 32 + warp_id() * 4 + i;
        if (row >= a.rows) break;
        const double factor = a.factors[row];
        if (factor == 0.0) continue;
        const u32 flip = a.negative[row];
        T *cells = static_cast<T *>(a.cells) + size_t(row) * a.cols + column;
        const i8 *levels = a.levels + size_t(row) * a.cols + column;
        const int words = sizeof(T);  // uint4s to sixteen cells
        union {
            uint4 packed[words];
            T cell[16];
        } now;
        union {
            uint4 packed;
            i8 level[16];
        } delta;
        if (whole) {
            delta.packed = load16_once(levels);
#pragma unroll
            for (int word = 0; word < words; word++) now.packed[word] = load16(cells + word * 16 / words);
#pragma unroll
            for (int j = 0; j < 16; j++) {
                now.cell[j] = add_cell(now.cell[j], delta.level[j], factor, (0u - (signs >> j & 1)) ^ flip, wrapped);
            }
#pragma unroll
            for (int word = 0; word < words; word++) store16(cells + word * 16 / words, now.packed[word]);
        } else {
            for (u32 j = 0; j < left; j++) {
                cells[j] = add_cell(cells[j], levels[j], factor, (0u - (signs >> j & 1)) ^ flip, wrapped);
            }
        }
    }
    if (wrapped) *a.wrapped = 1;
}

KERNEL(accumulate_i16, Accumulate, 256) { accumulate<i16>(a); }
KERNEL(accumulate_i32, Accumulate, 256) { accumulate<i32>(a); }
