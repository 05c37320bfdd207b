// What is drawn from rows of logits, and what two looks at them have in common.
#pragma once
#include "logits.cuh"

enum Kind { PREDICTED = 0, BEST = 1, SURE = 2, MIXTURE = 3, SURE_DRAWN = 4, SURE_FILTERED = 5 };
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

// Whether a probability is told beside the token.
DEVICE bool is_sure(const Draw &draw) { return draw.kind == SURE || draw.kind == SURE_DRAWN || draw.kind == SURE_FILTERED; }

struct Drawn {
    double certainty;
    u32 token;
    u32 again;  // whether the first look left it to the second
};

// What the first look leaves for the second.
struct Look {
    float highest;  // logit
    float lowest;   // about
    float above;    // the nucleus most likely ends between these; NAN where nothing is known
    float below;
    u32 best;       // token
    u32 unused;
};

struct Categorical {
    const float *logits;  // [rows, pitch]
    const float *biases;  // slots of biases: added to the logits
    const u32 *mix;       // [rows of the batch]: the slot of a row's biases
    const u32 *rows;      // [rows]: the row of the batch that a row of logits belongs to, or NONE
    const Draw *draws;    // [rows]
    Drawn *drawn;         // [rows]
    Look *looks;          // [rows]
    u32 vocab;
    u32 pitch;
    u32 bias_stride;
    u32 bias;
};

DEVICE Row row_of(const Categorical &a, const Draw &draw) {
    Row row;
    row.logits = a.logits + size_t(blockIdx.x) * a.pitch;
    row.bias = a.biases + size_t(a.mix[a.rows[blockIdx.x]]) * a.bias_stride + a.bias;
    row.tokens = draw.tokens;
    row.forbidden = draw.forbidden;
    const float sharpness = 1.0f / draw.temperature;
    row.sharpness = draw.temperature == 0.0f ? 1.0f : sharpness < -LOWEST ? sharpness : -LOWEST;
    return row;
}

// Infinite logits count as the highest there is.
DEVICE float finite(float logit) { return logit < LOWEST ? LOWEST : logit > -LOWEST ? -LOWEST : logit; }

// Both numbers of a row lie in one block of the noise.
DEVICE void draw_uniforms(const Draw &draw, double (&uniforms)[2]) {
    u32 words[16];
    chacha8(draw.key, u64(draw.step) << 32 | draw.position, words);
    uniforms[0] = unit(words[2 * TOKEN], words[2 * TOKEN + 1]);
    uniforms[1] = unit(words[2 * BRANCH], words[2 * BRANCH + 1]);
}

enum Branch { KEEPS, ANY, FROM_X0 };

// Which of the three a step of the uniform process is, `p` being what x0 gives the present token. One of them for all p between
// two that give it: both bounds rise or fall with p throughout.
DEVICE Branch branch_of(const Draw &draw, double p, double uniform) {
    const double own = draw.alpha_t * double(draw.tokens) * p, z = own + 1.0 - draw.alpha_t;
    double keep = 0.0, uniformly = 1.0 - draw.alpha_s;
    if (z > 0.0) {
        const double alpha_ts = draw.alpha_t / draw.alpha_s, corrector = 1.0 - draw.kappa;
        keep = (draw.kappa * (own + alpha_ts - draw.alpha_t) + corrector * draw.alpha_s * own) / z;
        uniformly = draw.kappa * (1.0 - alpha_ts) * (1.0 - draw.alpha_s) / z + corrector * (1.0 - draw.alpha_s);
    }
    return uniform < keep ? KEEPS : uniform < keep + uniformly ? ANY : FROM_X0;
}
