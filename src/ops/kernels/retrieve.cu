// W_k = W_0 + c_k (a_k l_k) ⊙ S_b ⊙ r_k for whole matrices: one pass over W_0 and S_b, of one variant or several at once.
#include "parts.cuh"
#include "tiles.cuh"

const u32 MOST_TARGETS = 8;

struct Retrieve {
    const void *base;      // [out, input]
    const void *bank;      // S_b: tiles, or [out, input]
    const u64 *targets;    // [count] addresses of [out, input]
    const u32 *variants;   // [count]
    const float *weights;  // [count]
    const u32 *keys;       // [variants][8], input side
    const bf16 *outputs;   // [variants][out]
    u32 out;
    u32 input;
    u32 count;             // at most MOST_TARGETS
    u32 unused;
};

// Eight numbers at a multiple of sixteen bytes.
DEVICE void load8(const float *at, float (&v)[8]) {
    const uint4 a = load16_once(at), b = load16_once(at + 4);
    v[0] = float_of(a.x); v[1] = float_of(a.y); v[2] = float_of(a.z); v[3] = float_of(a.w);
    v[4] = float_of(b.x); v[5] = float_of(b.y); v[6] = float_of(b.z); v[7] = float_of(b.w);
}
DEVICE void load8(const bf16 *at, float (&v)[8]) {
    const uint4 a = load16_once(at);
    v[0] = widen_low(a.x); v[1] = widen_high(a.x); v[2] = widen_low(a.y); v[3] = widen_high(a.y);
    v[4] = widen_low(a.z); v[5] = widen_high(a.z); v[6] = widen_low(a.w); v[7] = widen_high(a.w);
}
DEVICE void store8(float *at, const float (&v)[8]) {
    store16(at, make_uint4(bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3])));
    store16(at + 4, make_uint4(bits_of(v[4]), bits_of(v[5]), bits_of(v[6]), bits_of(v[7])));
}
DEVICE void store8(bf16 *at, const float (&v)[8]) {
    store16(at, make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])));
}

// What all warps of a block need of every target: its signs of 512 inputs.
struct Signs {
    u32 words[MOST_TARGETS][16];
};

DEVICE void make_signs(const Retrieve &a, Signs &signs) {
    if (threadIdx.x < a.count) {
        u32 words[16];
        chacha8(a.keys + 8 * a.variants[threadIdx.x], blockIdx.x, words);
#pragma unroll
        for (int i = 0; i < 16; i++) signs.words[threadIdx.x][i] = words[i];
    }
    barrier();
}

// base + factor * (± s) for every target, eight inputs of one output from column `first` of the block's 512 on, of which `left`
// are left. `aligned` says that rows begin at multiples of sixteen bytes.
template <typename T>
DEVICE void retrieve8(const Retrieve &a, const Signs &signs, u32 output, u32 first, const float (&s)[8], u32 left, bool aligned) {
    if (left == 0) return;
    const size_t at = size_t(output) * a.input + blockIdx.x * SIGNS + first;
    const T *base = static_cast<const T *>(a.base) + at;
    const bool whole = aligned && left >= 8;
    float w[8];
    if (whole) {
        load8(base, w);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] = u32(i) < left ? widen(base[i]) : 0.0f;
    }
    for (u32 index = 0; index < a.count; index++) {
        const float factor = a.weights[index] * widen(a.outputs[size_t(a.variants[index]) * a.out + output]);
        const u32 word = signs.words[index][first / 32] >> (first % 32);
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fused(factor, float_of(bits_of(s[i]) ^ (word >> i) << 31), w[i]);
        T *target = reinterpret_cast<T *>(a.targets[index]) + at;
        if (whole) {
            store8(target, v);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (u32(i) < left) target[i] = narrow<T>(v[i]);
            }
        }
    }
}

