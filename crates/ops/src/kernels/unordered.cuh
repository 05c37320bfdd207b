// What sums of a row's weights in f64 tell whatever their order is.
#pragma once
#include "draws.cuh"
#include "nucleus.cuh"
#include "place.cuh"

// Sums are off by less than this share.
const double UNSURE = 1e-11;

// The sum of a block's numbers, the same for all threads.
DEVICE double sum_of_block(double x, Scratch &scratch) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
    barrier();
    if (lane_id() == 0) scratch.sums[warp_id()] = x;
    barrier();
    double sum = 0.0;
    for (int warp = 0; warp < int(blockDim.x) / 32; warp++) sum += scratch.sums[warp];
    return sum;
}

// Adds up the weights of all tokens with logits above one number, by chunk, to `sums`, and lists those down to another; returns
// the sum of all. By all threads.
DEVICE_CALL double sums_above(const Row &row, float above, float below, double *sums, Scratch &scratch) {
    if (threadIdx.x == 0) scratch.count = 0;
    barrier();
    double all = 0.0;
    for (u32 chunk = warp_id(); chunk * CHUNK < row.tokens; chunk += blockDim.x / 32) {
        const u32 first = chunk * CHUNK + lane_id();
        float logits[CHUNK / 32];
        logits_at(logits, row, first, 32);
        double sum = 0.0;
#pragma unroll
        for (int i = 0; i < CHUNK / 32; i++) {
            const u32 token = first + 32 * i;
            const double weight = weight_below(row, token, logits[i], cut_at(ALL));
            all += weight;
            sum += logits[i] > above ? weight : 0.0;
            if (logits[i] <= above && logits[i] > below && token != row.forbidden) list(row, token, logits[i], false, scratch);
        }
        for (int mask = 16; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
        if (lane_id() == 0) sums[chunk] = sum;
    }
    return sum_of_block(all, scratch);
}

// The weight of a token on the list.
DEVICE double listed(const Row &row, u64 rank) { return double(weight_of(row, cut_at(rank).logit)); }

// The rank of the token on the list at which the mass of the nucleus exceeds `wanted`, `better` being that of all better tokens; ALL
// where that is unsure or none.
DEVICE_CALL u64 nucleus_of_list(const Row &row, double better, double wanted, Scratch &scratch) {
    const u32 count = scratch.count;
    if (threadIdx.x == 0) scratch.answer = ALL;
    if (count > LISTED || better > wanted) return ALL;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) scratch.weights[i] = listed(row, scratch.ranks[i]);
    barrier();
    for (u32 mine = threadIdx.x; mine < count; mine += blockDim.x) {
        double before = better;
        for (u32 other = 0; other < count; other++) {
            before += scratch.ranks[other] < scratch.ranks[mine] ? scratch.weights[other] : 0.0;
        }
        const double margin = UNSURE * wanted;
        if (before + margin <= wanted && before + scratch.weights[mine] > wanted + margin) scratch.answer = scratch.ranks[mine];
    }
    barrier();
    return scratch.answer;
}

// The token of a draw from x0 or of a mixture, for the first warp; NONE where it is unsure, or the nucleus elsewhere than the look
// says, the same for all threads.
DEVICE_CALL u32 token_unordered(const Draw &draw, const Row &row, const Look &look, const double *uniforms, double *sums,
                                Scratch &scratch) {
    const bool whole = draw.nucleus_p >= 1.0f;
    if (!whole && !(look.below < look.above)) return NONE;
    const u32 chunks = (row.tokens + CHUNK - 1) / CHUNK;
    double total = sums_above(row, whole ? -INFINITY : look.above, whole ? -INFINITY : look.below, sums, scratch);
    Cut cut = cut_at(ALL);
    if (!whole) {
        double better = 0.0;
        for (u32 i = threadIdx.x; i < chunks; i += blockDim.x) better += sums[i];
        const u64 crossed = nucleus_of_list(row, sum_of_block(better, scratch), double(draw.nucleus_p) * total, scratch);
        if (crossed == ALL) return NONE;
        const u64 after = rank(look.best, look.highest) + 1;
        const u64 limit = draw.keeps_crossing ? crossed + 1 : crossed > after ? crossed : after;
        total = 0.0;
        for (u32 chunk = threadIdx.x; chunk < chunks; chunk += blockDim.x) {
            double sum = sums[chunk];
            for (u32 i = 0; i < scratch.count; i++) {
                sum += u32(scratch.ranks[i]) / CHUNK == chunk && scratch.ranks[i] < limit ? scratch.weights[i] : 0.0;
            }
            sums[chunk] = sum;
            total += sum;
        }
        total = sum_of_block(total, scratch);
        cut = cut_at(limit);
    }
    if (!(total > 0.0)) return NONE;
    if (draw.kind == MIXTURE) {
        double p = 0.0;
        if (draw.present < row.tokens) p = weight_below(row, draw.present, logit_at(row, draw.present), cut) / total;
        const Branch branch = branch_of(draw, p * (1.0 - UNSURE), uniforms[1]);
        if (branch != branch_of(draw, p * (1.0 + UNSURE), uniforms[1])) return NONE;
        if (branch == KEEPS) return draw.present;
        if (branch == ANY) return u32(uniforms[0] * double(row.tokens));
    }
    if (warp_id() == 0) {
        const double target = uniforms[0] * total;
        const Place chunk = place_of([&](u32 i) { return sums[i]; }, chunks, target);
        const u32 start = chunk.index == NONE ? 0 : chunk.index * CHUNK;
        auto weight_at = [&](u32 i) {
            const u32 token = start + i;
            return token < row.tokens ? weight_below(row, token, logit_at(row, token), cut) : 0.0;
        };
        const Place place = place_of(weight_at, CHUNK, target - chunk.before);
        const double before = target - chunk.before - place.before, margin = UNSURE * total;
        const bool clear = chunk.index != NONE && place.index != NONE && before >= margin && place.number - before >= margin;
        if (lane_id() == 0) scratch.bin = clear ? start + place.index : NONE;
    }
    barrier();
    return scratch.bin;
}
