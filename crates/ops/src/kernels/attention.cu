// Softmax attention of a batch's rows over cached pages and their own segments, one warp to a query and head: the slow twin
// of block_attention.cu, and what serves f32 and odd head sizes.
#include "segments.cuh"

const int MAX_HEAD = 256;

// A block to a row (grid x) and eight heads (grid y).
template <typename T>
DEVICE void attend(const Attend &a) {
    SHARED float weights[8][32];
    const u32 row = blockIdx.x, head = blockIdx.y * 8 + warp_id();
    if (head >= a.heads) return;
    const u32 of_key = head / (a.heads / a.kv_heads) * a.head_dim;  // first column of its key
    T *out = static_cast<T *>(a.out) + (size_t(row) * a.heads + head) * a.head_dim;
    float sum[MAX_HEAD / 32];
#pragma unroll
    for (int i = 0; i < MAX_HEAD / 32; i++) sum[i] = 0.0f;
    float highest = -1e30f, total = 0.0f;
    if (a.segment[row] != NONE) {
        const Segment segment = a.segments[a.segment[row]];
        const T *q = static_cast<const T *>(a.q) + size_t(row) * a.q_pitch + head * a.head_dim;
        u32 begin, end;
        visible(segment, row - segment.first_row, a.window, begin, end);
        for (u32 first = begin; first < end; first += 32) {
            const u32 position = first + lane_id();
            float score = -1e30f;
            if (position < end) {
                size_t value;
                const T *key = key_at<T>(a, segment, position, value) + of_key;
                score = 0.0f;
                for (u32 i = 0; i < a.head_dim; i++) score = fused(widen(q[i]), widen(key[i]), score);
            }
            const float above = max_warp(score), now = above > highest ? above : highest;
            const float weight = position < end ? exponential(score - now) : 0.0f;
            const float before = exponential(highest - now);
            highest = now;
            total = total * before + add_warp(weight);
            weights[warp_id()][lane_id()] = weight;
            warp_barrier();
#pragma unroll
            for (int i = 0; i < MAX_HEAD / 32; i++) sum[i] *= before;
            const u32 count = end - first < 32 ? end - first : 32;
            for (u32 key = 0; key < count; key++) {
                size_t value;
                const T *values = key_at<T>(a, segment, first + key, value) + of_key;
                const float weight = weights[warp_id()][key];
#pragma unroll
                for (int i = 0; i < MAX_HEAD / 32; i++) {
                    const u32 column = lane_id() + 32 * i;
                    if (column < a.head_dim) sum[i] = fused(weight, widen(values[value + column]), sum[i]);
                }
            }
            warp_barrier();
        }
    }
#pragma unroll
    for (int i = 0; i < MAX_HEAD / 32; i++) {
        const u32 column = lane_id() + 32 * i;
        if (column < a.head_dim) out[column] = narrow<T>(total > 0.0f ? sum[i] / total : 0.0f);
    }
}

KERNEL(attend_f32, Attend, 256) { attend<float>(a); }
KERNEL(attend_bf16, Attend, 256) { attend<bf16>(a); }
