// Attention on the tensor cores, for bf16: queries in tiles of one segment over cached pages and the batch's own keys and
// values. A tile's queries are those of all heads that share a key: token by token, of a token head by head. Weights never leave the chip: scores, their exponentials and the sums run in registers while keys and values
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

// The queries of a block's tile: up to ROWS of the heads that share key `blockIdx.y`.
struct Queries {
    u32 group;  // heads that share a key
    u32 token;  // the first one
    u32 count;

    template <int ROWS>
    DEVICE static Queries of(const Attend &a, const Segment &segment, u32 token) {
        Queries q;
        q.group = a.heads / a.kv_heads;
        q.token = token;
        const u32 most = ROWS / q.group, left = segment.tokens - token;
        q.count = (left < most ? left : most) * q.group;
        return q;
    }
    // Those past the last are the last once more.
    DEVICE u32 clamped(u32 query) const { return query < count ? query : count - 1; }
    DEVICE u32 token_of(u32 query) const { return token + clamped(query) / group; }
    DEVICE u32 head_of(u32 query) const { return blockIdx.y * group + clamped(query) % group; }
};

// Rows of shared memory lie four banks apart.
template <int DIM>
constexpr int PITCH = DIM + 8;

// Starts copies of the keys and values of CHUNK positions, by all threads of a block; zeros from position `until` on.
template <int DIM, int CHUNK, int THREADS>
DEVICE void fetch(const Attend &a, const Segment &segment, u32 head, u32 first, u32 until, bf16 *keys, bf16 *values) {
    const int PIECES = DIM / 8, TURN = THREADS / PIECES;  // keys that threads copy at once
    const u32 hidden = a.kv_heads * DIM, key = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
    const u32 place = key * PITCH<DIM> + column;
    // Rows of the batch lie one after the other.
    const bool own = first >= segment.first_position && first + CHUNK <= until;
    const size_t row = own ? segment.first_row + first + key - segment.first_position : 0;
    const bf16 *at = static_cast<const bf16 *>(a.current) + row * a.current_pitch + head + column;
#pragma unroll
    for (int i = 0; i < CHUNK / TURN; i++) {
        bf16 *to = keys + place + i * TURN * PITCH<DIM>, *value_to = values + place + i * TURN * PITCH<DIM>;
        if (own) {
            copy16_async(to, at);
            copy16_async(value_to, at + hidden);
            at += TURN * a.current_pitch;
            continue;
        }
        const u32 position = first + key + i * TURN;
        if (position < until) {
            size_t value;
            const bf16 *from = key_at<bf16>(a, segment, position, value) + head + column;
            copy16_async(to, from);
            copy16_async(value_to, from + value);
        } else {
            store16(to, make_uint4(0, 0, 0, 0));
            store16(value_to, make_uint4(0, 0, 0, 0));
        }
    }
    copies_commit();
}

// Two numbers of a query's output.
template <int DIM>
DEVICE void write_pair(const Attend &a, u32 row, u32 head, u32 column, float first, float second) {
    bf16 *out = static_cast<bf16 *>(a.out) + (size_t(row) * a.heads + head) * DIM + column;
    *reinterpret_cast<u32 *>(out) = pack_bf16(first, second);
}

// Scores of keys that a query does not see become LOWEST. `first`: the position of the first key.
template <int TILES>
DEVICE void hide(float (&scores)[TILES][4], u32 first, const Segment &segment, u32 window, const u32 (&tokens)[2]) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
        u32 begin, end;
        visible(segment, tokens[row], window, begin, end);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            const u32 position = first + 8 * (i / 2) + 2 * (lane_id() % 4) + i % 2;
            if (position < begin || position >= end) scores[i / 2][2 * row + i % 2] = LOWEST;
        }
    }
}

// What sixteen queries have seen so far: the lane's two, g and g + 8.
template <int PIECES>
struct Seen {
    float sums[PIECES][4];  // of weights times values
    float highest[2];
    float total[2];         // of the lane's own weights
};

// From scores of more keys to weights, relative to the highest score so far.
template <int TILES, int PIECES>
DEVICE void weigh(float (&scores)[TILES][4], Seen<PIECES> &seen) {
    float before[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float now = seen.highest[row];
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) now = greater(now, scores[i / 2][2 * row + i % 2]);
        // The four lanes of a row.
        now = greater(now, shuffle_xor(now, 1));
        now = greater(now, shuffle_xor(now, 2));
        before[row] = seen.highest[row];
        seen.highest[row] = now;
    }
    if (votes(before[0] < seen.highest[0] || before[1] < seen.highest[1]) != 0) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const float less = power_of_two((before[row] - seen.highest[row]) * LOG2_E);
            seen.total[row] *= less;
#pragma unroll
            for (int i = 0; i < 2 * PIECES; i++) seen.sums[i / 2][2 * row + i % 2] *= less;
        }
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        // What is not seen is LOWEST, and so may the highest be.
        const float top = seen.highest[row] > LOWEST ? -LOG2_E * seen.highest[row] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            float &score = scores[i / 2][2 * row + i % 2];
            score = power_of_two(fused(score, LOG2_E, top));
            seen.total[row] += score;
        }
    }
}

// The weights of sixteen keys as mma_bf16 takes them.
DEVICE void pack_weights(u32 (&weights)[4], const float (&first)[4], const float (&second)[4]) {
    weights[0] = pack_bf16(first[0], first[1]);
    weights[1] = pack_bf16(first[2], first[3]);
    weights[2] = pack_bf16(second[0], second[1]);
    weights[3] = pack_bf16(second[2], second[3]);
}
