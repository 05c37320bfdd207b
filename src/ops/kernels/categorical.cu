// One token a row from logits, as ops/categorical draws it on the CPU: the forbidden token out, temperature, the k best, the
// nucleus, then one draw by inverse CDF; for the uniform process a mixture of three. Weights, their sums and the order of the
// sums are the CPU's, so equal logits give equal tokens. Only the sums that find the nucleus are integers here (weights in
// 2^-46) and f64 there: they can differ where a sum lies within 1e-9 of the nucleus.
#include "rng.cuh"

const u64 ALL = 0xffffffffffffffffull;
const float LOWEST = -3.40282347e38f;
const int THREADS = 512;
const int CHUNK = 256;         // tokens to a sum
const int LANES = 16;          // partial sums within a chunk
const int BINS = THREADS;       // of logits
const int LISTED = 512;

enum Kind { PREDICTED = 0, BEST = 1, SURE = 2, MIXTURE = 3 };
// What each of a (step, position)'s draws is for, as in the sampler.
const int TOKEN = 0, BRANCH = 4;

struct Draw {
    u32 key[8];       // of the request's noise
    u32 kind;
    u32 step;
    u32 position;
    u32 tokens;       // leading logits that are looked at; 0 for a row that pads the batch
    u32 top_k;        // 0 for all
    u32 forbidden;    // NONE for none
    u32 present;
    u32 keeps_crossing;
    float temperature;
    float nucleus_p;
    double alpha_t;
    double alpha_s;
    double kappa;
};

struct Drawn {
    double certainty;
    u32 token;
    u32 unused;
};

struct Categorical {
    const float *logits;  // [rows, pitch]
    const float *biases;  // slots of biases: added to the logits
    const u32 *mix;       // [rows of the batch]: the slot of a row's biases
    const u32 *rows;      // [rows]: the row of the batch that a row of logits belongs to, or NONE
    const Draw *draws;    // [rows]
    Drawn *drawn;         // [rows]
    double *sums;         // [rows][ceil(vocab / CHUNK)]
    u32 vocab;
    u32 pitch;
    u32 bias_stride;
    u32 bias;
    u32 cached;           // whether a row fits into dynamic shared memory, and lies there from the first look on
    u32 unused;
};

// "Highest logit first, equal logits by ascending id", as a number.
DEVICE u64 rank(u32 token, float logit) {
    if (logit != logit) return ALL;
    const u32 bits = bits_of(logit + 0.0f);
    const u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return u64(~ascending) << 32 | token;
}

struct Row {
    const float *logits;
    const float *bias;  // null where it is in the logits
    u32 tokens;
    u32 forbidden;
    float top;
    float sharpness;
};

DEVICE float logit_at(const Row &row, u32 token) {
    return row.bias ? row.logits[token] + row.bias[token] : row.logits[token];
}

// COUNT logits, `apart` tokens from one to the next: asked for together, so that they are waited for once. NAN past the last.
template <int COUNT>
DEVICE void logits_at(float (&logits)[COUNT], const Row &row, u32 first, u32 apart) {
    float biases[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const u32 token = first + i * apart;
        logits[i] = row.logits[token < row.tokens ? token : 0];
    }
    if (row.bias) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const u32 token = first + i * apart;
            biases[i] = row.bias[token < row.tokens ? token : 0];
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) logits[i] += biases[i];
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) logits[i] = first + i * apart < row.tokens ? logits[i] : NAN;
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

// The weight of a token that is not cut off.
DEVICE double weight_below(const Row &row, u32 token, float logit, Cut cut) {
    const bool better = logit > cut.logit || (logit == cut.logit && token < cut.token);
    return better && token != row.forbidden ? double(weight_of(row, logit)) : 0.0;
}

struct Scratch {
    u64 bins[BINS];
    u64 ranks[LISTED];
    u64 masses[LISTED];
    u64 wide[THREADS / 32];
    float narrow[THREADS / 32];
    u64 answer;
    u64 before;
    u64 wanted;
    u32 count;
    u32 bin;
};

DEVICE u64 shuffle_wide(u64 x, int mask) {
    return u64(shuffle_xor(u32(x >> 32), mask)) << 32 | shuffle_xor(u32(x), mask);
}

// The lowest of a block's numbers, the same for all threads.
DEVICE u64 lowest_of_block(u64 x, Scratch &scratch) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        const u64 other = shuffle_wide(x, mask);
        x = other < x ? other : x;
    }
    barrier();
    if (lane_id() == 0) scratch.wide[warp_id()] = x;
    barrier();
    for (int warp = 0; warp < THREADS / 32; warp++) x = scratch.wide[warp] < x ? scratch.wide[warp] : x;
    return x;
}
DEVICE u64 sum_of_block(u64 x, Scratch &scratch) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_wide(x, mask);
    barrier();
    if (lane_id() == 0) scratch.wide[warp_id()] = x;
    barrier();
    u64 sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += scratch.wide[warp];
    return sum;
}
DEVICE float highest_of_block(float x, Scratch &scratch) {
    x = max_warp(x);
    barrier();
    if (lane_id() == 0) scratch.narrow[warp_id()] = x;
    barrier();
    for (int warp = 0; warp < THREADS / 32; warp++) x = scratch.narrow[warp] > x ? scratch.narrow[warp] : x;
    return x;
}

