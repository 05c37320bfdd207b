// A layer's products of few rows with what comes before and after them, in one launch each: y = W x, W in bfloat16 read once.
//
// With few rows a launch is latency, not work. So a block asks for all its weights before it waits for the kernel before,
// which they do not depend on: eight or sixteen warps share out the inputs, and each keeps its own weights in registers.
// A warp reads its inputs of all rows as the tensor cores take them; the warps' sums are added in order. The order of a sum depends on
// the size of the matrix alone, so what a row gives does not depend on the others or on their number.
#include "tables.cuh"

struct Product {
    const bf16 *w;         // [out, input]
    const void *x;         // [rows, input] bf16; where it is normed, the residual stream, [.., input] f32
    const u32 *gathered;   // [rows]: rows of a normed x, NONE for none; null for all in order
    const float *banked;   // [rows, pitch]: what banks give for rows that have parts of them
    const u32 *parted;     // [rows]: 1 for those rows; null where there are none
    void *y;               // [rows, ..]: what comes after writes it
    Tables tables;
    u32 rows;
    u32 out;               // a multiple of 8
    u32 input;             // a multiple of 8
    u32 pitch;
    u32 gain;              // of the norm
    u32 shift;
    u32 gate;
    u32 bias;              // NONE for none
    Rotary rotary;         // of queries, keys and values; its qkv is not read
};

DEVICE float4 four_of(const float *at) { return *reinterpret_cast<const float4 *>(at); }
DEVICE float4 zeros() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }
DEVICE float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

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
        const float4 x = plus(v[0], bias);
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
        const float4 x = plus(v[0], bias);
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
            const float scale = which == 0 ? r.scale : 1.0f;
            const float4 c = cosines, s = sines, x = low, y = high;
            low = make_float4((x.x * c.x - y.x * s.x) * scale, (x.y * c.y - y.y * s.y) * scale,
                              (x.z * c.z - y.z * s.z) * scale, (x.w * c.w - y.w * s.w) * scale);
            high = make_float4((y.x * c.x + x.x * s.x) * scale, (y.y * c.y + x.y * s.y) * scale,
                               (y.z * c.z + x.z * s.z) * scale, (y.w * c.w + x.w * s.w) * scale);
        }
        bf16 *to = static_cast<bf16 *>(r.q) + size_t(row) * hidden + column;
        if (which > 0) {
            to = static_cast<bf16 *>(r.current) + (size_t(row) * 2 + which - 1) * hidden + column;
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

// Widest row that is normed: six times four numbers to a lane.
const u32 NORMED = 768;
// From one row of x in shared memory to the next: rows lie sixteen banks apart.
DEVICE u32 normed_pitch(u32 input) { return (input + 63) / 64 * 64 + 32; }

// (row - mean) / sqrt(variance + EPSILON) * gain + shift for the warp's rows, two at a time, to shared memory. `staged` are the
// gain and the shift of slot `line`, which most rows use.
template <int ROWS, int WARPS>
DEVICE void norm_rows(const Product &a, bf16 *x, const float *staged, u32 line) {
    const int FOURS = NORMED / 128;
#pragma unroll 1
    for (u32 first = warp_id(); first < ROWS; first += 2 * WARPS) {
        float4 v[2][FOURS];
        u32 from[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 row = first + i * WARPS;
            from[i] = row >= a.rows ? NONE : a.gathered ? a.gathered[row] : row;
#pragma unroll
            for (int j = 0; j < FOURS; j++) {
                const u32 at = 4 * (32 * j + lane_id());
                const bool there = from[i] != NONE && at < a.input;
                v[i][j] = there ? four_of(static_cast<const float *>(a.x) + size_t(from[i]) * a.input + at) : zeros();
            }
        }
        float sum[2], squares[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] = 0.0f;
#pragma unroll
            for (int j = 0; j < FOURS; j++) sum[i] += v[i][j].x + v[i][j].y + v[i][j].z + v[i][j].w;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) sum[i] = add_warp(sum[i]) / float(a.input);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            squares[i] = 0.0f;
#pragma unroll
            for (int j = 0; j < FOURS; j++) {
                if (4 * (32 * j + lane_id()) >= a.input) continue;
                v[i][j] = make_float4(v[i][j].x - sum[i], v[i][j].y - sum[i], v[i][j].z - sum[i], v[i][j].w - sum[i]);
                squares[i] = fused(v[i][j].x, v[i][j].x, fused(v[i][j].y, v[i][j].y, squares[i]));
                squares[i] = fused(v[i][j].z, v[i][j].z, fused(v[i][j].w, v[i][j].w, squares[i]));
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) squares[i] = 1.0f / square_root(add_warp(squares[i]) / float(a.input) + EPSILON);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 row = first + i * WARPS;
            if (row >= ROWS) continue;
            const u32 own = from[i] == NONE ? line : a.tables.line[from[i]];
            const float *gain = own == line ? staged : a.tables.lines + size_t(own) * a.tables.line_stride + a.gain;
            const float *shift = own == line ? staged + a.input : a.tables.lines + size_t(own) * a.tables.line_stride + a.shift;
#pragma unroll
            for (int j = 0; j < FOURS; j++) {
                const u32 at = 4 * (32 * j + lane_id());
                if (at >= a.input) continue;
                const float4 g = four_of(gain + at), s = four_of(shift + at);
                const float inverse = squares[i];
                const float4 normed = make_float4(fused(v[i][j].x * inverse, g.x, s.x), fused(v[i][j].y * inverse, g.y, s.y),
                                                  fused(v[i][j].z * inverse, g.z, s.z), fused(v[i][j].w * inverse, g.w, s.w));
                put_whole(x + row * normed_pitch(a.input) + at, from[i] == NONE ? zeros() : normed);
            }
        }
    }
}

