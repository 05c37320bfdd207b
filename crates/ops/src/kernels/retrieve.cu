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

// Eight numbers as they lie in memory.
template <typename T>
union Eight {
    uint4 packed[sizeof(T) / 2];
    T one[8];
};

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

// Eight inputs of one output: from column `first` of the block's 512 on, of which `left` are left.
struct Piece {
    u32 output;
    u32 first;
    u32 left;
};

// `aligned` says that rows begin at multiples of sixteen bytes.
template <typename T>
DEVICE Eight<T> load_piece(const Retrieve &a, const void *from, Piece piece, bool aligned) {
    const T *at = static_cast<const T *>(from) + size_t(piece.output) * a.input + blockIdx.x * SIGNS + piece.first;
    Eight<T> eight;
    if (aligned && piece.left >= 8) {
#pragma unroll
        for (u32 i = 0; i < sizeof(T) / 2; i++) eight.packed[i] = load16_once(at + 4 * i);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) eight.one[i] = u32(i) < piece.left ? at[i] : narrow<T>(0.0f);
    }
    return eight;
}

// base + factor * (± s) for every target.
template <typename T>
DEVICE void retrieve_piece(const Retrieve &a, const Signs &signs, Piece piece, const float (&s)[8], const Eight<T> &base, bool aligned) {
    if (piece.left == 0) return;
    const size_t at = size_t(piece.output) * a.input + blockIdx.x * SIGNS + piece.first;
    for (u32 index = 0; index < a.count; index++) {
        const float factor = a.weights[index] * widen(a.outputs[size_t(a.variants[index]) * a.out + piece.output]);
        const u32 word = signs.words[index][piece.first / 32] >> (piece.first % 32);
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = fused(factor, float_of(bits_of(s[i]) ^ (word >> i) << 31), widen(base.one[i]));
        T *target = reinterpret_cast<T *>(a.targets[index]) + at;
        if (aligned && piece.left >= 8) {
            store8(target, v);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (u32(i) < piece.left) target[i] = narrow<T>(v[i]);
            }
        }
    }
}

// A block to 512 inputs (grid x) and 128 outputs (grid y), sixteen outputs to a warp. Lanes trade the words of a tile so that the
// four lanes of an output have 32 inputs one after the other, whole sectors of memory.
template <typename T>
DEVICE void retrieve_tiles(const Retrieve &a) {
    SHARED Signs signs;
    const u32 supers = (a.input + TILE_IN - 1) / TILE_IN, strip = blockIdx.y * 8 + warp_id();
    const u32 halves = strip * TILE_OUT >= a.out ? 0 : supers - 2 * blockIdx.x < 2 ? supers - 2 * blockIdx.x : 2;
    const Tile *tiles = static_cast<const Tile *>(a.bank) + size_t(strip) * supers + 2 * blockIdx.x;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const bool aligned = a.input % 8 == 0;
    uint4 next[4];
    auto fetch = [&](u32 half) {
        if (half >= halves) return;
#pragma unroll
        for (int q = 0; q < 4; q++) next[q] = load16_once(&tiles[half].quants[q][lane_id()]);
    };
    fetch(0);
    make_signs(a, signs);
#pragma unroll 1
    for (u32 half = 0; half < halves; half++) {
        const Tile &tile = tiles[half];
        const uint4 quants[4] = {next[0], next[1], next[2], next[3]};
        const uint4 levels[2] = {load16(&tile.levels[0][g]), load16(&tile.levels[1][g])};
        float scale[2], minimum[2];
#pragma unroll
        for (int upper = 0; upper < 2; upper++) {
            scale[upper] = half_to_float(tile.halves[g][2 * upper]);
            minimum[upper] = half_to_float(tile.halves[g][2 * upper + 1]);
        }
        fetch(half + 1);
        // A few quarters of the base are asked for together.
        const int TOGETHER = 4 / sizeof(T);
#pragma unroll
        for (int from = 0; from < 4; from += TOGETHER) {
            Eight<T> base[TOGETHER][2][2];
            auto piece_of = [&](int q, int block, int upper) {
                // This lane's eight inputs from 64 q + 32 block + 8 t on.
                const u32 first = half * TILE_IN + 64 * q + 32 * block + 8 * t, column = blockIdx.x * SIGNS + first;
                const u32 output = strip * TILE_OUT + g + 8 * upper;
                return Piece{output, first, column >= a.input || output >= a.out ? 0 : a.input - column};
            };
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
#pragma unroll
                for (int each = 0; each < 4; each++) {
                    base[i][each / 2][each % 2] = load_piece<T>(a, a.base, piece_of(from + i, each / 2, each % 2), aligned);
                }
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                const int q = from + i;
#pragma unroll
                for (int block = 0; block < 2; block++) {
                    // They lie with lane 2 block + t / 2, in its words 2 (t % 2) and next.
                    const int owner = 4 * g + 2 * block + t / 2;
                    const u32 a0 = shuffle(quants[q].x, owner), a1 = shuffle(quants[q].y, owner);
                    const u32 b0 = shuffle(quants[q].z, owner), b1 = shuffle(quants[q].w, owner);
                    const u32 words[2] = {t % 2 ? b0 : a0, t % 2 ? b1 : a1};
#pragma unroll
                    for (int upper = 0; upper < 2; upper++) {
                        const u32 level = level_of(levels[block], q, upper);
                        const float sc = scale[upper] * float(level & 0xffu), mn = minimum[upper] * float(level >> 8);
                        float s[8];
#pragma unroll
                        for (int pair = 0; pair < 4; pair++) {
                            // 128 + quant as bfloat16, which is the upper half of a float.
                            const u32 both = (words[pair / 2] >> (4 * (pair % 2 * 2 + upper)) & 0x000f000fu) | 0x43004300u;
                            s[2 * pair] = sc * (widen_low(both) - 128.0f) - mn;
                            s[2 * pair + 1] = sc * (widen_high(both) - 128.0f) - mn;
                        }
                        retrieve_piece<T>(a, signs, piece_of(q, block, upper), s, base[i][block][upper], aligned);
                    }
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
    const int TOGETHER = 8 / sizeof(T);
#pragma unroll 1
    for (int from = 0; from < 8; from += TOGETHER / 2) {
        Eight<T> s[TOGETHER], base[TOGETHER];
        auto piece_of = [&](int i) {
            const u32 output = blockIdx.y * 64 + warp_id() * 8 + from + i / 2;
            const u32 first = i % 2 * TILE_IN + 8 * lane_id(), column = blockIdx.x * SIGNS + first;
            return Piece{output, first, column >= a.input || output >= a.out ? 0 : a.input - column};
        };
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            s[i] = load_piece<T>(a, a.bank, piece_of(i), aligned);
            base[i] = load_piece<T>(a, a.base, piece_of(i), aligned);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            float wide[8];
#pragma unroll
            for (int j = 0; j < 8; j++) wide[j] = widen(s[i].one[j]);
            retrieve_piece<T>(a, signs, piece_of(i), wide, base[i], aligned);
        }
    }
}

KERNEL(retrieve_dense_f32, Retrieve, 256) { retrieve_dense<float>(a); }
KERNEL(retrieve_dense_bf16, Retrieve, 256) { retrieve_dense<bf16>(a); }