// What a token counts: 1 each, or its weight in 2^-46, rounded down.
DEVICE u64 mass_of(const Row &row, float logit, bool counting) {
    if (counting) return 1;
    const u32 bits = bits_of(weight_of(row, logit));
    const u64 digits = (bits & 0x7fffffu) | 0x800000u;
    const int shift = int(bits >> 23) - 104;  // 127 + 23 - 46
    return shift >= 0 ? digits << shift : shift > -24 ? digits >> -shift : 0;
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
    auto takes = [&](u32 token, float logit) {
        return token != row.forbidden && (logit > cut.logit || (logit == cut.logit && token < cut.token));
    };
    barrier();
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) scratch.bins[bin] = 0;
    barrier();
    const u32 TURN = 8 * THREADS;
#pragma unroll 1
    for (u32 start = threadIdx.x; start < row.tokens; start += TURN) {
        float logits[8];
        logits_at(logits, row, start, THREADS);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (!takes(start + i * THREADS, logits[i])) continue;
            atomic_add(&scratch.bins[bin_of(logits[i])], mass_of(row, logits[i], counting));
        }
    }
    barrier();
    // A warp adds up 32 bins, so that one thread looks at 32 sums and 32 bins only.
    u64 of_warp = scratch.bins[threadIdx.x];
    for (int mask = 16; mask > 0; mask >>= 1) of_warp += shuffle_wide(of_warp, mask);
    if (lane_id() == 0) scratch.wide[warp_id()] = of_warp;
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
        scratch.answer = ALL;
    }
    barrier();
    const u32 bin = scratch.bin;
    const u64 before = scratch.before, wanted = scratch.wanted;
    if (bin == BINS) return ALL;
#pragma unroll 1
    for (u32 start = threadIdx.x; start < row.tokens; start += TURN) {
        float logits[8];
        logits_at(logits, row, start, THREADS);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (!takes(start + i * THREADS, logits[i]) || bin_of(logits[i]) != bin) continue;
            const u32 at = atomic_add(&scratch.count, 1u);
            if (at < LISTED) {
                scratch.ranks[at] = rank(start + i * THREADS, logits[i]);
                scratch.masses[at] = mass_of(row, logits[i], counting);
            }
        }
    }
    barrier();
    const u32 count = scratch.count;
    if (count <= LISTED) {
        for (u32 mine = threadIdx.x; mine < count; mine += THREADS) {
            u64 better = before;
            for (u32 other = 0; other < count; other++) {
                better += scratch.ranks[other] < scratch.ranks[mine] ? scratch.masses[other] : 0;
            }
            if (better <= wanted && better + scratch.masses[mine] > wanted) scratch.answer = scratch.ranks[mine];
        }
        barrier();
        return scratch.answer;
    }
    // The least rank r such that the mass up to and with r exceeds what is wanted, bit by bit from the top.
    u64 answer = 0;
    for (int bit = 63; bit >= 0; bit--) {
        const u64 probe = answer | ((1ull << bit) - 1);
        u64 mass = 0;
        for (u32 token = threadIdx.x; token < row.tokens; token += THREADS) {
            const float logit = logit_at(row, token);
            if (takes(token, logit) && bin_of(logit) == bin && rank(token, logit) <= probe) mass += mass_of(row, logit, counting);
        }
        if (before + sum_of_block(mass, scratch) <= wanted) answer |= 1ull << bit;
    }
    return answer;
}

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

