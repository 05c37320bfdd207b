// What a variant keeps of a matrix [out, in] by itself: weights in a code, or as they are, of the rotated input, and two thin factors.
//
// R x = H (r ⊙ x), H the orthonormal Walsh-Hadamard transform over blocks of the input.
#pragma once
#include "parts.cuh"

// The kinds of weights: a code by its weights to a step (1, 2 or 4), numbers as they are, none.
const u32 AS_THEY_ARE = 8;
const u32 NO_WEIGHTS = 0;

// Numbers of a row in shared memory.
const u32 MOST_SPAN = 4096;

struct Own {
    const u32 *weights;   // [out][stride] words of 32 bits, one more after the last row: a code's stream, or bf16
    const bf16 *gains;    // [out]
    const i8 *tables;     // [kind][128]
    const u32 *signs;     // r, 32 to a word: set where it is -1
    const u8 *a;          // [rank, in]: nibbles, rows of whole bytes; or bf16
    const u8 *b;          // [rank, out], likewise
    const float *scales;  // [rank]
    u32 kind;
    u32 bits;             // to a step
    u32 stride;           // words of a row
    u32 rank;
    u32 nibbles;          // whether factors are nibbles: n is worth 2 n - 15
    float scale;          // c
};

// Number `index` of a factor's row `rank` of `width`.
DEVICE float factor(const Own &own, const u8 *of, u32 width, u32 rank, u32 index) {
    if (!own.nibbles) return widen(reinterpret_cast<const bf16 *>(of)[size_t(rank) * width + index]);
    const u32 byte = of[size_t(rank) * ((width + 1) / 2) + index / 2];
    return float(int(byte >> (4 * (index % 2)) & 15u) * 2 - 15);
}

// The windows of eight steps of a row, from step 8 `eight` on, the first one lowest.
DEVICE u64 eight_windows(const u32 *row, u32 bits, u32 eight) {
    const u32 first = bits * eight;  // bytes
    const u32 *at = row + first / 4;
    return (u64(at[1]) << 32 | at[0]) >> (8 * (first % 4));
}

// Weight `index` of a row, without its gain.
DEVICE float weight_of(const Own &own, u32 row, u32 index) {
    if (own.kind == NO_WEIGHTS) return 0.0f;
    const u32 *of_row = own.weights + size_t(row) * own.stride, step = index / own.kind;
    if (own.kind == AS_THEY_ARE) return widen(reinterpret_cast<const bf16 *>(of_row)[index]);
    const u64 windows = eight_windows(of_row, own.bits, step / 8);
    return float(own.tables[index % own.kind * 128 + (u32(windows >> (own.bits * (step % 8))) & 127u)]);
}

DEVICE float with_sign_of(const Own &own, u32 index, float x) {
    return float_of(bits_of(x) ^ (own.signs[index / 32] >> (index % 32)) << 31);
}

// H of `count` numbers in shared memory, in blocks of `size`, all threads of a block together; each stage is one addition.
DEVICE void hadamard(float *values, u32 count, u32 size, u32 threads) {
    for (u32 half = 1; half < size; half *= 2) {
        barrier();
        for (u32 pair = threadIdx.x; pair < count / 2; pair += threads) {
            const u32 low = pair / half * 2 * half + pair % half;
            const float x = values[low], y = values[low + half];
            values[low] = x + y;
            values[low + half] = x - y;
        }
    }
    barrier();
    const float scale = 1.0f / square_root(float(size));
    for (u32 i = threadIdx.x; i < count; i += threads) values[i] *= scale;
    barrier();
}

// What a block of threads has of a row: `count` numbers from `first` on, whole blocks of the transform.
struct Span {
    u32 first;
    u32 count;
    u32 size;
};

DEVICE Span span_of(u32 index, u32 span, u32 size, u32 input) {
    const u32 first = index * span;
    return Span{first, input - first < span ? input - first : span, size};
}

// Numbers of row `row` of the delta, without c, into shared memory.
DEVICE void delta_span(const Own &own, float *values, u32 row, Span span, u32 out, u32 input, u32 threads) {
    const float gain = own.kind == NO_WEIGHTS ? 0.0f : widen(own.gains[row]);
    for (u32 i = threadIdx.x; i < span.count; i += threads) {
        float value = gain * weight_of(own, row, span.first + i);
        for (u32 rank = 0; rank < own.rank; rank++) {
            const float b = own.scales[rank] * factor(own, own.b, out, rank, row);
            value = fused(b, factor(own, own.a, input, rank, span.first + i), value);
        }
        values[i] = value;
    }
    hadamard(values, span.count, span.size, threads);
    for (u32 i = threadIdx.x; i < span.count; i += threads) values[i] = with_sign_of(own, span.first + i, values[i]);
    barrier();
}
