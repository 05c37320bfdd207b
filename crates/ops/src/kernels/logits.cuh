// A row of logits: tokens in order, their weights, and what is cut off.
#pragma once
#include "rng.cuh"

const u64 ALL = 0xffffffffffffffffull;
const float LOWEST = -3.40282347e38f;
const int CHUNK = 256;  // tokens to a sum
const int WARPS = 16;   // at most, to a block that sums exactly

// "Highest logit first, equal logits by ascending id", as a number.
DEVICE u64 rank(u32 token, float logit) {
    if (logit != logit) return ALL;
    const u32 bits = bits_of(logit + 0.0f);
    const u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return u64(~ascending) << 32 | token;
}

struct Row {
    const float *logits;
    const float *bias;
    u32 tokens;
    u32 forbidden;
    float top;
    float sharpness;
};

DEVICE float logit_at(const Row &row, u32 token) { return row.logits[token] + row.bias[token]; }

// COUNT logits, `apart` tokens from one to the next: asked for together, so that they are waited for once. NAN past the last.
template <int COUNT>
DEVICE void logits_at(float (&logits)[COUNT], const Row &row, u32 first, u32 apart) {
    float biases[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const u32 token = first + i * apart;
        logits[i] = row.logits[token < row.tokens ? token : 0];
        biases[i] = row.bias[token < row.tokens ? token : 0];
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) logits[i] = first + i * apart < row.tokens ? logits[i] + biases[i] : NAN;
}

DEVICE float weight_of(const Row &row, float logit) {
    const float below = (logit - row.top) * row.sharpness;
    const float weight = exponential(below < 0.0f ? below : 0.0f);
    return below >= -87.0f ? weight : 0.0f;
}

// What is cut off from a limit of ranks on, so that one comparison of floats tells: logits below `logit`, and those equal to it
// from `token` on.
struct Cut {
    float logit;
    u32 token;
};

DEVICE Cut cut_at(u64 limit) {
    if (limit == ALL) return Cut{-INFINITY, NONE};
    const u32 ascending = ~u32(limit >> 32);
    return Cut{float_of(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending), u32(limit)};
}

DEVICE bool is_kept(u32 token, float logit, Cut cut) {
    return logit > cut.logit || (logit == cut.logit && token < cut.token);
}

// The weight of a token, 0 where it is cut off.
DEVICE double weight_below(const Row &row, u32 token, float logit, Cut cut) {
    const bool kept = is_kept(token, logit, cut) && token != row.forbidden;
    return kept ? double(weight_of(row, logit)) : 0.0;
}
