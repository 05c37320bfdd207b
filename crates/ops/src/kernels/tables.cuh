// What kernels between and around a layer's products read and write.
//
// Modulation tables lie in slots, one to a (mix, noise level), biases in slots of their own, one to a mix; a row picks its
// slots, an offset picks the vector in them.
#pragma once
#include "device.cuh"

struct Tables {
    const float *lines;   // slots of modulation tables
    const float *biases;  // slots of biases
    const u32 *line;      // [rows]: the row's slot of modulation tables
    const u32 *mix;       // [rows]: the row's slot of biases
    u32 line_stride;      // floats to a slot
    u32 bias_stride;
};

DEVICE const float *line_of(const Tables &t, u32 row, u32 offset) {
    return t.lines + size_t(t.line[row]) * t.line_stride + offset;
}
DEVICE const float *bias_of(const Tables &t, u32 row, u32 offset) {
    return t.biases + size_t(t.mix[row]) * t.bias_stride + offset;
}

// (row - mean) / sqrt(mean square around it + eps) * gain + shift; gain and shift are offsets of vectors.
struct Norm {
    u32 gain;
    u32 shift;  // NONE for none
    float eps;
    u32 rms;    // whether the mean is taken as 0
};

struct Rotary {
    const void *qkv;       // [rows, heads + 2 heads of keys and values, head_dim]
    const float *cosines;  // [rows, head_dim / 2]
    const float *sines;
    void *q;               // [rows, q_pitch], rotated and divided by sqrt(head_dim)
    void *current;         // [rows, current_pitch]: keys, rotated, and values; both may lie where they come from
    void *cache;           // pages: [page][layer][2][page_tokens][keys' width]
    const u32 *slots;      // [rows]: page * page_tokens + slot of a clean row, else NONE
    u32 heads;
    u32 head_dim;
    u32 layer;
    u32 layers;
    u32 page_tokens;
    float scale;
    u32 q_pitch;
    u32 current_pitch;
};

// Four numbers of the lower half of a head and their partners in the upper one, turned by their angles and scaled.
DEVICE void turn(float4 &low, float4 &high, float4 c, float4 s, float scale) {
    const float4 x = low, y = high;
    low = make_float4((x.x * c.x - y.x * s.x) * scale, (x.y * c.y - y.y * s.y) * scale, (x.z * c.z - y.z * s.z) * scale,
                      (x.w * c.w - y.w * s.w) * scale);
    high = make_float4((y.x * c.x + x.x * s.x) * scale, (y.y * c.y + x.y * s.y) * scale, (y.z * c.z + x.z * s.z) * scale,
                       (y.w * c.w + x.w * s.w) * scale);
}

DEVICE void put_whole(float *at, float4 v) { *reinterpret_cast<float4 *>(at) = v; }
DEVICE void put_whole(bf16 *at, float4 v) { *reinterpret_cast<uint2 *>(at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)); }
