// Sums of a row's weights, and the token at a place of their running sum, in the CPU's order.
#pragma once
#include "logits.cuh"
#include "place.cuh"

const int LANES = 16;  // partial sums within a chunk

// The sum of all weights below the limit; each chunk's goes to `sums`, in shared memory. The CPU's order: sixteen sums within a
// chunk, these one after the other, the chunks one after the other.
DEVICE_CALL double total_of(const Row &row, Cut cut, double *sums) {
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK, lane = lane_id() % LANES, half = lane_id() / LANES;
    SHARED double total;
    barrier();
    for (u32 first = 2 * warp_id(); first < chunks; first += THREADS / LANES) {
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

// Where the running sum of numbers exceeds a target.
struct Pick {
    u32 index;      // NONE where it has not so far
    double target;  // what is left of it
    u32 last;       // the last index so far with any number
    double rest;
};

// Goes on with `count` more numbers, from index `first` on. Eight at a time, of which it only asks whether the
// sum crosses within them, as long as it does not.
DEVICE void pick(Pick &found, const double *numbers, u32 first, u32 count) {
    u32 i = 0;
    for (; i + 8 <= count && found.index == NONE; i += 8) {
        double target = found.target;
        u32 last = NONE;
        bool crosses = false;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const double number = numbers[i + j];
            crosses |= target < number;
            target -= number;
            last = number > 0.0 ? i + j : last;
        }
        if (crosses) break;
        found.target = target;
        if (last != NONE) {
            found.last = first + last;
            found.rest = numbers[last];
        }
    }
    for (; i < count && found.index == NONE; i++) {
        const double number = numbers[i];
        if (found.target < number) {
            found.index = first + i;
        } else {
            found.target -= number;
            if (number > 0.0) {
                found.last = first + i;
                found.rest = number;
            }
        }
    }
}

// The token at `target` of the cumulative weights, for the first warp; the others get anything.
DEVICE_CALL u32 draw_token(const Row &row, Cut cut, const double *sums, double target, double total, double *shared) {
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK;
    if (warp_id() != 0) return 0;
    // Sums in any order tell it, unless the target lies where rounding decides.
    const Place chunk = place_of([&](u32 i) { return sums[i]; }, chunks, target);
    if (chunk.index != NONE) {
        const u32 start = chunk.index * CHUNK;
        float logits[CHUNK / 32];
        logits_at(logits, row, start + lane_id(), 32);
#pragma unroll
        for (int i = 0; i < CHUNK / 32; i++) {
            shared[32 * i + lane_id()] = weight_below(row, start + 32 * i + lane_id(), logits[i], cut);
        }
        warp_barrier();
        const Place place = place_of([&](u32 i) { return shared[i]; }, CHUNK, target - chunk.before);
        const double before = target - chunk.before - place.before;
        if (place.index != NONE && before > 1e-11 * total && place.number - before > 1e-11 * total) return start + place.index;
    }
    // Where rounding leaves none, the last one with any weight, and all of it.
    Pick found = Pick{NONE, target, 0, 0.0};
    pick(found, sums, 0, chunks);
    const bool none = found.index == NONE;
    const u32 start = (none ? found.last : found.index) * CHUNK;
    for (u32 i = lane_id(); i < CHUNK; i += 32) {
        shared[i] = start + i < row.tokens ? weight_below(row, start + i, logit_at(row, start + i), cut) : 0.0;
    }
    warp_barrier();
    Pick own = Pick{NONE, none ? found.rest : found.target, 0, 0.0};
    pick(own, shared, 0, CHUNK);
    return start + (own.index == NONE ? own.last : own.index);
}
