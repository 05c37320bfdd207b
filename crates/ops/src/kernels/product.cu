// A layer's products of few rows with what comes after them, in one launch each: y = W x, W in bfloat16 read once.
//
// With few rows a launch is latency, not work. So a block asks for all its weights before it waits for the kernel before,
// which they do not depend on: eight or sixteen warps share out the inputs, and each keeps its own weights in registers.
// A warp reads its inputs of all rows as the tensor cores take them; the warps' sums are added in order. The order of a sum
// depends on the size of the matrix alone, so what a row gives does not depend on the others or on their number.
#include "tables.cuh"

struct Product {
    const bf16 *w;         // [out, input]
    const bf16 *x;         // [rows, input]
    const float *banked;   // [rows, pitch]: what banks give for rows that have parts of them
    const u32 *parted;     // [rows]: 1 for those rows; null where there are none
    void *y;               // [rows, ..]: what comes after writes it
    Tables tables;
    u32 rows;
    u32 out;               // a multiple of 8
    u32 input;             // a multiple of 8
    u32 pitch;
    u32 gate;
    u32 bias;              // NONE for none
    Rotary rotary;         // of queries, keys and values; its qkv is not read
};

DEVICE float4 four_of(const float *at) { return *reinterpret_cast<const float4 *>(at); }
DEVICE float4 zeros() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// What comes after: an item is four outputs of a row, PARTS times. `early` reads what no kernel of this step writes, `late` what
// is there after the wait.

// y = W x, in f32.
struct Keep {
    static const int PARTS = 1;
    DEVICE static u32 first(const Product &, u32 four) { return 4 * four; }
    DEVICE void early(const Product &, u32, u32) {}
    DEVICE void late(const Product &, u32, u32) {}
    DEVICE void finish(const Product &a, u32 row, u32 at, const float4 (&v)[PARTS]) {
        put_whole(static_cast<float *>(a.y) + size_t(row) * a.pitch + at, v[0]);
    }
};

// y = gelu(W x + bias).
struct Gelu {
    static const int PARTS = 1;
    float4 bias;
    DEVICE static u32 first(const Product &, u32 four) { return 4 * four; }
    DEVICE void early(const Product &a, u32 row, u32 at) { bias = four_of(bias_of(a.tables, row, a.bias) + at); }
    DEVICE void late(const Product &, u32, u32) {}
    DEVICE void finish(const Product &a, u32 row, u32 at, const float4 (&v)[PARTS]) {
        const float4 x = added(v[0], bias);
        put_whole(static_cast<bf16 *>(a.y) + size_t(row) * a.out + at, make_float4(gelu(x.x), gelu(x.y), gelu(x.z), gelu(x.w)));
    }
};

// y += gate (W x + bias), the residual stream.
struct Residual {
    static const int PARTS = 1;
    float4 gate, bias, before;
    DEVICE static u32 first(const Product &, u32 four) { return 4 * four; }
    DEVICE void early(const Product &a, u32 row, u32 at) {
        gate = four_of(line_of(a.tables, row, a.gate) + at);
        bias = a.bias == NONE ? zeros() : four_of(bias_of(a.tables, row, a.bias) + at);
    }
    DEVICE static float *of(const Product &a, u32 row, u32 at) { return static_cast<float *>(a.y) + size_t(row) * a.out + at; }
    DEVICE void late(const Product &a, u32 row, u32 at) { before = four_of(of(a, row, at)); }
    DEVICE void finish(const Product &a, u32 row, u32 at, const float4 (&v)[PARTS]) {
        const float4 x = added(v[0], bias);
        put_whole(of(a, row, at), make_float4(fused(x.x, gate.x, before.x), fused(x.y, gate.y, before.y),
                                              fused(x.z, gate.z, before.z), fused(x.w, gate.w, before.w)));
    }
};

// Queries and keys, rotated, and values, to where attention looks for them. An item is four outputs of the lower half of a head
// and their partners in the upper one.
struct Rotated {
    static const int PARTS = 2;
    float4 cosines, sines;
    u32 slot;
    DEVICE static u32 first(const Product &a, u32 four) {
        const u32 half = a.rotary.head_dim / 2;
        return 4 * four / half * a.rotary.head_dim + 4 * four % half;
    }
    DEVICE void early(const Product &a, u32 row, u32) { slot = a.rotary.slots[row]; }
    DEVICE void late(const Product &a, u32 row, u32 at) {
        const u32 from = row * (a.rotary.head_dim / 2) + at % a.rotary.head_dim;
        cosines = four_of(a.rotary.cosines + from);
        sines = four_of(a.rotary.sines + from);
    }
    DEVICE void finish(const Product &a, u32 row, u32 at, const float4 (&v)[PARTS]) {
        const Rotary &r = a.rotary;
        const u32 hidden = r.heads * r.head_dim, half = r.head_dim / 2, which = at / hidden, column = at % hidden;
        float4 low = v[0], high = v[1];
        if (which < 2) {
            turn(low, high, cosines, sines, which == 0 ? r.scale : 1.0f);
        }
        bf16 *to = static_cast<bf16 *>(r.q) + size_t(row) * r.q_pitch + column;
        if (which > 0) {
            to = static_cast<bf16 *>(r.current) + size_t(row) * r.current_pitch + (which - 1) * hidden + column;
            if (slot != NONE) {
                const size_t page = size_t(slot / r.page_tokens) * r.layers + r.layer;
                const size_t token = (2 * page + which - 1) * r.page_tokens + slot % r.page_tokens;
                bf16 *cached = static_cast<bf16 *>(r.cache) + token * hidden + column;
                put_whole(cached, low);
                put_whole(cached + half, high);
            }
        }
        put_whole(to, low);
        put_whole(to + half, high);
    }
};

