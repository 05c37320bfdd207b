// The rows that categorical.cu has left: weights, their sums and the order of the sums are the CPU's, so equal logits give equal
// tokens. Only the sums that find the nucleus are integers here (weights in 2^-46) and f64 there: they can differ where a sum
// lies within 1e-9 of the nucleus.
#include "cumulative.cuh"
#include "draws.cuh"
#include "nucleus.cuh"

// The rank from which on tokens are cut off.
DEVICE u64 limit_of(const Draw &draw, const Row &row, const Look &look, Scratch &scratch) {
    if (draw.temperature == 0.0f) {
        const float logit = logit_at(row, look.best);
        return rank(look.best, logit > LOWEST ? logit : LOWEST) + 1;
    }
    u64 limit = ALL;
    if (draw.top_k != 0 && draw.top_k < row.tokens) limit = crossing(row, ALL, true, draw.top_k, look.lowest, scratch);
    if (draw.nucleus_p < 1.0f) {
        u64 crossed = ALL;
        if (look.below < look.above) crossed = crossing_between(row, draw.nucleus_p, look.above, look.below, scratch);
        if (crossed == ALL) crossed = crossing(row, limit, false, draw.nucleus_p, look.lowest, scratch);
        if (crossed != ALL) {
            const u64 after = rank(look.best, look.highest) + 1;
            const u64 nucleus = draw.keeps_crossing ? crossed + 1 : crossed > after ? crossed : after;
            limit = nucleus < limit ? nucleus : limit;
        }
    }
    return limit;
}

// A block to a row of logits.
KERNEL_OF(categorical_exact, Categorical, 512, 2) {
    SHARED Scratch scratch;
    SHARED double shared[THREADS];
    SHARED double uniforms[2];
    const Draw &draw = a.draws[blockIdx.x];
    Drawn &drawn = a.drawn[blockIdx.x];
    if (draw.tokens == 0 || !drawn.again) return;
    if (threadIdx.x == THREADS - 1) draw_uniforms(draw, uniforms);
    const Look look = a.looks[blockIdx.x];
    double *sums = a.sums + size_t(blockIdx.x) * ((a.vocab + CHUNK - 1) / CHUNK);
    Row row = row_of(a, draw);
    row.top = finite(look.highest);

    double certainty = 0.0;
    if (draw.kind == SURE) {
        const float sharpness = row.sharpness;
        row.sharpness = 1.0f;
        const double total = total_of(row, cut_at(ALL), sums, shared);
        certainty = total > 0.0 ? 1.0 / total : 0.0;
        row.sharpness = sharpness;
    }
    const Cut cut = cut_at(limit_of(draw, row, look, scratch));
    const double total = total_of(row, cut, sums, shared);

    // The same for all threads.
    u32 token = look.best;
    Branch branch = FROM_X0;
    if (draw.kind == MIXTURE) {
        double p = draw.present == look.best ? 1.0 : 0.0;
        if (total > 0.0) {
            const bool known = draw.present < row.tokens;
            p = known ? weight_below(row, draw.present, logit_at(row, draw.present), cut) / total : 0.0;
        }
        branch = branch_of(draw, p, uniforms[1]);
    }
    if (branch == KEEPS) {
        token = draw.present;
    } else if (branch == ANY) {
        token = u32(uniforms[0] * double(row.tokens));
    } else if (total > 0.0) {
        token = draw_token(row, cut, sums, uniforms[0] * total, shared);
    }
    if (threadIdx.x != 0) return;
    drawn.token = token;
    drawn.certainty = certainty;
}