// A block to 8 TILES outputs (grid x) and all of up to 16 GROUPS rows. STEPS times 32 inputs to a warp at most.
template <class After, bool NORM, int WARPS, int TILES, int STEPS, int GROUPS>
DEVICE void product(const Product &a) {
    const int THREADS = 32 * WARPS, ROWS = 16 * GROUPS, OUTS = 8 * TILES;
    const int SUM_PITCH = TILES % 2 ? OUTS : OUTS + 8;  // rows lie eight banks apart, or 24
    const int FOURS = OUTS / 4 / After::PARTS, ITEMS = (ROWS * FOURS + THREADS - 1) / THREADS;
    DYNAMIC_SHARED(u8, dynamic);
    bf16 *normed = reinterpret_cast<bf16 *>(dynamic);  // [ROWS][normed_pitch]
    float *shares = reinterpret_cast<float *>(dynamic);  // [WARPS][ROWS][SUM_PITCH], afterwards
    float *staged = reinterpret_cast<float *>(normed + ROWS * normed_pitch(a.input));  // gain and shift
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
    u32 line = 0;
    if (NORM) {
        const u32 first = a.gathered ? a.gathered[0] : 0;
        line = first == NONE ? 0 : a.tables.line[first];
        for (u32 at = 4 * threadIdx.x; at < a.input; at += 4 * THREADS) {
            put_whole(staged + at, four_of(a.tables.lines + size_t(line) * a.tables.line_stride + a.gain + at));
            put_whole(staged + a.input + at, four_of(a.tables.lines + size_t(line) * a.tables.line_stride + a.shift + at));
        }
    }
    await_before();
    let_next_start();
    each([&](int i, u32 row, u32, u32 output) { items[i].late(a, row, output); });
    if (NORM) {
        barrier();
        norm_rows<ROWS, WARPS>(a, normed, staged, line);
        barrier();
    }

    const int KEPT = NORM ? GROUPS : 1, BESIDE = NORM ? GROUPS : GROUPS * STEPS > 12 ? 1 : 2;  // groups
    float sums[KEPT][TILES][4];
    // Output 8 tile + 2t and the next, rows g and g + 8 of a group.
    auto share = [&](int group) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const float(&sum)[4] = sums[group % KEPT][tile];
            float *to = shares + (warp_id() * ROWS + 16 * group + g) * SUM_PITCH + 8 * tile + 2 * t;
            *reinterpret_cast<float2 *>(to) = make_float2(sum[0], sum[1]);
            *reinterpret_cast<float2 *>(to + 8 * SUM_PITCH) = make_float2(sum[2], sum[3]);
        }
    };
