// What lies between a layer's products. The residual stream is f32, what products read is T, what they give is Y.
#include "block.cuh"
#include "tables.cuh"

// Four numbers of a row from number 4 `index` on; zeros past its width. `whole`: rows begin at multiples of four numbers.
DEVICE float4 four_at(const float *row, u32 index, u32 width, bool whole) {
    const u32 at = 4 * index;
    if (whole && at < width) return *reinterpret_cast<const float4 *>(row + at);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = at + i < width ? row[at + i] : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}
DEVICE float4 four_at(const bf16 *row, u32 index, u32 width, bool whole) {
    const u32 at = 4 * index;
    if (whole && at < width) {
        const uint2 v = *reinterpret_cast<const uint2 *>(row + at);
        return make_float4(widen_low(v.x), widen_high(v.x), widen_low(v.y), widen_high(v.y));
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = at + i < width ? widen(row[at + i]) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}
template <typename T>
DEVICE void put_four(T *row, u32 index, u32 width, bool whole, float4 four) {
    const u32 at = 4 * index;
    if (whole && at < width) {
        put_whole(row + at, four);
        return;
    }
    const float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (at + i < width) row[at + i] = narrow<T>(v[i]);
    }
}

struct NormModulate {
    const float *x;    // [rows, width]
    void *out;         // [gathered rows, width]
    const u32 *rows;   // rows of x, or null for all in order; NONE for what pads the batch
    Tables tables;
    Norm norm;
    u32 width;
    u32 unused;
};

// A thread's share of a norm's gain and shift.
template <int FOURS>
struct Affine {
    float4 gains[FOURS], shifts[FOURS];
    DEVICE Affine(const Tables &tables, u32 row, const Norm &norm, u32 width) {
        const float *gain = line_of(tables, row, norm.gain);
        const float *shift = norm.shift == NONE ? nullptr : line_of(tables, row, norm.shift);
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            const u32 index = i * 256 + threadIdx.x;
            if (4 * index >= width) break;
            gains[i] = four_at(gain, index, width, width % 4 == 0);
            shifts[i] = shift ? four_at(shift, index, width, width % 4 == 0) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }
};

// The norm of a row by all of a block, each thread having its share of it.
template <typename T, int FOURS>
DEVICE void norm_row(const float4 (&row)[FOURS], T *out, const Affine<FOURS> &affine, const Norm &norm, u32 width) {
    SHARED float scratch[8];
    const bool whole = width % 4 == 0;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const u32 index = i * 256 + threadIdx.x;
        if (4 * index >= width) break;
        sum += row[i].x + row[i].y + row[i].z + row[i].w;
    }
    const float mean = norm.rms ? 0.0f : add_block(sum, scratch) / float(width);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const u32 at = 4 * (i * 256 + threadIdx.x);
        if (at >= width) break;
        const float v[4] = {row[i].x - mean, row[i].y - mean, row[i].z - mean, row[i].w - mean};
#pragma unroll
        for (int j = 0; j < 4; j++) squares = at + j < width ? fused(v[j], v[j], squares) : squares;
    }
    const float inverse = 1.0f / square_root(add_block(squares, scratch) / float(width) + norm.eps);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const u32 index = i * 256 + threadIdx.x;
        if (4 * index >= width) break;
        const float4 normed = make_float4(fused((row[i].x - mean) * inverse, affine.gains[i].x, affine.shifts[i].x),
                                          fused((row[i].y - mean) * inverse, affine.gains[i].y, affine.shifts[i].y),
                                          fused((row[i].z - mean) * inverse, affine.gains[i].z, affine.shifts[i].z),
                                          fused((row[i].w - mean) * inverse, affine.gains[i].w, affine.shifts[i].w));
        put_four(out, index, width, whole, normed);
    }
}

