// Sums of a row's weights, and the token at a place of their running sum, in the CPU's order.
#pragma once
#include "logits.cuh"

const int LANES = 16;  // partial sums within a chunk

// The sum of all weights below the limit; each chunk's goes to `sums`, in shared memory. The CPU's order: sixteen sums within a
// chunk, these one after the other, the chunks one after the other.
DEVICE_CALL double total_of(const Row &row, Cut cut, double *sums) {
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK, lane = lane_id() % LANES, half = lane_id() / LANES;
    SHARED double total;
    barrier();
    for (u32 first = 2 * warp_id(); first < chunks; first += blockDim.x / LANES) {
        const u32 token = (first + half) * CHUNK + lane;
        float logits[CHUNK / LANES];
        logits_at(logits, row, token, LANES);
        double sum = 0.0, whole = -0.0;  // what an empty sum is in Rust
#pragma unroll
        for (int i = 0; i < CHUNK / LANES; i++) sum += weight_below(row, token + i * LANES, logits[i], cut);
#pragma unroll
        for (int i = 0; i < LANES; i++) whole += shuffle(sum, LANES * half + i);
        if (lane == 0 && first + half < chunks) sums[first + half] = whole;
    }
    barrier();
    if (threadIdx.x == 0) {
        double all = -0.0;
#pragma unroll 8
        for (u32 i = 0; i < chunks; i++) all += sums[i];
        total = all;
    }
    barrier();
    return total;
}

struct Pick {
    u32 index;
    double target;  // what is left of it
};

// The first index at which the running sum of numbers exceeds a target; where rounding leaves none, the last with any number, and
// all of it.
DEVICE Pick pick(double target, const double *numbers, u32 count) {
    Pick last = Pick{0, 0.0};
    for (u32 i = 0; i < count; i++) {
        if (target < numbers[i]) return Pick{i, target};
        target -= numbers[i];
        if (numbers[i] > 0.0) last = Pick{i, numbers[i]};
    }
    return last;
}

// The token at `target` of the cumulative weights, for the first warp; the others get anything.
DEVICE_CALL u32 draw_token(const Row &row, Cut cut, const double *sums, double target, double *shared) {
    if (warp_id() != 0) return 0;
    // Where rounding leaves none, the last one with any weight, and all of it.
    const Pick found = pick(target, sums, (row.tokens + CHUNK - 1) / CHUNK);
    const u32 start = found.index * CHUNK;
    for (u32 i = lane_id(); i < CHUNK; i += 32) {
        shared[i] = start + i < row.tokens ? weight_below(row, start + i, logit_at(row, start + i), cut) : 0.0;
    }
    warp_barrier();
    return start + pick(found.target, shared, CHUNK).index;
}
