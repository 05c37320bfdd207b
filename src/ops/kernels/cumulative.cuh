// Sums of a row's weights, and the token at a place of their running sum, in the CPU's order.
#pragma once
#include "logits.cuh"

const int LANES = 16;   // partial sums within a chunk

// The sum of all weights below the limit; each chunk's goes to `sums`. The CPU's order: sixteen sums within a chunk, these one
// after the other, the chunks one after the other.
DEVICE_CALL double total_of(const Row &row, Cut cut, double *sums, double *shared) {
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK;
    for (u32 first = 0; first < chunks; first += THREADS / LANES) {
        const u32 chunk = first + threadIdx.x / LANES, lane = threadIdx.x % LANES;
        double sum = 0.0;
        if (chunk < chunks) {
            float logits[CHUNK / LANES];
            logits_at(logits, row, chunk * CHUNK + lane, LANES);
#pragma unroll
            for (int i = 0; i < CHUNK / LANES; i++) sum += weight_below(row, chunk * CHUNK + i * LANES + lane, logits[i], cut);
        }
        barrier();
        shared[threadIdx.x] = sum;
        barrier();
        if (threadIdx.x < THREADS / LANES && first + threadIdx.x < chunks) {
            double whole = -0.0;  // what an empty sum is in Rust
#pragma unroll
            for (int i = 0; i < LANES; i++) whole += shared[threadIdx.x * LANES + i];
            sums[first + threadIdx.x] = whole;
        }
    }
    double total = -0.0;
    for (u32 first = 0; first < chunks; first += THREADS) {
        barrier();
        if (first + threadIdx.x < chunks) shared[threadIdx.x] = sums[first + threadIdx.x];
        barrier();
        if (threadIdx.x == 0) {
            const u32 count = chunks - first < THREADS ? chunks - first : THREADS;
#pragma unroll 8
            for (u32 i = 0; i < count; i++) total += shared[i];
        }
    }
    barrier();
    if (threadIdx.x == 0) shared[0] = total;
    barrier();
    total = shared[0];
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

// Goes on with `count` more numbers, from index `first` on; by one thread. Eight at a time, of which it only asks whether the
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

// The token at `target` of the cumulative weights, for thread 0.
DEVICE u32 draw_token(const Row &row, Cut cut, const double *sums, double target, double *shared) {
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK;
    SHARED Pick found;
    if (threadIdx.x == 0) found = Pick{NONE, target, 0, 0.0};
    for (u32 first = 0; first < chunks; first += THREADS) {
        barrier();
        if (first + threadIdx.x < chunks) shared[threadIdx.x] = sums[first + threadIdx.x];
        barrier();
        if (threadIdx.x == 0) {
            Pick own = found;
            pick(own, shared, first, chunks - first < THREADS ? chunks - first : THREADS);
            found = own;
        }
    }
    if (threadIdx.x == 0) {
        // Where rounding leaves none, the last one with any weight, and all of it.
        const bool none = found.index == NONE;
        found = Pick{none ? found.last : found.index, none ? found.rest : found.target, 0, 0.0};
    }
    barrier();
    const u32 start = found.index * CHUNK, token = start + threadIdx.x;
    if (threadIdx.x < CHUNK) shared[threadIdx.x] = token < row.tokens ? weight_below(row, token, logit_at(row, token), cut) : 0.0;
    barrier();
    Pick own = Pick{NONE, found.target, 0, 0.0};
    if (threadIdx.x == 0) pick(own, shared, 0, CHUNK);
    return start + (own.index == NONE ? own.last : own.index);
}
