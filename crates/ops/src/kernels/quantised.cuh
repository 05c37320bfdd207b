// A matrix [out, input] in candle's q8_0 or q4_K, by rows: quants, and apart from them what turns quants into weights.
#pragma once
#include "device.cuh"

// Eight weights, from number `index` on, a multiple of eight.
struct Eight {
    float w[8];
};

// 8.5 bits. Blocks of 32 inputs: w = d (q - 128), with levels [out][input / 32] d, in f16.
struct Q8_0 {
    static DEVICE Eight eight(const u8 *quants, const u8 *levels, u32 row, u32 index, u32 input) {
        const size_t at = size_t(row) * input + index;
        const uint2 q = *reinterpret_cast<const uint2 *>(quants + at);
        const float d = half_to_float(reinterpret_cast<const u16 *>(levels)[at / 32]);
        Eight eight;
#pragma unroll
        for (int i = 0; i < 8; i++) eight.w[i] = d * float(int((i < 4 ? q.x : q.y) >> (8 * (i % 4)) & 255u) - 128);
        return eight;
    }
};

// 4.625 bits. Super-blocks of 256 inputs in blocks of 32: w = d s q - e m, with levels [out][input / 256] of 20 bytes: d and e in f16, eight
// s, eight m. An even input's quant is in the low half of its byte.
struct Q4K {
    static DEVICE Eight eight(const u8 *quants, const u8 *levels, u32 row, u32 index, u32 input) {
        const size_t at = size_t(row) * input + index;
        const u32 q = *reinterpret_cast<const u32 *>(quants + at / 2), block = index / 32 % 8;
        const u8 *level = levels + at / 256 * 20;
        const u16 *ends = reinterpret_cast<const u16 *>(level);
        const float scale = half_to_float(ends[0]) * float(level[4 + block]);
        const float minimum = half_to_float(ends[1]) * float(level[12 + block]);
        Eight eight;
#pragma unroll
        for (int i = 0; i < 8; i++) eight.w[i] = scale * float(q >> (4 * i) & 15u) - minimum;
        return eight;
    }
};
