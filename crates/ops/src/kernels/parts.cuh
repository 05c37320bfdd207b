// What variants have in the rows of a batch.
#pragma once
#include "rng.cuh"

struct Part {
    u32 row;
    u32 variant;
    float weight;
    u32 bank;  // index into the matrix's banks
};

// Parts of one bank that go through it together.
struct Group {
    u32 bank;
    u32 first;   // index of its first part
    u32 count;   // 0 for a group that pads the launch, after all others
    u32 groups;  // how many do not pad the launch
};

// Changes the signs of eight bfloat16, by the low bits.
DEVICE uint4 flipped8(uint4 v, u32 signs) {
    v.x ^= (signs & 1u) << 15 | (signs & 2u) << 30;
    v.y ^= (signs & 4u) << 13 | (signs & 8u) << 28;
    v.z ^= (signs & 16u) << 11 | (signs & 32u) << 26;
    v.w ^= (signs & 64u) << 9 | (signs & 128u) << 24;
    return v;
}