#pragma unroll BESIDE
    for (int group = 0; group < GROUPS; group++) {
        uint4 x[STEPS][2];
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int upper = 0; upper < 2; upper++) {
                const u32 row = 16 * group + 8 * upper + g, at = begin + 32 * step;
                const bf16 *from = NORM ? normed + row * normed_pitch(a.input) : static_cast<const bf16 *>(a.x) + size_t(row) * a.input;
                const bool there = step < steps && at < a.input && row < a.rows;
                x[step][upper] = there ? load16(from + at) : make_uint4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[group % KEPT][tile][j] = 0.0f;
        }
        // The inputs of a lane's sixteen bytes are those of two products: any order will do where x and W have the same.
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const u32 first[4] = {x[step][0].x, x[step][1].x, x[step][0].y, x[step][1].y};
            const u32 second[4] = {x[step][0].z, x[step][1].z, x[step][0].w, x[step][1].w};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) mma_bf16(sums[group % KEPT][tile], first, w[step][tile].x, w[step][tile].y);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) mma_bf16(sums[group % KEPT][tile], second, w[step][tile].z, w[step][tile].w);
        }
        if (!NORM) share(group);
    }
    if (NORM) {
        barrier();  // all have read x, which lay there
#pragma unroll
        for (int group = 0; group < GROUPS; group++) share(group);
    }
    barrier();
    each([&](int i, u32 row, u32 four, u32 output) {
        float4 v[After::PARTS];
#pragma unroll
        for (int part = 0; part < After::PARTS; part++) {
            v[part] = banked[i] ? four_of(a.banked + size_t(row) * a.pitch + output + part * (a.rotary.head_dim / 2)) : zeros();
#pragma unroll
            for (int warp = 0; warp < WARPS; warp++) {
                v[part] = plus(v[part], four_of(shares + (warp * ROWS + row) * SUM_PITCH + 4 * (part * FOURS + four)));
            }
        }
        items[i].finish(a, row, output, v);
    });
}

#define PRODUCT(name, After, norm, warps, tiles, steps, groups, blocks)    \
    KERNEL_EARLY(product_##name, Product, 32 * warps, blocks) {             \
        product<After, norm, warps, tiles, steps, groups>(a);              \
    }
// `tiles` of what has many outputs.
#define PRODUCTS(rows, groups, tiles)                                               \
    PRODUCT(rotated_normed_##rows, Rotated, true, 8, 2, 3, groups, 2)           \
    PRODUCT(rotated_##rows, Rotated, false, 8, 2, 3, groups, 2)                 \
    PRODUCT(gelu_normed_##rows, Gelu, true, 8, tiles, 3, groups, 2)             \
    PRODUCT(gelu_##rows, Gelu, false, 8, tiles, 3, groups, 2)                   \
    PRODUCT(residual_##rows, Residual, false, 8, 1, 3, groups, 2)               \
    PRODUCT(residual_wide_##rows, Residual, false, 16, 1, 6, groups, 1)         \
    PRODUCT(keep_normed_##rows, Keep, true, 8, tiles, 3, groups, 2)             \
    PRODUCT(keep_##rows, Keep, false, 8, tiles, 3, groups, 2)

PRODUCTS(16, 1, 3)
PRODUCTS(32, 2, 3)
PRODUCTS(64, 4, 2)