// A block to a row of logits.
KERNEL_OF(categorical, Categorical, 512, 2) {
    DYNAMIC_SHARED(float, cache);
    SHARED Scratch scratch;
    SHARED double shared[THREADS];
    const Draw &draw = a.draws[blockIdx.x];
    if (draw.tokens == 0) return;
    // Both numbers lie in one block of the noise: one thread makes them while the others look at the logits.
    SHARED double uniforms[2];
    if (threadIdx.x == THREADS - 1) {
        u32 words[16];
        chacha8(draw.key, u64(draw.step) << 32 | draw.position, words);
        uniforms[0] = unit(words[2 * TOKEN], words[2 * TOKEN + 1]);
        uniforms[1] = unit(words[2 * BRANCH], words[2 * BRANCH + 1]);
    }
    double *sums = a.sums + size_t(blockIdx.x) * ((a.vocab + CHUNK - 1) / CHUNK);
    Row row;
    row.logits = a.logits + size_t(blockIdx.x) * a.pitch;
    row.bias = a.biases + size_t(a.mix[a.rows[blockIdx.x]]) * a.bias_stride + a.bias;
    row.tokens = draw.tokens;
    row.forbidden = draw.forbidden;

    // The best token and the span of the logits. Where nothing is above -infinity, the first token with it; of NaN alone the
    // first token.
    float highest = -INFINITY, lowest = INFINITY;
    u64 equal = ALL;
    const u32 TURN = 8 * THREADS;
#pragma unroll 1
    for (u32 start = 0; start < row.tokens; start += TURN) {
        float logits[8];
        logits_at(logits, row, start + threadIdx.x, THREADS);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 token = start + i * THREADS + threadIdx.x;
            if (a.cached && token < row.tokens) cache[token] = logits[i];
            if (token == row.forbidden || token >= row.tokens) continue;
            if (logits[i] > highest || (equal == ALL && logits[i] == highest)) {
                highest = logits[i];
                equal = token;
            }
            lowest = logits[i] < lowest ? logits[i] : lowest;
        }
    }
    if (a.cached) {
        row.logits = cache;
        row.bias = nullptr;
    }
    const float own = highest;
    highest = highest_of_block(highest, scratch);
    lowest = -highest_of_block(-lowest, scratch);
    equal = lowest_of_block(own == highest ? equal : ALL, scratch);
    const u32 first = row.forbidden == 0 ? 1 : 0;
    const u32 best = equal != ALL ? u32(equal) : first < row.tokens ? first : 0;
    row.top = highest < LOWEST ? LOWEST : highest > -LOWEST ? -LOWEST : highest;

    double certainty = 0.0;
    if (draw.kind == SURE) {
        row.sharpness = 1.0f;
        const double total = total_of(row, cut_at(ALL), sums, shared);
        certainty = total > 0.0 ? 1.0 / total : 0.0;
    }
    Drawn &drawn = a.drawn[blockIdx.x];
    if (draw.kind == BEST || (draw.temperature == 0.0f && draw.kind != MIXTURE)) {
        if (threadIdx.x == 0) {
            drawn.token = best;
            drawn.certainty = certainty;
        }
        return;
    }

    u64 limit = ALL;
    if (draw.temperature == 0.0f) {
        row.sharpness = 1.0f;
        const float logit = logit_at(row, best);
        limit = rank(best, logit > LOWEST ? logit : LOWEST) + 1;
    } else {
        const float sharpness = 1.0f / draw.temperature;
        row.sharpness = sharpness < -LOWEST ? sharpness : -LOWEST;
        if (draw.top_k != 0 && draw.top_k < row.tokens) limit = crossing(row, ALL, true, draw.top_k, lowest, scratch);
        if (draw.nucleus_p < 1.0f) {
            const u64 crossed = crossing(row, limit, false, draw.nucleus_p, lowest, scratch);
            if (crossed != ALL) {
                const u64 after = rank(best, highest) + 1;
                const u64 nucleus = draw.keeps_crossing ? crossed + 1 : crossed > after ? crossed : after;
                limit = nucleus < limit ? nucleus : limit;
            }
        }
    }
    const Cut cut = cut_at(limit);
    const double total = total_of(row, cut, sums, shared);

    bool predicted = true;
    u32 token = best;
    if (draw.kind == MIXTURE) {
        const double present = draw.present < row.tokens ? weight_below(row, draw.present, logit_at(row, draw.present), cut) / total : 0.0;
        const double p = total > 0.0 ? present : draw.present == best ? 1.0 : 0.0;
        const double vocab = double(row.tokens), own = draw.alpha_t * vocab * p, z = own + 1.0 - draw.alpha_t;
        double keep = 0.0, uniformly = 1.0 - draw.alpha_s;
        if (z > 0.0) {
            const double alpha_ts = draw.alpha_t / draw.alpha_s, corrector = 1.0 - draw.kappa;
            keep = (draw.kappa * (own + alpha_ts - draw.alpha_t) + corrector * draw.alpha_s * own) / z;
            uniformly = draw.kappa * (1.0 - alpha_ts) * (1.0 - draw.alpha_s) / z + corrector * (1.0 - draw.alpha_s);
        }
        const double branch = uniforms[1];
        predicted = false;
        if (branch < keep) {
            token = draw.present;
        } else if (branch < keep + uniformly) {
            token = u32(uniforms[0] * vocab);
        } else {
            predicted = true;
        }
    }
    // The same for all threads.
    if (predicted && total > 0.0) {
        token = draw_token(row, cut, sums, uniforms[0] * total, shared);
    }
    if (threadIdx.x != 0) return;
    drawn.token = token;
    drawn.certainty = certainty;
}
