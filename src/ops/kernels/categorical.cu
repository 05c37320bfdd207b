// One token a row from logits, as ops/categorical draws it on the CPU: the forbidden token out, temperature, the k best, the
// nucleus, then one draw by inverse CDF; for the uniform process a mixture of three. Weights, their sums and the order of the
// sums are the CPU's, so equal logits give equal tokens. Only the sums that find the nucleus are integers here (weights in
// 2^-46) and f64 there: they can differ where a sum lies within 1e-9 of the nucleus.
#include "cumulative.cuh"
#include "nucleus.cuh"

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

// A step of the uniform process: the present token, or any, as the mixture of three has it; false where a token of x0 is to be drawn.
DEVICE bool settled(const Draw &draw, const Row &row, Cut cut, double total, u32 best, const double *uniforms, u32 &token) {
    double p = draw.present == best ? 1.0 : 0.0;
    if (total > 0.0) {
        const bool known = draw.present < row.tokens;
        p = known ? weight_below(row, draw.present, logit_at(row, draw.present), cut) / total : 0.0;
    }
    const double vocab = double(row.tokens), own = draw.alpha_t * vocab * p, z = own + 1.0 - draw.alpha_t;
    double keep = 0.0, uniformly = 1.0 - draw.alpha_s;
    if (z > 0.0) {
        const double alpha_ts = draw.alpha_t / draw.alpha_s, corrector = 1.0 - draw.kappa;
        keep = (draw.kappa * (own + alpha_ts - draw.alpha_t) + corrector * draw.alpha_s * own) / z;
        uniformly = draw.kappa * (1.0 - alpha_ts) * (1.0 - draw.alpha_s) / z + corrector * (1.0 - draw.alpha_s);
    }
    const double branch = uniforms[1];
    if (branch < keep) {
        token = draw.present;
    } else if (branch < keep + uniformly) {
        token = u32(uniforms[0] * vocab);
    } else {
        return false;
    }
    return true;
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

    // The same for all threads.
    u32 token = best;
    if (draw.kind != MIXTURE || !settled(draw, row, cut, total, best, uniforms, token)) {
        if (total > 0.0) token = draw_token(row, cut, sums, uniforms[0] * total, shared);
    }
    if (threadIdx.x != 0) return;
    drawn.token = token;
    drawn.certainty = certainty;
}
