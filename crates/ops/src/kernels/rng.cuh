// ChaCha8 with a 32-byte key, nonce 0 and a 64-bit block counter: word i of a key is word i % 16 of block i / 16, the same as
// src/rng.rs gives.
#pragma once
#include "device.cuh"

DEVICE u32 rotate_left(u32 x, int by) { return (x << by) | (x >> (32 - by)); }

DEVICE void quarter_round(u32 &a, u32 &b, u32 &c, u32 &d) {
    a += b; d = rotate_left(d ^ a, 16);
    c += d; b = rotate_left(b ^ c, 12);
    a += b; d = rotate_left(d ^ a, 8);
    c += d; b = rotate_left(b ^ c, 7);
}

// The sixteen words of one block.
DEVICE void chacha8(const u32 *key, u64 block, u32 (&out)[16]) {
    u32 start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, key[0], key[1], key[2], key[3],
                     key[4], key[5], key[6], key[7], u32(block), u32(block >> 32), 0u, 0u};
#pragma unroll
    for (int i = 0; i < 16; i++) out[i] = start[i];
    // A loop: code that runs once is waited for.
#pragma unroll 1
    for (int round = 0; round < 4; round++) {
        quarter_round(out[0], out[4], out[8], out[12]);
        quarter_round(out[1], out[5], out[9], out[13]);
        quarter_round(out[2], out[6], out[10], out[14]);
        quarter_round(out[3], out[7], out[11], out[15]);
        quarter_round(out[0], out[5], out[10], out[15]);
        quarter_round(out[1], out[6], out[11], out[12]);
        quarter_round(out[2], out[7], out[8], out[13]);
        quarter_round(out[3], out[4], out[9], out[14]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) out[i] += start[i];
}

// Signs to a block of the stream.
const int SIGNS = 512;

// Of the block of signs `index`, this lane's: a warp's lane holds signs 16 lane .. 16 lane + 16 of it as the low bits.
DEVICE u32 signs_of_lane(const u32 *key, u64 index) {
    u32 words[16];
    chacha8(key, index, words);
    u32 mine = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) mine = lane_id() / 2 == i ? words[i] : mine;
    return lane_id() % 2 == 0 ? mine & 0xffffu : mine >> 16;
}

// A number in (0, 1) with 52 random bits: rng::Noise::uniform, of two of a block's words.
DEVICE double unit(u32 low, u32 high) {
    return (double((u64(high) << 32 | low) >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}
