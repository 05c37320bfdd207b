// What attention needs to know of a batch: see model::Segment for the rule of what sees what.
#pragma once
#include "device.cuh"

struct Segment {
    u32 first_row;
    u32 tokens;
    u32 first_position;
    u32 block;        // tokens to a block; all of them where there are no blocks
    u32 pages;        // index of its first page in the batch's list of pages
    u32 pages_start;  // position of that page's first slot
    u32 oldest;       // first position that may be seen
    u32 begun;        // tokens of the first token's block that are not the segment's
};

struct Attend {
    const void *q;        // [rows, q_pitch]
    const void *current;  // [rows, current_pitch]: keys and values of the batch itself
    const void *cache;    // pages: [page][layer][2][page_tokens][kv_heads * head_dim]
    void *out;            // [rows, heads * head_dim]
    const u32 *segment;   // [rows]: the row's segment; NONE for what pads the batch
    const Segment *segments;
    const u32 *pages;
    u32 heads;
    u32 head_dim;
    u32 layer;
    u32 layers;
    u32 page_tokens;
    u32 window;
    u32 q_pitch;
    u32 current_pitch;
    u32 kv_heads;  // a divisor of `heads`: so many of these share a key
    u32 unused;
};

// The positions begin .. end that a query, token `token` of a segment, sees.
DEVICE void visible(const Segment &segment, u32 token, u32 window, u32 &begin, u32 &end) {
    const u32 block_end = ((token + segment.begun) / segment.block + 1) * segment.block - segment.begun;
    end = segment.first_position + (block_end < segment.tokens ? block_end : segment.tokens);
    const u32 from = end > window ? end - window : 0;
    begin = from > segment.oldest ? from : segment.oldest;
}

// The key of one position, all its heads; `hidden` further on, in the batch itself, or a page's worth further on, in the cache,
// lies the value: `value` is set to the distance.
template <typename T>
DEVICE const T *key_at(const Attend &a, const Segment &segment, u32 position, size_t &value) {
    const u32 hidden = a.kv_heads * a.head_dim;
    if (position >= segment.first_position) {
        value = hidden;
        return static_cast<const T *>(a.current) + size_t(segment.first_row + position - segment.first_position) * a.current_pitch;
    }
    const u32 offset = position - segment.pages_start;
    const size_t page = size_t(a.pages[segment.pages + offset / a.page_tokens]) * a.layers + a.layer;
    value = size_t(a.page_tokens) * hidden;
    return static_cast<const T *>(a.cache) + (page * 2 * a.page_tokens + offset % a.page_tokens) * hidden;
}
