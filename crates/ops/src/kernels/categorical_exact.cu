// The rows that categorical.cu has left. Weights are the CPU's, summed in f64 in any order where that tells what is drawn, else
// in the CPU's: so equal logits give equal tokens. Only where a nucleus cannot be told from one look are the sums that find it
// integers here (weights in 2^-46) and f64 there: they can differ where a sum lies within 1e-9 of the nucleus.
#include "cumulative.cuh"
#include "unordered.cuh"

// The rank from which on tokens are cut off.
DEVICE u64 limit_of(const Draw &draw, const Row &row, const Look &look, Scratch &scratch) {
    if (draw.temperature == 0.0f) {
        const float logit = logit_at(row, look.best);
        return rank(look.best, logit > LOWEST ? logit : LOWEST) + 1;
    }
    u64 limit = ALL;
    if (draw.top_k != 0 && draw.top_k < row.tokens) limit = crossing(row, ALL, true, draw.top_k, look.lowest, scratch);
    if (draw.nucleus_p < 1.0f) {
        const u64 crossed = crossing(row, limit, false, draw.nucleus_p, look.lowest, scratch);
        if (crossed != ALL) {
            const u64 after = rank(look.best, look.highest) + 1;
            const u64 nucleus = draw.keeps_crossing ? crossed + 1 : crossed > after ? crossed : after;
            limit = nucleus < limit ? nucleus : limit;
        }
    }
    return limit;
}

// What the CPU draws, in its order, the same for all threads.
DEVICE_CALL Drawn drawn_in_order(const Draw &draw, Row row, const Look &look, const double *uniforms, double *sums, Scratch &scratch) {
    SHARED double shared[CHUNK];
    Drawn drawn = Drawn{0.0, look.best, 1};
    const bool filtered = draw.kind == SURE_FILTERED && draw.temperature != 0.0f;
    const bool plain = is_sure(draw) && !filtered;
    const float sharpness = row.sharpness;
    double whole = 0.0;
    if (plain) {
        row.sharpness = 1.0f;
        whole = total_of(row, cut_at(ALL), sums);
        row.sharpness = sharpness;
    }
    const Cut cut = cut_at(limit_of(draw, row, look, scratch));
    const double total = total_of(row, cut, sums);
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
        drawn.token = draw.present;
    } else if (branch == ANY) {
        drawn.token = u32(uniforms[0] * double(row.tokens));
    } else if (total > 0.0) {
        drawn.token = draw_token(row, cut, sums, uniforms[0] * total, shared);
    }
    if (plain) row.sharpness = 1.0f;
    if (draw.kind == SURE) {
        drawn.certainty = whole > 0.0 ? 1.0 / whole : 0.0;
    } else if (plain) {
        drawn.certainty = whole > 0.0 ? weight_below(row, drawn.token, logit_at(row, drawn.token), cut_at(ALL)) / whole : 0.0;
    } else if (filtered) {
        const double weight = total > 0.0 ? weight_below(row, drawn.token, logit_at(row, drawn.token), cut) / total : 0.0;
        drawn.certainty = total > 0.0 ? weight : 1.0;
    }
    return drawn;
}

// A block to a row of logits.
KERNEL_OF(categorical_exact, Categorical, 32 * WARPS, 2) {
    DYNAMIC_SHARED(double, sums);  // of chunks
    SHARED Scratch scratch;
    SHARED double uniforms[2];
    const Draw &draw = a.draws[blockIdx.x];
    Drawn &drawn = a.drawn[blockIdx.x];
    if (draw.tokens == 0 || !drawn.again) return;
    if (threadIdx.x == blockDim.x - 1) draw_uniforms(draw, uniforms);
    barrier();
    const Look &look = a.looks[blockIdx.x];
    Row row = row_of(a, draw);
    row.top = finite(look.highest);
    const bool all = draw.top_k == 0 || draw.top_k >= row.tokens;
    u32 token = NONE;
    if (all && draw.temperature != 0.0f && !is_sure(draw)) token = token_unordered(draw, row, look, uniforms, sums, scratch);
    const Drawn found = token != NONE ? Drawn{0.0, token, 1} : drawn_in_order(draw, row, look, uniforms, sums, scratch);
    if (threadIdx.x == 0) drawn = found;
}
