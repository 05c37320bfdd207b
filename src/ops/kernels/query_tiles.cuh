// Attention on the tensor cores, for bf16: queries in tiles of one segment over cached pages and the batch's own keys and
// values. Weights never leave the chip: scores, their exponentials and the sums run in registers while keys and values
// stream through shared memory.
#pragma once
#include "segments.cuh"

struct QueryTile {
    u32 segment;  // NONE for a tile that pads the launch
    u32 first;    // first token
};

struct BlockAttend {
    Attend attend;
    const QueryTile *tiles;  // [grid x]
};

const float LOWEST = -1e30f;

// Rows of shared memory lie four banks apart.
template <int DIM>
constexpr int PITCH = DIM + 8;

// Starts copies of the keys and values of CHUNK positions, by all threads of a block; zeros from position `until` on.
template <int DIM, int CHUNK, int THREADS>
DEVICE void fetch(const Attend &a, const Segment &segment, u32 head, u32 first, u32 until, bf16 *keys, bf16 *values) {
    const int PIECES = DIM / 8, APART = THREADS / PIECES;
    const u32 hidden = a.heads * DIM, key = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
    bf16 *to = keys + key * PITCH<DIM> + column, *value_to = values + key * PITCH<DIM> + column;
    // Rows of the batch lie one after the other.
    const bool own = first >= segment.first_position && first + CHUNK <= until;
    const size_t row = own ? segment.first_row + first + key - segment.first_position : 0;
    const bf16 *at = static_cast<const bf16 *>(a.current) + row * 2 * hidden + head + column;
#pragma unroll
    for (int i = 0; i < CHUNK / APART; i++) {
        const int place = i * APART * PITCH<DIM>;
        if (own) {
            copy16_async(to + place, at);
            copy16_async(value_to + place, at + hidden);
            at += APART * 2 * hidden;
            continue;
        }
        const u32 position = first + key + i * APART;
        if (position < until) {
            size_t value;
            const bf16 *from = key_at<bf16>(a, segment, position, value) + head + column;
            copy16_async(to + place, from);
            copy16_async(value_to + place, from + value);
        } else {
            store16(to + place, make_uint4(0, 0, 0, 0));
            store16(value_to + place, make_uint4(0, 0, 0, 0));
        }
    }
    copies_commit();
}

// Two numbers of a query's row of the output.
template <int DIM>
DEVICE void write_pair(const Attend &a, u32 row, u32 head, u32 column, float first, float second) {
    bf16 *out = static_cast<bf16 *>(a.out) + size_t(row) * a.heads * DIM + head + column;
    *reinterpret_cast<u32 *>(out) = pack_bf16(first, second);
}
