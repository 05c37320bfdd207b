// What lies between a decoder's product of queries, keys and values and its attention: biases, norms of heads, rotation, and where
// keys and values go. What has neither biases nor norms and as many heads of keys as of queries takes `rotary` (pointwise.cu).
#include "tables.cuh"

const int MAX_HEAD = 256;

struct Heads {
    Rotary rotary;  // its heads are those of queries
    Tables tables;  // biases and gains lie among the biases
    Norm query;     // of a head; no norm where its gain is NONE; without a shift
    Norm key;
    u32 kv_heads;
    u32 bias;       // of queries, keys and values; NONE for none
};

// A block to a row (grid x) and eight of its heads (grid y), a warp to one of them: a lane has pairs lane, lane + 32, and so on.
template <typename T, typename Y>
DEVICE void heads(const Heads &a) {
    const Rotary &r = a.rotary;
    const int PAIRS = MAX_HEAD / 2 / 32;
    const u32 row = blockIdx.x, number = blockIdx.y * 8 + warp_id(), half = r.head_dim / 2;
    if (number >= r.heads + 2 * a.kv_heads) return;
    const u32 width = (r.heads + 2 * a.kv_heads) * r.head_dim, keys = a.kv_heads * r.head_dim;
    const Y *from = static_cast<const Y *>(r.qkv) + size_t(row) * width + number * r.head_dim;
    const float *bias = a.bias == NONE ? nullptr : bias_of(a.tables, row, a.bias) + number * r.head_dim;
    const bool is_query = number < r.heads, is_value = number >= r.heads + a.kv_heads;

    float low[PAIRS], high[PAIRS];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const u32 pair = lane_id() + 32 * i;
        low[i] = high[i] = 0.0f;
        if (pair >= half) break;
        low[i] = widen(from[pair]);
        high[i] = widen(from[pair + half]);
        if (bias) {
            low[i] += bias[pair];
            high[i] += bias[pair + half];
        }
        sum += low[i] + high[i];
    }
    const Norm &norm = is_query ? a.query : a.key;
    if (!is_value && norm.gain != NONE) {
        const float mean = norm.rms ? 0.0f : add_warp(sum) / float(r.head_dim);
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (lane_id() + 32 * i >= half) break;
            low[i] -= mean;
            high[i] -= mean;
            squares = fused(low[i], low[i], fused(high[i], high[i], squares));
        }
        const float inverse = 1.0f / square_root(add_warp(squares) / float(r.head_dim) + norm.eps);
        const float *gain = bias_of(a.tables, row, norm.gain);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const u32 pair = lane_id() + 32 * i;
            if (pair >= half) break;
            low[i] = low[i] * inverse * gain[pair];
            high[i] = high[i] * inverse * gain[pair + half];
        }
    }
    const u32 slot = r.slots[row], column = is_query ? number * r.head_dim : (number - r.heads) * r.head_dim;
    T *to = is_query ? static_cast<T *>(r.q) + size_t(row) * r.q_pitch + column
                     : static_cast<T *>(r.current) + size_t(row) * r.current_pitch + column;
    T *cached = nullptr;
    if (!is_query && slot != NONE) {
        const size_t page = size_t(slot / r.page_tokens) * r.layers + r.layer;
        const u32 side = is_value ? r.page_tokens : 0;
        cached = static_cast<T *>(r.cache) + (page * 2 * r.page_tokens + side + slot % r.page_tokens) * keys +
                 (is_value ? column - keys : column);
    }
    const float scale = is_query ? r.scale : 1.0f;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const u32 pair = lane_id() + 32 * i;
        if (pair >= half) break;
        float x = low[i], y = high[i];
        if (!is_value) {
            const float cosine = r.cosines[row * half + pair], sine = r.sines[row * half + pair];
            x = (low[i] * cosine - high[i] * sine) * scale;
            y = (high[i] * cosine + low[i] * sine) * scale;
        }
        const T first = narrow<T>(x), second = narrow<T>(y);
        to[pair] = first;
        to[pair + half] = second;
        if (cached) {
            cached[pair] = first;
            cached[pair + half] = second;
        }
    }
}

KERNEL(heads_f32, Heads, 256) { heads<float, float>(a); }
KERNEL(heads_bf16, Heads, 256) { heads<bf16, float>(a); }
KERNEL(heads_bf16_of_bf16, Heads, 256) { heads<bf16, bf16>(a); }