// A block to a row of at most 1024 FOURS numbers.
template <typename T, int FOURS>
DEVICE void norm_modulate(const NormModulate &a) {
    // Before the wait, since this is over before the next one has its weights. That one may not take what lies further back as
    // done: what comes after a norm reads weights and tables before it waits, and nothing else.
    let_next_start();
    const u32 source = a.rows ? a.rows[blockIdx.x] : blockIdx.x;
    const bool whole = a.width % 4 == 0;
    T *out = static_cast<T *>(a.out) + size_t(blockIdx.x) * a.width;
    const u32 like = source == NONE ? 0 : source;
    const Affine<FOURS> affine(a.tables, like, a.norm, a.width);
    await_before();
    float4 row[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const u32 index = i * 256 + threadIdx.x;
        if (4 * index >= a.width) break;
        row[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (source == NONE) {
            put_four(out, index, a.width, whole, row[i]);
        } else {
            row[i] = four_at(a.x + size_t(source) * a.width, index, a.width, whole);
        }
    }
    if (source == NONE) return;
    norm_row(row, out, affine, a.norm, a.width);
}

KERNEL_EARLY(norm_modulate_f32_1, NormModulate, 256, 1) { norm_modulate<float, 1>(a); }
KERNEL_EARLY(norm_modulate_f32_4, NormModulate, 256, 1) { norm_modulate<float, 4>(a); }
KERNEL_EARLY(norm_modulate_f32_8, NormModulate, 256, 1) { norm_modulate<float, 8>(a); }
KERNEL_EARLY(norm_modulate_bf16_1, NormModulate, 256, 1) { norm_modulate<bf16, 1>(a); }
KERNEL_EARLY(norm_modulate_bf16_4, NormModulate, 256, 1) { norm_modulate<bf16, 4>(a); }
KERNEL_EARLY(norm_modulate_bf16_8, NormModulate, 256, 1) { norm_modulate<bf16, 8>(a); }

struct GateResidual {
    float *x;        // [rows, width]: x += gate * (y + bias)
    const void *y;   // [rows, width]
    void *out;       // [rows, width]: the next norm of x, unless its gain is NONE
    Tables tables;
    Norm norm;
    u32 gate;        // NONE for 1
    u32 bias;        // NONE for none
    u32 width;
    u32 unused;
};

// A block to a row of at most 1024 FOURS numbers.
template <typename T, typename Y, int FOURS>
DEVICE void gate_residual(const GateResidual &a) {
    const size_t start = size_t(blockIdx.x) * a.width;
    const bool whole = a.width % 4 == 0;
    const float *gate = a.gate == NONE ? nullptr : line_of(a.tables, blockIdx.x, a.gate);
    const float *bias = a.bias == NONE ? nullptr : bias_of(a.tables, blockIdx.x, a.bias);
    float4 row[FOURS];
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        const u32 index = i * 256 + threadIdx.x;
        if (4 * index >= a.width) break;
        const float4 x = four_at(a.x + start, index, a.width, whole);
        const float4 g = gate ? four_at(gate, index, a.width, whole) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        float4 y = four_at(static_cast<const Y *>(a.y) + start, index, a.width, whole);
        if (bias) y = added(y, four_at(bias, index, a.width, whole));
        row[i] = make_float4(fused(y.x, g.x, x.x), fused(y.y, g.y, x.y), fused(y.z, g.z, x.z), fused(y.w, g.w, x.w));
        put_four(a.x + start, index, a.width, whole, row[i]);
    }
    if (a.norm.gain == NONE) return;
    const Affine<FOURS> affine(a.tables, blockIdx.x, a.norm, a.width);
    norm_row(row, static_cast<T *>(a.out) + start, affine, a.norm, a.width);
}

