// Products with a base's matrix in few bits, and its rows as they are without.
#include "quantised.cuh"

DEVICE Eight eight_of(const float *x) {
    const float4 a = *reinterpret_cast<const float4 *>(x), b = *reinterpret_cast<const float4 *>(x + 4);
    return Eight{{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
DEVICE Eight eight_of(const bf16 *x) {
    const uint4 v = load16(x);
    return Eight{{widen_low(v.x), widen_high(v.x), widen_low(v.y), widen_high(v.y), widen_low(v.z), widen_high(v.z),
                  widen_low(v.w), widen_high(v.w)}};
}

// y [rows, pitch] = x W^T. A warp to an output: a row's sum does not depend on how many rows there are.
struct FewRows {
    const u8 *quants;
    const u8 *levels;
    const void *x;  // [rows, input]
    float *y;
    u32 rows;  // at most 16
    u32 out;
    u32 input;
    u32 pitch;
};

template <typename Form, typename T, int ROWS>
DEVICE void few_rows(const FewRows &a) {
    const u32 output = blockIdx.x * 8 + warp_id();
    if (output >= a.out) return;
    const T *x = static_cast<const T *>(a.x);
    float sums[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) sums[row] = 0.0f;
    for (u32 at = 8 * lane_id(); at < a.input; at += 256) {
        const Eight w = Form::eight(a.quants, a.levels, output, at, a.input);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            if (row >= int(a.rows)) break;
            const Eight v = eight_of(x + size_t(row) * a.input + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sums[row] = fused(w.w[i], v.w[i], sums[row]);
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        if (row >= int(a.rows)) break;
        for (int apart = 16; apart > 0; apart /= 2) sums[row] = sums[row] + shuffle_xor(sums[row], apart);
        if (lane_id() == 0) a.y[size_t(row) * a.pitch + output] = sums[row];
    }
}

#define FEW_ROWS(form, Form, rows)                                                             \
    KERNEL(few_rows_##form##_##rows##_f32, FewRows, 256) { few_rows<Form, float, rows>(a); } \
    KERNEL(few_rows_##form##_##rows##_bf16, FewRows, 256) { few_rows<Form, bf16, rows>(a); }
FEW_ROWS(q8_0, Q8_0, 4)
FEW_ROWS(q8_0, Q8_0, 16)
FEW_ROWS(q4k, Q4K, 4)
FEW_ROWS(q4k, Q4K, 16)

// target [rows, input] = rows of W from `first` on. A block to a row (grid x) and 2,048 inputs (grid y).
struct Widen {
    const u8 *quants;
    const u8 *levels;
    void *target;
    u32 first;
    u32 input;
};

template <typename Form, typename T>
DEVICE void widen_rows(const Widen &a) {
    const u32 at = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (at >= a.input) return;
    const Eight w = Form::eight(a.quants, a.levels, a.first + blockIdx.x, at, a.input);
    T *target = static_cast<T *>(a.target) + size_t(blockIdx.x) * a.input + at;
#pragma unroll
    for (int i = 0; i < 8; i++) target[i] = narrow<T>(w.w[i]);
}

KERNEL(widen_q8_0_f32, Widen, 256) { widen_rows<Q8_0, float>(a); }
KERNEL(widen_q8_0_bf16, Widen, 256) { widen_rows<Q8_0, bf16>(a); }
KERNEL(widen_q4k_f32, Widen, 256) { widen_rows<Q4K, float>(a); }
KERNEL(widen_q4k_bf16, Widen, 256) { widen_rows<Q4K, bf16>(a); }
