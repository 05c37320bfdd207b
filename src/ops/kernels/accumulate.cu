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

// The same for values that fit into 32 bits, in f64 alone: a number below 2^51 added to 1.5 · 2^52 is rounded, and its low bits
// are the integer. `flip` is the sign bit of what is added.
template <typename T>
DEVICE T add_small(T cell, i32 level, double factor, u32 flip, u32 &wrapped) {
    const double magic = double_of(0x43380000u, 0);
    const double exact = double_of(0x43380000u, 0x80000000u ^ u32(level)) - double_of(0x43380000u, 0x80000000u);
    const i32 value = i32(low_word(with_sign(exact * factor, flip) + magic));
    const i32 before = i32(cell), sum = i32(u32(before) + u32(value));
    if (sizeof(T) == 4) wrapped |= u32((before ^ sum) & (value ^ sum)) >> 31;
    else wrapped |= u32(sum != i32(T(sum)));
    return T(sum);
}

// Cells of sixteen bytes.
template <typename T>
union Cells {
    uint4 packed;
    T one[16 / sizeof(T)];
};

// A block to 512 columns (grid x) and 32 rows (grid y), four rows to a warp; a lane has a few cells beside each other, so that a warp
// reads and writes without gaps, and all that it reads is asked for before any of it is waited for.
template <typename T>
DEVICE void accumulate(const Accumulate &a) {
    const int ROWS = 4, PIECES = sizeof(T), CELLS = 16 / sizeof(T);
    SHARED u32 signs[16];
    const u32 start = blockIdx.x * SIGNS, first = blockIdx.y * 8 * ROWS + warp_id() * ROWS;
    const bool whole = start + SIGNS <= a.cols && a.cols % 16 == 0;
    u32 levels[ROWS][PIECES][CELLS / 4];
    Cells<T> cells[ROWS][PIECES];
    double factors[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        factors[i] = first + i < a.rows ? a.factors[first + i] : 0.0;
        if (!whole || first + i >= a.rows) continue;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const size_t at = size_t(first + i) * a.cols + start + (piece * 32 + lane_id()) * CELLS;
            cells[i][piece].packed = load16_once(static_cast<const T *>(a.cells) + at);
#pragma unroll
            for (int word = 0; word < CELLS / 4; word++) levels[i][piece][word] = reinterpret_cast<const u32 *>(a.levels + at)[word];
        }
    }
    if (threadIdx.x == 0) {
        u32 words[16];
        chacha8(a.key, blockIdx.x, words);
#pragma unroll
        for (int i = 0; i < 16; i++) signs[i] = words[i];
    }
    barrier();
    bool wrapped = false;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (factors[i] == 0.0) continue;
        const u32 row = first + i, flip = a.negative[row];
        T *to = static_cast<T *>(a.cells) + size_t(row) * a.cols;
        const bool small = factors[i] < 1.6e7 && factors[i] > -1.6e7;  // 128 times it is within 31 bits
        if (whole && small) {
            u32 over = 0;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                const u32 at = (piece * 32 + lane_id()) * CELLS, own = signs[at / 32] >> (at % 32);
#pragma unroll
                for (int j = 0; j < CELLS; j++) {
                    const i32 level = i32(levels[i][piece][j / 4] << (24 - 8 * (j % 4))) >> 24;
                    T &cell = cells[i][piece].one[j];
                    cell = add_small(cell, level, factors[i], (own >> j ^ flip) << 31, over);
                }
                store16(to + start + at, cells[i][piece].packed);
            }
            wrapped |= over != 0;
        } else {
            for (u32 j = lane_id(); j < SIGNS && start + j < a.cols; j += 32) {
                const i8 level = a.levels[size_t(row) * a.cols + start + j];
                to[start + j] = add_cell(to[start + j], level, factors[i], (0u - (signs[j / 32] >> (j % 32) & 1)) ^ flip, wrapped);
            }
        }
    }
    if (wrapped) *a.wrapped = 1;
}

KERNEL(accumulate_i16, Accumulate, 256) { accumulate<i16>(a); }
KERNEL(accumulate_i32, Accumulate, 256) { accumulate<i32>(a); }