// A block to 8 TILES outputs (grid x) and all of up to 16 GROUPS rows. STEPS times 32 inputs to a warp at most.
template <class After, int WARPS, int TILES, int STEPS, int GROUPS>
DEVICE void product(const Product &a) {
    const int THREADS = 32 * WARPS, ROWS = 16 * GROUPS, OUTS = 8 * TILES;
    const int SUM_PITCH = TILES % 2 ? OUTS : OUTS + 8;  // rows lie eight banks apart, or 24
    const int FOURS = OUTS / 4 / After::PARTS, ITEMS = (ROWS * FOURS + THREADS - 1) / THREADS;
    DYNAMIC_SHARED(float, shares);  // [WARPS][ROWS][SUM_PITCH]
    const int g = lane_id() / 4, t = lane_id() % 4;

    // All weights of the block.
    const u32 steps = ((a.input + 31) / 32 + WARPS - 1) / WARPS, begin = 32 * steps * warp_id() + 8 * t;
    uint4 w[STEPS][TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        // Tiles of partners follow the others.
        const int TOGETHER = TILES / After::PARTS, part = tile / TOGETHER;
        const u32 four = (blockIdx.x * TOGETHER + tile % TOGETHER) * 2;
        const u32 output = After::first(a, four) + part * (a.rotary.head_dim / 2) + g;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const u32 at = begin + 32 * step;
            const bool there = step < steps && at < a.input && output < a.out;
            w[step][tile] = there ? load16_once(a.w + size_t(output) * a.input + at) : make_uint4(0, 0, 0, 0);
        }
    }
    After items[ITEMS];
    bool banked[ITEMS];
    auto each = [&](auto work) {
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            const u32 item = i * THREADS + threadIdx.x, row = item / FOURS;
            const u32 four = blockIdx.x * FOURS + item % FOURS, output = After::first(a, four);
            if (row < ROWS && row < a.rows && output < a.out) work(i, row, item % FOURS, output);
        }
    };
    each([&](int i, u32 row, u32, u32 output) {
        banked[i] = a.parted && a.parted[row];
        items[i].early(a, row, output);
    });
    await_before();
    let_next_start();
    each([&](int i, u32 row, u32, u32 output) { items[i].late(a, row, output); });
    const int BESIDE = STEPS > 3 ? 1 : 2;  // groups, as registers allow
#pragma unroll BESIDE
    for (int group = 0; group < GROUPS; group++) {
        uint4 x[STEPS][2];
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int upper = 0; upper < 2; upper++) {
                const u32 row = 16 * group + 8 * upper + g, at = begin + 32 * step;
                const bool there = step < steps && at < a.input && row < a.rows;
                x[step][upper] = there ? load16(a.x + size_t(row) * a.input + at) : make_uint4(0, 0, 0, 0);
            }
        }
        float sums[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[tile][j] = 0.0f;
        }
        // The inputs of a lane's sixteen bytes are those of two products: any order will do where x and W have the same.
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const u32 first[4] = {x[step][0].x, x[step][1].x, x[step][0].y, x[step][1].y};
            const u32 second[4] = {x[step][0].z, x[step][1].z, x[step][0].w, x[step][1].w};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) mma_bf16(sums[tile], first, w[step][tile].x, w[step][tile].y);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) mma_bf16(sums[tile], second, w[step][tile].z, w[step][tile].w);
        }
        // Output 8 tile + 2t and the next, rows g and g + 8.
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            float *to = shares + (warp_id() * ROWS + 16 * group + g) * SUM_PITCH + 8 * tile + 2 * t;
            *reinterpret_cast<float2 *>(to) = make_float2(sums[tile][0], sums[tile][1]);
            *reinterpret_cast<float2 *>(to + 8 * SUM_PITCH) = make_float2(sums[tile][2], sums[tile][3]);
        }
    }
    barrier();
    each([&](int i, u32 row, u32 four, u32 output) {
        float4 v[After::PARTS];
#pragma unroll
        for (int part = 0; part < After::PARTS; part++) {
            v[part] = banked[i] ? four_of(a.banked + size_t(row) * a.pitch + output + part * (a.rotary.head_dim / 2)) : zeros();
#pragma unroll
            for (int warp = 0; warp < WARPS; warp++) {
                v[part] = added(v[part], four_of(shares + (warp * ROWS + row) * SUM_PITCH + 4 * (part * FOURS + four)));
            }
        }
        items[i].finish(a, row, output, v);
    });
}

#define PRODUCT(name, After, warps, tiles, steps, groups, blocks)                  \
    KERNEL_EARLY(product_##name, Product, 32 * warps, blocks) {                 \
        product<After, warps, tiles, steps, groups>(a);                        \
    }
#define PRODUCTS(rows, groups)                                   \
    PRODUCT(rotated_##rows, Rotated, 8, 4, 3, groups, 2)      \
    PRODUCT(gelu_##rows, Gelu, 8, 6, 3, groups, 1)            \
    PRODUCT(residual_##rows, Residual, 8, 2, 3, groups, 2)    \
    PRODUCT(residual_wide_##rows, Residual, 16, 2, 6, groups, 1)

// Outputs to a block for a quarter to a half of a device's processors: a kernel then finds room beside the one before.
PRODUCTS(16, 1)
PRODUCTS(32, 2)
PRODUCTS(64, 4)
PRODUCT(keep_16, Keep, 8, 3, 3, 1, 2)
PRODUCT(keep_32, Keep, 8, 3, 3, 2, 2)
