// Where a nucleus ends, from numbers of tokens by their logit.
#pragma once
#include "place.cuh"

const int BINS = 2048;
// Bins that lie above the highest logit that was seen when they were laid out.
const int AHEAD = 768;

struct Bins {
    u32 counts[BINS + BINS / 32];  // bin b at b + b / 32, so that a warp whose lanes have 64 each reads other banks
    float highest[32], lowest[32];
};

// Bin b is of the logits about base - b / per_unit.
struct Range {
    float base;
    float per_unit;
};

// At least log2(above / below), of normal numbers.
DEVICE float doublings(float above, float below) { return float(int(bits_of(above) >> 23) + 1 - int(bits_of(below) >> 23)); }

// Lays out bins for logits like those between the threads' `lowest` and `highest`, by all threads of a block; weights are
// 2^(scale logit). A 512th of their span to a bin, and at most a factor of 1.03 in weight.
DEVICE Range start_bins(Bins &bins, float highest, float lowest, float scale) {
    highest = greatest_of_warp(highest);
    lowest = -greatest_of_warp(-lowest);
    if (lane_id() == 0) {
        bins.highest[warp_id()] = highest;
        bins.lowest[warp_id()] = lowest;
    }
    for (u32 i = threadIdx.x; i < BINS + BINS / 32; i += blockDim.x) bins.counts[i] = 0;
    barrier();
    for (u32 warp = 0; warp < blockDim.x / 32; warp++) {
        highest = greater(highest, bins.highest[warp]);
        lowest = bins.lowest[warp] < lowest ? bins.lowest[warp] : lowest;
    }
    float width = (highest - lowest) * (1.0f / 512.0f);
    width = width * scale < 0.045f ? width : 0.045f / scale;
    // So wide that rounding of logits is small against it.
    const float size = highest < 0.0f ? -highest : highest;
    const float least = greater(size, -lowest) * 1e-5f;
    width = width > least ? width : least > 0.0f ? least : 1.0f;
    return Range{highest + float(AHEAD) * width, 1.0f / width};
}

DEVICE void count_in(Bins &bins, Range range, float logit) {
    const float place = (range.base - logit) * range.per_unit;
    if (!(place > 0.0f && place < float(BINS - 1))) return;
    const u32 bin = bits_of(place + 8388608.0f) & 0x7fffffu;
    atomic_add(&bins.counts[bin + bin / 32], 1u);
}

struct Edge {
    float above, below;      // the logit of the token at which the mass crosses what is wanted most likely lies between these
    float highest, lowest;   // and certainly between these
};

// Where the mass of the best of `tokens` tokens crosses `wanted` of `total`, both known up to `error`, which is more than rounding
// of sums, by a warp. The counts are lost. Few tokens have much of the mass, and bins tell theirs badly; so what is worse
// counts as well, up from the last bin.
DEVICE Edge edge_of(Bins &bins, Range range, u32 tokens, float top, float scale, float total, float wanted, float error) {
    const int each = BINS / 32, start = (each + 2) * lane_id();
    const float step = scale / range.per_unit, first = (range.base - top) * scale - step * float(each * lane_id());
    float own = 0.0f;
    u32 counted = 0;
    for (int i = 0; i < each; i++) {
        u32 &count = bins.counts[start + i + i / 32];
        const float mass = float(count) * power_of_two(first - step * float(i));
        counted += count;
        count = bits_of(mass);
        own += mass;
    }
    float sum = add_up_to(own);
    const float all = shuffle(sum, 31);
    sum -= own;
    for (int mask = 16; mask > 0; mask >>= 1) counted += shuffle_xor(counted, mask);
    // Weights of a bin are up to half its width off, and rounding moves a token by less than an eighth of it. The others weigh
    // less than those of the last bin.
    const float up = power_of_two(0.64f * step), down = power_of_two(-0.64f * step);
    const float beyond = float(tokens - counted) * power_of_two((range.base - top) * scale - step * float(BINS - 2));
    u32 found[3] = {BINS, BINS, BINS};
    for (int i = 0; i < each; i++) {
        sum += float_of(bins.counts[start + i + i / 32]);
        const float rest = all > sum ? all - sum : 0.0f, most = total - rest * down, least = total - rest * up - beyond;
        const float sums[3] = {(sum * up < most ? sum * up : most) + error, wanted + wanted < total ? sum : total - rest,
                               greater(sum * down, least) - error};
        for (int j = 0; j < 3; j++) {
            if (found[j] == BINS && sums[j] > wanted) found[j] = each * lane_id() + i;
        }
    }
    float places[3];
    for (int j = 0; j < 3; j++) places[j] = -greatest_of_warp(-float(found[j]));
    const bool outside = top >= range.base || places[2] >= float(BINS - 1);
    if (outside) return Edge{NAN, NAN, INFINITY, -INFINITY};
    auto logit = [&](float place) { return range.base - place / range.per_unit; };
    return Edge{logit(places[1] - 0.8f), logit(places[1] + 0.8f), logit(places[0] - 0.64f), logit(places[2] + 0.64f)};
}
