// Weights of networks that exist to be timed: noise of the right size.
#include "tiles.cuh"
#include "rng.cuh"

struct Noise {
    void *out;
    u32 key[8];
    u64 count;  // elements, or tiles
    float scale;
    u32 unused;
};

// A block to 4096 elements, sixteen to a thread: uniform numbers within `scale` of 0.
template <typename T>
DEVICE void noise(const Noise &a) {
    u32 words[16];
    const u64 block = u64(blockIdx.x) * 256 + threadIdx.x;
    chacha8(a.key, block, words);
    T *out = static_cast<T *>(a.out);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        if (block * 16 + i < a.count) {
            out[block * 16 + i] = narrow<T>((float(words[i] >> 8) * (1.0f / 8388608.0f) - 1.0f) * a.scale);
        }
    }
}

KERNEL(noise_f32, Noise, 256) { noise<float>(a); }
KERNEL(noise_bf16, Noise, 256) { noise<bf16>(a); }

// A block to a tile: random quants and levels, scales such that weights are of the size of `scale`.
KERNEL(noise_tiles, Noise, 128) {
    u32 words[16];
    chacha8(a.key, u64(blockIdx.x) * 128 + threadIdx.x, words);
    Tile &tile = static_cast<Tile *>(a.out)[blockIdx.x];
    tile.quants[threadIdx.x / 32][threadIdx.x % 32] = make_uint4(words[0], words[1], words[2], words[3]);
    // Levels of 32 .. 63, minima eight times the scale: weights around 0.
    auto level = [](u32 word) { return (word & 0x1f1f1f1fu) | 0x20202020u; };
    if (threadIdx.x < 16) {
        tile.levels[threadIdx.x / 8][threadIdx.x % 8] = make_uint4(level(words[4]), level(words[5]), level(words[6]), level(words[7]));
    }
    if (threadIdx.x < 8) {
        for (int upper = 0; upper < 2; upper++) {
            tile.halves[threadIdx.x][2 * upper] = float_to_half(a.scale / 48.0f / 8.0f);
            tile.halves[threadIdx.x][2 * upper + 1] = float_to_half(a.scale / 48.0f);
        }
    }
}
