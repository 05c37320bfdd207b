// One token a row from logits, as ops/categorical draws it on the CPU: the forbidden token out, temperature, the k best, the
// nucleus, then one draw by inverse CDF; for the uniform process a mixture of three.
//
// One look at a row gives the sums of its weights in f32, with bounds of their error. Nearly always they are enough to tell
// what the CPU draws, whose sums are f64 in an order of their own; where they are not, or where it takes the k best or a token
// of the nucleus, categorical_exact.cu goes on.
#include "bins.cuh"
#include "draws.cuh"

// A chunk's eight logits of a lane, four from token 4 lane on and four 128 further on: -infinity for what may not be drawn.
// `whole`: logits and biases lie at multiples of sixteen bytes.
DEVICE void eight_at(float (&logits)[8], const Row &row, u32 chunk, bool whole) {
    const u32 first = chunk * CHUNK + 4 * lane_id();
    if (whole && (chunk + 1) * CHUNK <= row.tokens) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 l = load16_once(row.logits + first + 128 * half), b = load16(row.bias + first + 128 * half);
            logits[4 * half] = float_of(l.x) + float_of(b.x);
            logits[4 * half + 1] = float_of(l.y) + float_of(b.y);
            logits[4 * half + 2] = float_of(l.z) + float_of(b.z);
            logits[4 * half + 3] = float_of(l.w) + float_of(b.w);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 token = first + i % 4 + 128 * (i / 4);
            logits[i] = token < row.tokens ? logit_at(row, token) : -INFINITY;
        }
    }
    if (row.forbidden / CHUNK != chunk) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (first + i % 4 + 128 * (i / 4) == row.forbidden) logits[i] = -INFINITY;
    }
}

// The best token, by a warp: the first with the highest logit. Of NaN alone, the first.
DEVICE u32 best_of(const Row &row, const float2 *chunks, u32 count, float highest) {
    for (u32 base = 0; base < count; base += 32) {
        u32 candidates = votes(base + lane_id() < count && chunks[base + lane_id()].x == highest);
        for (; candidates != 0; candidates &= candidates - 1) {
            const u32 first = (base + lowest_bit(candidates)) * CHUNK;
            float logits[CHUNK / 32];
            logits_at(logits, row, first + lane_id(), 32);
            for (int i = 0; i < CHUNK / 32; i++) {
                const u32 token = first + 32 * i + lane_id();
                const u32 equal = votes(logits[i] == highest && token != row.forbidden);
                if (equal != 0) return first + 32 * i + lowest_bit(equal);
            }
        }
    }
    return row.forbidden == 0 && row.tokens > 1 ? 1 : 0;
}

