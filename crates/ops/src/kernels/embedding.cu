// x [rows, width] = the base's embedding of every row's token plus what the row's variants add to it.
#include "parts.cuh"
#include "quantised.cuh"
#include "tiles.cuh"

struct GatherEmbedding {
    float *x;               // [rows, width]
    const u32 *tokens;      // [rows]; NONE for a row that pads the batch
    const void *base;       // [vocab, width], or its quants
    const u64 *banks;       // addresses: tiles, or [vocab, width]; the highest bit of a part's bank tells which
    const Part *parts;      // by row
    const u32 *first_part;  // [rows + 1]
    const u32 *keys;        // [variants][8], input side
    const bf16 *outputs;    // [variants][vocab]: c a l
    u32 vocab;
    u32 width;
    const u8 *levels;       // of quants
    u32 bits;               // of a quant; 0 where there are none
    u32 unused;
};

// Number `at` of the base's row of a token.
template <typename T>
DEVICE float embedded(const GatherEmbedding &a, u32 token, u32 at) {
    const u8 *quants = static_cast<const u8 *>(a.base);
    if (a.bits == 8) return Q8_0::eight(quants, a.levels, token, at / 8 * 8, a.width).w[at % 8];
    if (a.bits == 4) return Q4K::eight(quants, a.levels, token, at / 8 * 8, a.width).w[at % 8];
    return widen(static_cast<const T *>(a.base)[size_t(token) * a.width + at]);
}

// A block to a row (grid x) and 512 columns (grid y).
template <typename T>
DEVICE void gather_embedding(const GatherEmbedding &a) {
    SHARED u32 words[16];
    const u32 row = blockIdx.x, token = a.tokens[row], column = blockIdx.y * SIGNS + threadIdx.x;
    const u32 supers = (a.width + TILE_IN - 1) / TILE_IN;
    float sum[2];
    for (int i = 0; i < 2; i++) {
        const u32 at = column + 256 * i;
        sum[i] = token == NONE || at >= a.width ? 0.0f : embedded<T>(a, token, at);
    }
    const u32 first = token == NONE ? 0 : a.first_part[row], last = token == NONE ? 0 : a.first_part[row + 1];
    for (u32 index = first; index < last; index++) {
        const Part part = a.parts[index];
        barrier();
        if (threadIdx.x == 0) {
            u32 block[16];
            chacha8(a.keys + 8 * part.variant, blockIdx.y, block);
            for (int i = 0; i < 16; i++) words[i] = block[i];
        }
        barrier();
        const float factor = part.weight * widen(a.outputs[size_t(part.variant) * a.vocab + token]);
        for (int i = 0; i < 2; i++) {
            const u32 at = column + 256 * i;
            if (at >= a.width) continue;
            const u64 bank = a.banks[part.bank & 0x7fffffffu];
            float s;
            if (part.bank >> 31) {
                const Tile *tile = reinterpret_cast<const Tile *>(bank) + size_t(token / TILE_OUT) * supers + at / TILE_IN;
                s = tile_weight(*tile, token % TILE_OUT, at % TILE_IN);
            } else {
                s = widen(reinterpret_cast<const T *>(bank)[size_t(token) * a.width + at]);
            }
            const u32 offset = threadIdx.x + 256 * i;
            sum[i] = fused(factor, words[offset / 32] >> (offset % 32) & 1 ? -s : s, sum[i]);
        }
    }
    for (int i = 0; i < 2; i++) {
        if (column + 256 * i < a.width) a.x[size_t(row) * a.width + column + 256 * i] = sum[i];
    }
}

KERNEL(gather_embedding_f32, GatherEmbedding, 256) { gather_embedding<float>(a); }
KERNEL(gather_embedding_bf16, GatherEmbedding, 256) { gather_embedding<bf16>(a); }
