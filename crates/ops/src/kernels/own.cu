// Products with what variants keep by themselves: the rows of a batch's parts are rotated, then go through their variants' thin
// factors and codes, all variants in one launch.
#include "own.cuh"

// A block to a part (grid x) and a span of the input (grid y); the last one also writes the zeros up to the pitch.
struct RotateOwn {
    const void *x;      // [rows, input]
    void *rotated;      // [parts, pitch]
    const Part *parts;  // those that pad the batch are of any variant
    const Own *own;     // [variants]
    u32 input;
    u32 pitch;
    u32 size;           // of a block of the transform
    u32 span;           // whole blocks, at most MOST_SPAN
};

template <typename T>
DEVICE void rotate_own(const RotateOwn &a) {
    SHARED float values[MOST_SPAN];
    const Part part = a.parts[blockIdx.x];
    const Own &own = a.own[part.variant];
    if (!own.signs) return;
    T *to = static_cast<T *>(a.rotated) + size_t(blockIdx.x) * a.pitch;
    if (blockIdx.y == gridDim.y - 1) {
        for (u32 i = a.input + threadIdx.x; i < a.pitch; i += 256) to[i] = narrow<T>(0.0f);
    }
    const Span span = span_of(blockIdx.y, a.span, a.size, a.input);
    const T *x = static_cast<const T *>(a.x) + size_t(part.row) * a.input + span.first;
    for (u32 i = threadIdx.x; i < span.count; i += 256) values[i] = with_sign_of(own, span.first + i, widen(x[i]));
    hadamard(values, span.count, span.size, 256);
    for (u32 i = threadIdx.x; i < span.count; i += 256) to[span.first + i] = narrow<T>(values[i]);
}

KERNEL(rotate_own_f32, RotateOwn, 256) { rotate_own<float>(a); }
KERNEL(rotate_own_bf16, RotateOwn, 256) { rotate_own<bf16>(a); }

// t = scales ⊙ (A R x). A warp to a part (grid x) and a rank.
struct ThinOwn {
    const void *rotated;  // [parts, pitch]
    float *t;             // [parts, ranks]
    const Part *parts;
    const Own *own;
    u32 input;
    u32 pitch;
    u32 ranks;            // of any variant, at most
    u32 unused;
};

template <typename T>
DEVICE void thin_own(const ThinOwn &a) {
    const u32 rank = blockIdx.y * 4 + warp_id();
    const Own &own = a.own[a.parts[blockIdx.x].variant];
    if (rank >= own.rank) return;
    const T *x = static_cast<const T *>(a.rotated) + size_t(blockIdx.x) * a.pitch;
    float sum = 0.0f;
    for (u32 i = lane_id(); i < a.input; i += 32) sum = fused(factor(own, own.a, a.input, rank, i), widen(x[i]), sum);
    sum = add_warp(sum);
    if (lane_id() == 0) a.t[size_t(blockIdx.x) * a.ranks + rank] = own.scales[rank] * sum;
}

KERNEL(thin_own_f32, ThinOwn, 128) { thin_own<float>(a); }
KERNEL(thin_own_bf16, ThinOwn, 128) { thin_own<bf16>(a); }

struct ProductOwn {
    const void *rotated;  // [parts, pitch]
    const float *t;       // [parts, ranks]
    float *y;             // [rows, y_pitch]
    const Part *parts;    // no two of one row
    const Group *groups;  // parts of one variant each, which is their bank
    const Own *own;       // [variants]
    u32 out;
    u32 input;
    u32 pitch;
    u32 ranks;
    u32 y_pitch;
    u32 unused;
};

const u32 OUTPUTS = 16;  // of a block
const int WARPS = 4;     // each has every fourth of the inputs' pieces

// Four inputs of a row as what mma_bf16 takes for b, as many times as it takes to be exact enough.
template <typename T>
struct Four;
template <>
struct Four<bf16> {
    static const int TIMES = 1;
    u32 b[1][2];
    DEVICE void load(const bf16 *at) {
        const uint2 both = *reinterpret_cast<const uint2 *>(at);
        b[0][0] = both.x;
        b[0][1] = both.y;
    }
};
template <>
struct Four<float> {
    static const int TIMES = 3;
    u32 b[3][2];
    DEVICE void load(const float *at) {
        const uint4 four = load16(at);
        float left[4] = {float_of(four.x), float_of(four.y), float_of(four.z), float_of(four.w)};
#pragma unroll
        for (int time = 0; time < 3; time++) {
#pragma unroll
            for (int pair = 0; pair < 2; pair++) {
                const u32 both = pack_bf16(left[2 * pair], left[2 * pair + 1]);
                b[time][pair] = both;
                left[2 * pair] -= widen_low(both);
                left[2 * pair + 1] -= widen_high(both);
            }
        }
    }
};

// Sixteen outputs with up to eight times TILES parts. Of a piece of 32 steps a lane has eight, of two outputs (lane / 4, and eight more)
// and of one part's row: weights become a of mma_bf16 on the way from their windows. M weights to a step; 0: weights as they are.
template <typename T, int M, int TILES>
DEVICE void strip(const ProductOwn &a, const Own &own, const Group &group, const u16 *tables, float (&sums)[TILES][4]) {
    const int g = lane_id() / 4, t = lane_id() % 4, PER = M == 0 ? 8 : 8 * M;
    const u32 pieces = (a.input + 4 * PER - 1) / (4 * PER);
    const u32 *rows[2];
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
        // Past the last output nothing is kept of what is computed.
        const u32 output = blockIdx.x * OUTPUTS + g + 8 * upper, row = output < a.out ? output : a.out - 1;
        rows[upper] = own.weights + size_t(row) * own.stride;
    }
