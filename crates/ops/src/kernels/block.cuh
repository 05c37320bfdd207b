// Sums over a block.
#pragma once
#include "device.cuh"

// Sum over a block of 256 threads, the same for all of them.
DEVICE float add_block(float x, float *scratch) {
    x = add_warp(x);
    barrier();
    if (lane_id() == 0) scratch[warp_id()] = x;
    barrier();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < 8; warp++) sum += scratch[warp];
    return sum;
}