KERNEL(gate_residual_f32_1, GateResidual, 256) { gate_residual<float, float, 1>(a); }
KERNEL(gate_residual_f32_4, GateResidual, 256) { gate_residual<float, float, 4>(a); }
KERNEL(gate_residual_f32_8, GateResidual, 256) { gate_residual<float, float, 8>(a); }
KERNEL(gate_residual_bf16_1, GateResidual, 256) { gate_residual<bf16, float, 1>(a); }
KERNEL(gate_residual_bf16_4, GateResidual, 256) { gate_residual<bf16, float, 4>(a); }
KERNEL(gate_residual_bf16_8, GateResidual, 256) { gate_residual<bf16, float, 8>(a); }
KERNEL(gate_residual_bf16_of_bf16_1, GateResidual, 256) { gate_residual<bf16, bf16, 1>(a); }
KERNEL(gate_residual_bf16_of_bf16_4, GateResidual, 256) { gate_residual<bf16, bf16, 4>(a); }
KERNEL(gate_residual_bf16_of_bf16_8, GateResidual, 256) { gate_residual<bf16, bf16, 8>(a); }

struct BiasGelu {
    const void *y;  // [rows, width]
    void *out;      // [rows, width]
    Tables tables;
    u32 bias;
    u32 width;
};

// A block to a row (grid x) and 1024 columns (grid y).
template <typename T, typename Y>
DEVICE void bias_gelu(const BiasGelu &a) {
    const u32 index = blockIdx.y * 256 + threadIdx.x;
    const bool whole = a.width % 4 == 0;
    if (4 * index >= a.width) return;
    const float4 y = four_at(static_cast<const Y *>(a.y) + size_t(blockIdx.x) * a.width, index, a.width, whole);
    const float4 b = four_at(bias_of(a.tables, blockIdx.x, a.bias), index, a.width, whole);
    const float4 out = make_float4(gelu_as<T>(y.x + b.x), gelu_as<T>(y.y + b.y), gelu_as<T>(y.z + b.z), gelu_as<T>(y.w + b.w));
    put_four(static_cast<T *>(a.out) + size_t(blockIdx.x) * a.width, index, a.width, whole, out);
}

KERNEL(bias_gelu_f32, BiasGelu, 256) { bias_gelu<float, float>(a); }
KERNEL(bias_gelu_bf16, BiasGelu, 256) { bias_gelu<bf16, float>(a); }
KERNEL(bias_gelu_bf16_of_bf16, BiasGelu, 256) { bias_gelu<bf16, bf16>(a); }

struct SwiGlu {
    const void *y;  // [rows, 2 width]: gates, then what they are for
    void *out;      // [rows, width]: silu(gate) * up
    u32 width;
    u32 unused;
};

// A block to a row (grid x) and 1024 columns (grid y).
template <typename T, typename Y>
DEVICE void swiglu(const SwiGlu &a) {
    const u32 index = blockIdx.y * 256 + threadIdx.x;
    const bool whole = a.width % 4 == 0;
    if (4 * index >= a.width) return;
    const Y *row = static_cast<const Y *>(a.y) + size_t(blockIdx.x) * 2 * a.width;
    const float4 gate = four_at(row, index, a.width, whole), up = four_at(row + a.width, index, a.width, whole);
    auto gated = [](float gate, float up) { return gate / (1.0f + exponential(-gate)) * up; };
    const float4 out = make_float4(gated(gate.x, up.x), gated(gate.y, up.y), gated(gate.z, up.z), gated(gate.w, up.w));
    put_four(static_cast<T *>(a.out) + size_t(blockIdx.x) * a.width, index, a.width, whole, out);
}

KERNEL(swiglu_f32, SwiGlu, 256) { swiglu<float, float>(a); }
KERNEL(swiglu_bf16, SwiGlu, 256) { swiglu<bf16, float>(a); }
KERNEL(swiglu_bf16_of_bf16, SwiGlu, 256) { swiglu<bf16, bf16>(a); }

struct Angles {
    float *cosines;             // [rows, half]
    float *sines;               // [rows, half]
    const u32 *positions;       // [rows]
    const double *frequencies;  // [half]
    u32 rows;
    u32 half;
};

// In f64, so that far positions keep their precision.
KERNEL(angles, Angles, 256) {
    const u32 index = blockIdx.x * 256 + threadIdx.x;
    if (index >= a.rows * a.half) return;
    const double angle = double(a.positions[index / a.half]) * a.frequencies[index % a.half];
    a.cosines[index] = float(cosine(angle));
    a.sines[index] = float(sine(angle));
}