// A block to 512 inputs (grid x) and 128 outputs (grid y), sixteen outputs to a warp. Lanes trade the words of a tile so that the
// four lanes of an output have 32 inputs one after the other, whole sectors of memory.
template <typename T>
DEVICE void retrieve_tiles(const Retrieve &a) {
    SHARED Signs signs;
    make_signs(a, signs);
    const u32 supers = (a.input + TILE_IN - 1) / TILE_IN, strip = blockIdx.y * 8 + warp_id();
    if (strip * TILE_OUT >= a.out) return;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const bool aligned = a.input % 8 == 0;
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        const u32 super = 2 * blockIdx.x + half;
        if (super >= supers) break;
        const Tile &tile = static_cast<const Tile *>(a.bank)[size_t(strip) * supers + super];
        uint4 quants[4];
#pragma unroll
        for (int q = 0; q < 4; q++) quants[q] = load16_once(&tile.quants[q][lane_id()]);
        const uint4 levels[2] = {load16(&tile.levels[0][g]), load16(&tile.levels[1][g])};
        float scale[2], minimum[2];
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
            scale[upper] = half_to_float(tile.halves[g][2 * upper]);
            minimum[upper] = half_to_float(tile.halves[g][2 * upper + 1]);
        }
#pragma unroll
        for (int q = 0; q < 4; q++) {
#pragma unroll
            for (int block = 0; block < 2; block++) {
                // This lane's eight inputs from 64 q + 32 block + 8 t on lie with lane 2 block + t / 2, in its words 2 (t % 2) and next.
                const int owner = 4 * g + 2 * block + t / 2;
                const u32 a0 = shuffle(quants[q].x, owner), a1 = shuffle(quants[q].y, owner);
                const u32 b0 = shuffle(quants[q].z, owner), b1 = shuffle(quants[q].w, owner);
                const u32 words[2] = {t % 2 ? b0 : a0, t % 2 ? b1 : a1};
                const u32 first = half * TILE_IN + 64 * q + 32 * block + 8 * t, column = blockIdx.x * SIGNS + first;
                const u32 left = column >= a.input ? 0 : a.input - column;
#pragma unroll
                for (int upper = 0; upper < 2; upper++) {
                    const u32 output = strip * TILE_OUT + g + 8 * upper, level = level_of(levels[block], q, upper);
                    const float sc = scale[upper] * float(level & 0xffu), mn = minimum[upper] * float(level >> 8);
                    float s[8];
#pragma unroll
                    for (int pair = 0; pair < 4; pair++) {
                        // 128 + quant as bfloat16, which is the upper half of a float.
                        const u32 both = (words[pair / 2] >> (4 * (pair % 2 * 2 + upper)) & 0x000f000fu) | 0x43004300u;
                        s[2 * pair] = sc * (widen_low(both) - 128.0f) - mn;
                        s[2 * pair + 1] = sc * (widen_high(both) - 128.0f) - mn;
                    }
                    retrieve8<T>(a, signs, output, first, s, output < a.out ? left : 0, aligned);
                }
            }
        }
    }
}

KERNEL(retrieve_tiles_f32, Retrieve, 256) { retrieve_tiles<float>(a); }
KERNEL(retrieve_tiles_bf16, Retrieve, 256) { retrieve_tiles<bf16>(a); }

// A block to 512 inputs (grid x) and 64 outputs (grid y), eight outputs to a warp, eight inputs to a lane and half.
template <typename T>
DEVICE void retrieve_dense(const Retrieve &a) {
    SHARED Signs signs;
    make_signs(a, signs);
    const bool aligned = a.input % 8 == 0;
#pragma unroll 2
    for (int row = 0; row < 8; row++) {
        const u32 output = blockIdx.y * 64 + warp_id() * 8 + row;
        if (output >= a.out) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 first = half * TILE_IN + 8 * lane_id(), column = blockIdx.x * SIGNS + first;
            const u32 left = column >= a.input ? 0 : a.input - column;
            const T *bank = static_cast<const T *>(a.bank) + size_t(output) * a.input + column;
            float s[8];
            if (aligned && left >= 8) {
                load8(bank, s);
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) s[i] = u32(i) < left ? widen(bank[i]) : 0.0f;
            }
            retrieve8<T>(a, signs, output, first, s, left, aligned);
        }
    }
}

KERNEL(retrieve_dense_f32, Retrieve, 256) { retrieve_dense<float>(a); }
KERNEL(retrieve_dense_bf16, Retrieve, 256) { retrieve_dense<bf16>(a); }
