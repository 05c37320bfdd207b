// Rows of what variants keep by themselves, read back: the embedding's, and whole matrices.
#include "own.cuh"

// x [rows, width] += what a part's variant keeps of the row of its token. A block to a part (grid x) and a span of the width (grid y).
struct EmbedOwn {
    float *x;           // [rows, width]
    const u32 *tokens;  // [rows]; NONE for a row that pads the batch
    const Part *parts;  // no two of one row; those that pad the batch have no weight
    const Own *own;     // [variants]
    u32 vocab;
    u32 width;
    u32 size;           // of a block of the transform
    u32 span;           // whole blocks, at most MOST_SPAN
};

KERNEL(embed_own, EmbedOwn, 256) {
    SHARED float values[MOST_SPAN];
    const Part part = a.parts[blockIdx.x];
    const u32 token = a.tokens[part.row];
    const Own &own = a.own[part.variant];
    if (token == NONE || part.weight == 0.0f || !own.signs) return;
    const Span span = span_of(blockIdx.y, a.span, a.size, a.width);
    delta_span(own, values, token, span, a.vocab, a.width, 256);
    float *x = a.x + size_t(part.row) * a.width + span.first;
    const float weight = part.weight * own.scale;
    for (u32 i = threadIdx.x; i < span.count; i += 256) x[i] = fused(weight, values[i], x[i]);
}

// target [out, input] = base + weight · c · delta. A block to a row (grid x) and a span of the input (grid y).
struct RetrieveOwn {
    const void *base;  // [out, input]
    void *target;      // [out, input]; the base is allowed
    const Own *own;    // one
    u32 out;
    u32 input;
    u32 size;
    u32 span;
    float weight;
    u32 unused;
};

template <typename T>
DEVICE void retrieve_own(const RetrieveOwn &a) {
    SHARED float values[MOST_SPAN];
    const Own &own = *a.own;
    const Span span = span_of(blockIdx.y, a.span, a.size, a.input);
    const size_t at = size_t(blockIdx.x) * a.input + span.first;
    delta_span(own, values, blockIdx.x, span, a.out, a.input, 256);
    const T *base = static_cast<const T *>(a.base) + at;
    T *target = static_cast<T *>(a.target) + at;
    const float weight = a.weight * own.scale;
    for (u32 i = threadIdx.x; i < span.count; i += 256) target[i] = narrow<T>(fused(weight, values[i], widen(base[i])));
}

KERNEL(retrieve_own_f32, RetrieveOwn, 256) { retrieve_own<float>(a); }
KERNEL(retrieve_own_bf16, RetrieveOwn, 256) { retrieve_own<bf16>(a); }