// A block to a row (grid x) and 512 pairs (grid y), four to a thread.
template <typename T, typename Y>
DEVICE void rotary(const Rotary &a) {
    const u32 row = blockIdx.x, hidden = a.heads * a.head_dim, half = a.head_dim / 2, slot = a.slots[row];
    const Y *qkv = static_cast<const Y *>(a.qkv) + size_t(row) * 3 * hidden;
    T *q = static_cast<T *>(a.q) + size_t(row) * a.q_pitch, *current = static_cast<T *>(a.current) + size_t(row) * a.current_pitch;
    const bool values_lie = static_cast<const void *>(current + hidden) == static_cast<const void *>(qkv + 2 * hidden);
    const size_t page = size_t(slot / a.page_tokens) * a.layers + a.layer;
    T *cached = slot == NONE ? nullptr : static_cast<T *>(a.cache) + (page * 2 * a.page_tokens + slot % a.page_tokens) * hidden;
    const u32 first = 4 * (blockIdx.y * 128 + threadIdx.x);
    if (half % 4 == 0) {
        if (first >= hidden / 2) return;
        const u32 pair = first % half, low = first / half * a.head_dim + pair, high = low + half;
        auto at = [](const auto *from) { return four_at(from, 0, 4, true); };
        const float4 c = at(a.cosines + row * half + pair), s = at(a.sines + row * half + pair);
        float4 q0 = at(qkv + low), q1 = at(qkv + high), k0 = at(qkv + hidden + low), k1 = at(qkv + hidden + high);
        turn(q0, q1, c, s, a.scale);
        turn(k0, k1, c, s, 1.0f);
        put_whole(q + low, q0);
        put_whole(q + high, q1);
        put_whole(current + low, k0);
        put_whole(current + high, k1);
        if (values_lie && !cached) return;
        const float4 v0 = at(qkv + 2 * hidden + low), v1 = at(qkv + 2 * hidden + high);
        put_whole(current + hidden + low, v0);
        put_whole(current + hidden + high, v1);
        if (cached) {
            T *values = cached + size_t(a.page_tokens) * hidden;
            put_whole(cached + low, k0);
            put_whole(cached + high, k1);
            put_whole(values + low, v0);
            put_whole(values + high, v1);
        }
        return;
    }
    for (u32 i = first; i < first + 4 && i < hidden / 2; i++) {
        const u32 pair = i % half, low = i / half * a.head_dim + pair, high = low + half;
        const float cos = a.cosines[row * half + pair], sin = a.sines[row * half + pair];
        const float q0 = widen(qkv[low]), q1 = widen(qkv[high]), k0 = widen(qkv[hidden + low]), k1 = widen(qkv[hidden + high]);
        q[low] = narrow<T>((q0 * cos - q1 * sin) * a.scale);
        q[high] = narrow<T>((q1 * cos + q0 * sin) * a.scale);
        const T key0 = narrow<T>(k0 * cos - k1 * sin), key1 = narrow<T>(k1 * cos + k0 * sin);
        const T value0 = narrow<T>(widen(qkv[2 * hidden + low])), value1 = narrow<T>(widen(qkv[2 * hidden + high]));
        current[low] = key0;
        current[high] = key1;
        current[hidden + low] = value0;
        current[hidden + high] = value1;
        if (cached) {
            T *values = cached + size_t(a.page_tokens) * hidden;
            cached[low] = key0;
            cached[high] = key1;
            values[low] = value0;
            values[high] = value1;
        }
    }
}

KERNEL(rotary_f32, Rotary, 128) { rotary<float, float>(a); }
KERNEL(rotary_bf16, Rotary, 128) { rotary<bf16, float>(a); }
KERNEL(rotary_bf16_of_bf16, Rotary, 128) { rotary<bf16, bf16>(a); }
