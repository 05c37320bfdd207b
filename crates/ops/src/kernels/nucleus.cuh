// Which of a row's tokens the k best or the nucleus leave out, found by all threads of a block.
#pragma once
#include "logits.cuh"

const int BINS = 512;      // of logits
const int LISTED = 1024;   // tokens of a bin that are sorted

struct Scratch {
    u64 bins[BINS];
    u64 ranks[LISTED];
    union {
        u64 masses[LISTED];
        double weights[LISTED];
    };
    u64 wide[BINS / 32];
    double sums[WARPS];
    u64 answer;
    u64 before;
    u64 wanted;
    u32 count;
    u32 bin;
};

DEVICE u64 shuffle_wide(u64 x, int mask) {
    return u64(shuffle_xor(u32(x >> 32), mask)) << 32 | shuffle_xor(u32(x), mask);
}

// The sum of a block's numbers, the same for all threads.
DEVICE u64 sum_of_block(u64 x, Scratch &scratch) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_wide(x, mask);
    barrier();
    if (lane_id() == 0) scratch.wide[warp_id()] = x;
    barrier();
    u64 sum = 0;
    for (int warp = 0; warp < int(blockDim.x) / 32; warp++) sum += scratch.wide[warp];
    return sum;
}

// What a token counts: 1 each, or its weight in 2^-46, rounded down.
DEVICE u64 mass_of(const Row &row, float logit, bool counting) {
    if (counting) return 1;
    const u32 bits = bits_of(weight_of(row, logit));
    const u64 digits = (bits & 0x7fffffu) | 0x800000u;
    const int shift = int(bits >> 23) - 104;  // 127 + 23 - 46
    return shift >= 0 ? digits << shift : shift > -24 ? digits >> -shift : 0;
}

// Every token below a limit and its logit, by all threads.
template <typename Use>
DEVICE void each_kept(const Row &row, Cut cut, Use use) {
#pragma unroll 1
    for (u32 start = threadIdx.x; start < row.tokens; start += 8 * blockDim.x) {
        float logits[8];
        logits_at(logits, row, start, blockDim.x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 token = start + i * blockDim.x;
            if (token != row.forbidden && is_kept(token, logits[i], cut)) use(token, logits[i]);
        }
    }
}

// Puts a token on the list, as long as there is room; `count` goes on.
DEVICE void list(const Row &row, u32 token, float logit, bool counting, Scratch &scratch) {
    const u32 at = atomic_add(&scratch.count, 1u);
    if (at >= LISTED) return;
    scratch.ranks[at] = rank(token, logit);
    scratch.masses[at] = mass_of(row, logit, counting);
}

// The rank of the listed token at which the mass crosses what is wanted, `before` being that of all better tokens; ALL where
// there is none.
DEVICE_CALL u64 crossing_of_list(u64 before, u64 wanted, Scratch &scratch) {
    const u32 count = scratch.count;
    if (threadIdx.x == 0) scratch.answer = ALL;
    barrier();
    for (u32 mine = threadIdx.x; mine < count; mine += blockDim.x) {
        u64 better = before;
        for (u32 other = 0; other < count; other++) {
            better += scratch.ranks[other] < scratch.ranks[mine] ? scratch.masses[other] : 0;
        }
        if (better <= wanted && better + scratch.masses[mine] > wanted) scratch.answer = scratch.ranks[mine];
    }
    barrier();
    return scratch.answer;
}

// The rank of the first token, best first, at which the running mass of those below `limit` exceeds what is wanted: so many
// tokens, or that share of all mass. ALL where it never does. Tokens go into bins by their logit; the bin in which the mass
// crosses is sorted, or searched bit by bit where it holds too many.
DEVICE_CALL u64 crossing(const Row &row, u64 limit, bool counting, double amount, float lowest, Scratch &scratch) {
    const Cut cut = cut_at(limit);
    const float reach = row.top - lowest;
    const float per_bin = reach > 0.0f && reach < 3.0e38f ? float(BINS - 1) / reach : 0.0f;
    auto bin_of = [&](float logit) {
        const float bin = (row.top - logit) * per_bin;
        return bin > 0.0f ? u32(bin < float(BINS - 1) ? bin : float(BINS - 1)) : 0u;
    };
    barrier();
    for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) scratch.bins[bin] = 0;
    barrier();
    each_kept(row, cut, [&](u32, float logit) { atomic_add(&scratch.bins[bin_of(logit)], mass_of(row, logit, counting)); });
    barrier();
    // A warp adds up 32 bins, so that one thread looks at 32 sums and 32 bins only.
    for (u32 group = warp_id(); group < BINS / 32; group += blockDim.x / 32) {
        u64 of_group = scratch.bins[32 * group + lane_id()];
        for (int mask = 16; mask > 0; mask >>= 1) of_group += shuffle_wide(of_group, mask);
        if (lane_id() == 0) scratch.wide[group] = of_group;
    }
    barrier();
    if (threadIdx.x == 0) {
        u64 all = 0;
        for (int warp = 0; warp < BINS / 32; warp++) all += scratch.wide[warp];
        const u64 wanted = u64(counting ? amount : amount * double(all));
        scratch.wanted = wanted;
        u64 before = 0;
        u32 warp = 0;
        while (warp < BINS / 32 && before + scratch.wide[warp] <= wanted) before += scratch.wide[warp++];
        u32 bin = 32 * warp;
        while (bin < BINS && before + scratch.bins[bin] <= wanted) before += scratch.bins[bin++];
        scratch.bin = bin;
        scratch.before = before;
        scratch.count = 0;
    }
    barrier();
    const u32 bin = scratch.bin;
    const u64 before = scratch.before, wanted = scratch.wanted;
    if (bin == BINS) return ALL;
    each_kept(row, cut, [&](u32 token, float logit) {
        if (bin_of(logit) == bin) list(row, token, logit, counting, scratch);
    });
    barrier();
    if (scratch.count <= LISTED) return crossing_of_list(before, wanted, scratch);
    // The least rank r such that the mass up to and with r exceeds what is wanted, bit by bit from the top.
    u64 answer = 0;
    for (int bit = 63; bit >= 0; bit--) {
        const u64 probe = answer | ((1ull << bit) - 1);
        u64 mass = 0;
        each_kept(row, cut, [&](u32 token, float logit) {
            if (bin_of(logit) == bin && rank(token, logit) <= probe) mass += mass_of(row, logit, counting);
        });
        if (before + sum_of_block(mass, scratch) <= wanted) answer |= 1ull << bit;
    }
    return answer;
}