// A block to a row of logits; its warps take the chunks in turn.
KERNEL(categorical, Categorical, 1024) {
    DYNAMIC_SHARED(float2, chunks);  // of each the highest logit, and the sum of its weights
    SHARED Bins bins;
    SHARED double uniforms[2];
    const Draw &draw = a.draws[blockIdx.x];
    if (draw.tokens == 0) return;
    if (threadIdx.x == blockDim.x - 1) draw_uniforms(draw, uniforms);
    Row row = row_of(a, draw);
    const u32 count = (row.tokens + CHUNK - 1) / CHUNK, warps = blockDim.x / 32;
    const bool whole = ((size_t(row.logits) | size_t(row.bias)) & 15) == 0;
    const bool weighs = draw.temperature != 0.0f && (draw.kind == PREDICTED || draw.kind == MIXTURE) &&
                        (draw.top_k == 0 || draw.top_k >= row.tokens);
    const bool binned = weighs && draw.nucleus_p < 1.0f;
    const float scale = row.sharpness * LOG2_E;
    Range range;
    if (binned) {
        float logits[8], highest = -INFINITY, lowest = INFINITY;
        if (u32(warp_id()) < count) {
            eight_at(logits, row, warp_id(), whole);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                highest = greater(highest, logits[i]);
                lowest = logits[i] > -INFINITY && logits[i] < lowest ? logits[i] : lowest;
            }
        }
        range = start_bins(bins, highest, lowest, scale);
    }
    for (u32 chunk = warp_id(); chunk < count; chunk += warps) {
        float logits[8];
        eight_at(logits, row, chunk, whole);
        float highest = logits[0];
#pragma unroll
        for (int i = 1; i < 8; i++) highest = greater(highest, logits[i]);
        highest = greatest_of_warp(highest);
        float sum = 0.0f;
        if (weighs) {
            // In pairs: each number goes through eight roundings.
            const float from = highest > -INFINITY ? highest : 0.0f;
            float weights[8];
#pragma unroll
            for (int i = 0; i < 8; i++) weights[i] = power_of_two((logits[i] - from) * scale);
            sum = ((weights[0] + weights[1]) + (weights[2] + weights[3])) + ((weights[4] + weights[5]) + (weights[6] + weights[7]));
            sum = add_warp(sum);
        }
        if (lane_id() == 0) chunks[chunk] = make_float2(highest, sum);
        if (binned) {
#pragma unroll
            for (int i = 0; i < 8; i++) count_in(bins, range, logits[i]);
        }
    }
    barrier();
    if (warp_id() != 0) return;

    // From here on one warp. Sums become those of weights as they are, relative to the highest.
    float highest = -INFINITY, least = INFINITY;
    for (u32 chunk = lane_id(); chunk < count; chunk += 32) {
        const float of_chunk = chunks[chunk].x;
        highest = greater(highest, of_chunk);
        least = of_chunk > -INFINITY && of_chunk < least ? of_chunk : least;
    }
    highest = greatest_of_warp(highest);
    least = -greatest_of_warp(-least);
    row.top = finite(highest);
    double total = 0.0;
    for (u32 chunk = lane_id(); chunk < count; chunk += 32) {
        const float2 of_chunk = chunks[chunk];
        const float sum = of_chunk.y * power_of_two((of_chunk.x - row.top) * scale);
        chunks[chunk].y = sum;
        total += double(sum);
    }
    warp_barrier();
    for (int mask = 16; mask > 0; mask >>= 1) total += shuffle_xor(total, mask);
    // Weights differ from the CPU's by 2e-6, and by 4e-7 for every unit that their exponent is below 0: less than
    // log(tokens / total) of these on average. Infinite logits and NaN leave no total.
    const bool sound = weighs && total >= 1.0 - 1e-3 && total < 1e9;
    const double error = total * (2e-6 + 2.8e-7 * double(doublings(float(row.tokens), float(total))));

    u32 token = NONE;
    Edge edge = Edge{NAN, NAN, INFINITY, -INFINITY};
    if (draw.kind == BEST || (draw.temperature == 0.0f && draw.kind == PREDICTED)) {
        token = best_of(row, chunks, count, highest);
    } else if (sound) {
        // Bounds of the weights that are kept.
        double fewest = total - error, most = total + error;
        if (binned) {
            const double wanted = double(draw.nucleus_p) * total;
            edge = edge_of(bins, range, row.tokens - (row.forbidden < row.tokens), row.top, scale, float(total), float(wanted),
                           float(error + 2e-5 * total));
            fewest = wanted - error;
            most = wanted + error + double(power_of_two((edge.highest - row.top) * scale) * 1.001f);
        }
        Branch branch = FROM_X0;
        bool known = true;
        if (draw.kind == MIXTURE) {
            double least_p = 0.0, most_p = 0.0;
            if (draw.present < row.tokens && draw.present != row.forbidden) {
                const float present = logit_at(row, draw.present);
                const double weight = double(weight_of(row, present));
                known = !binned || (draw.keeps_crossing && (present > edge.highest || present < edge.lowest) && fewest > 0.0);
                const bool out = binned && present < edge.lowest;
                least_p = out ? 0.0 : weight / most;
                most_p = out ? 0.0 : weight / fewest;
            }
            branch = branch_of(draw, least_p, uniforms[1]);
            known = known && branch == branch_of(draw, most_p, uniforms[1]);
        }
        if (known && branch != FROM_X0) {
            token = branch == KEEPS ? draw.present : u32(uniforms[0] * double(row.tokens));
        } else if (known && !binned) {
            const double target = uniforms[0] * total;
            const Place chunk = place_of([&](u32 i) { return double(chunks[i].y); }, count, target);
            if (chunk.index != NONE) {
                const u32 first = chunk.index * CHUNK;
                auto weight_at = [&](u32 i) {
                    const u32 at = first + i;
                    return at < row.tokens ? weight_below(row, at, logit_at(row, at), cut_at(ALL)) : 0.0;
                };
                const Place place = place_of(weight_at, CHUNK, target - chunk.before);
                const double before = target - chunk.before - place.before;
                // What is drawn and the sum before it are off, each by the error.
                const bool clear = before >= 2.0 * error && place.number - before >= 2.0 * error;
                if (place.index != NONE && clear) token = first + place.index;
            }
        }
    }
    const u32 best = token == NONE ? best_of(row, chunks, count, highest) : 0;
    if (lane_id() != 0) return;
    a.drawn[blockIdx.x] = Drawn{0.0, token, token == NONE};
    if (token == NONE) a.looks[blockIdx.x] = Look{highest, highest - 3.0f * (highest - least), edge.above, edge.below, best, 0};
}