#pragma unroll 1
    for (u32 piece = warp_id(); piece < pieces; piece += WARPS) {
        const u32 eight = 4 * piece + t, column = eight * PER;
        const bool there = column < a.input;
        u64 windows[2] = {0, 0};
        if (M != 0 && there) {
            windows[0] = eight_windows(rows[0], own.bits, eight);
            windows[1] = eight_windows(rows[1], own.bits, eight);
        }
#pragma unroll
        for (int four = 0; four < PER / 4; four++) {
            u32 fragment[4];
#pragma unroll
            for (int upper = 0; upper < 2; upper++) {
#pragma unroll
                for (int pair = 0; pair < 2; pair++) {
                    u32 both = 0;
#pragma unroll
                    for (int one = 0; one < 2; one++) {
                        const int at = 4 * four + 2 * pair + one;
                        u32 weight;
                        if (M == 0) {
                            const u16 *row = reinterpret_cast<const u16 *>(rows[upper]);
                            weight = column + at < a.input ? row[column + at] : 0;
                        } else {
                            const int step = M == 0 ? 0 : at / (M == 0 ? 1 : M), table = M == 0 ? 0 : at % (M == 0 ? 1 : M);
                            weight = tables[table * 128 + (u32(windows[upper] >> (own.bits * step)) & 127u)];
                        }
                        both |= weight << (16 * one);
                    }
                    fragment[upper + 2 * pair] = there ? both : 0;
                }
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                if (u32(8 * tile) >= group.count) break;
                const u32 index = 8 * tile + g;
                Four<T> x;
#pragma unroll
                for (int time = 0; time < Four<T>::TIMES; time++) x.b[time][0] = x.b[time][1] = 0;
                if (there && index < group.count) {
                    x.load(static_cast<const T *>(a.rotated) + size_t(group.first + index) * a.pitch + column + 4 * four);
                }
#pragma unroll
                for (int time = 0; time < Four<T>::TIMES; time++) mma_bf16(sums[tile], fragment, x.b[time][0], x.b[time][1]);
            }
        }
    }
}

// A block to sixteen outputs (grid x) and a group (grid y).
template <typename T, int TILES>
DEVICE void product_own(const ProductOwn &a) {
    SHARED u16 tables[4 * 128];
    SHARED float shares[WARPS][OUTPUTS][8 * TILES];
    const Group group = a.groups[blockIdx.y];
    if (group.count == 0) return;
    const Own &own = a.own[group.bank];
    if (own.kind != AS_THEY_ARE) {
        for (u32 i = threadIdx.x; i < own.kind * 128; i += 32 * WARPS) tables[i] = narrow<bf16>(float(own.tables[i])).bits;
    }
    barrier();
    float sums[TILES][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        for (int i = 0; i < 4; i++) sums[tile][i] = 0.0f;
    }
    switch (own.kind) {
    case 1: strip<T, 1, TILES>(a, own, group, tables, sums); break;
    case 2: strip<T, 2, TILES>(a, own, group, tables, sums); break;
    case 4: strip<T, 4, TILES>(a, own, group, tables, sums); break;
    case AS_THEY_ARE: strip<T, 0, TILES>(a, own, group, tables, sums); break;
    }
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) shares[warp_id()][g + i / 2 * 8][8 * tile + 2 * t + i % 2] = sums[tile][i];
    }
    barrier();
    for (u32 at = threadIdx.x; at < OUTPUTS * group.count; at += 32 * WARPS) {
        const u32 index = at / OUTPUTS, o = at % OUTPUTS, output = blockIdx.x * OUTPUTS + o;
        if (output >= a.out) continue;
        float sum = shares[0][o][index];
        for (int warp = 1; warp < WARPS; warp++) sum += shares[warp][o][index];
        if (own.kind != NO_WEIGHTS) sum *= widen(own.gains[output]);
        const float *thin = a.t + size_t(group.first + index) * a.ranks;
        for (u32 rank = 0; rank < own.rank; rank++) sum = fused(factor(own, own.b, a.out, rank, output), thin[rank], sum);
        const Part part = a.parts[group.first + index];
        float &y = a.y[size_t(part.row) * a.y_pitch + output];
        y = fused(part.weight * own.scale, sum, y);
    }
}

KERNEL(product_own_8_f32, ProductOwn, 128) { product_own<float, 1>(a); }
KERNEL(product_own_16_f32, ProductOwn, 128) { product_own<float, 2>(a); }
KERNEL(product_own_32_f32, ProductOwn, 128) { product_own<float, 4>(a); }
KERNEL(product_own_64_f32, ProductOwn, 128) { product_own<float, 8>(a); }
KERNEL(product_own_8_bf16, ProductOwn, 128) { product_own<bf16, 1>(a); }
KERNEL(product_own_16_bf16, ProductOwn, 128) { product_own<bf16, 2>(a); }
KERNEL(product_own_32_bf16, ProductOwn, 128) { product_own<bf16, 4>(a); }
KERNEL(product_own_64_bf16, ProductOwn, 128) { product_own<bf16, 8>(a); }
