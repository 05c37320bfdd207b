// Segments of many queries: every warp has M times sixteen of its own, and all keys that any of a block's 128 sees.
#include "query_tiles.cuh"

// Keys in shared memory at once, and those whose scores a warp has at once.
const int CHUNK = 64, KEYS = 32;

// A block to a tile of queries (grid x) and a head (grid y).
template <int DIM, int M>
DEVICE void block_attend_many(const BlockAttend &args) {
    const Attend &a = args.attend;
    const int WARPS = 8 / M, QUERIES = 16 * M, TILES = KEYS / 8, STEPS = DIM / 16, PIECES = DIM / 8;
    DYNAMIC_SHARED(bf16, shared);  // [2][keys | values][CHUNK][PITCH]

    const QueryTile tile = args.tiles[blockIdx.x];
    if (tile.segment == NONE) return;
    const Segment segment = a.segments[tile.segment];
    const u32 hidden = a.heads * DIM, head = blockIdx.y * DIM;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const u32 stop = tile.first + WARPS * QUERIES < segment.tokens ? tile.first + WARPS * QUERIES : segment.tokens;
    const u32 mine = tile.first + QUERIES * warp_id();  // the warp's first

    // Queries g and g + 8 of every sixteen; those past the last are the last once more.
    auto token_of = [&](int row) { return mine + g + 8 * row < stop ? mine + g + 8 * row : stop - 1; };
    u32 q[M][STEPS][4];
#pragma unroll
    for (int row = 0; row < 2 * M; row++) {
        const bf16 *from = static_cast<const bf16 *>(a.q) + size_t(segment.first_row + token_of(row)) * hidden + head;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            q[row / 2][step][row % 2] = *reinterpret_cast<const u32 *>(from + 16 * step + 2 * t);
            q[row / 2][step][row % 2 + 2] = *reinterpret_cast<const u32 *>(from + 16 * step + 2 * t + 8);
        }
    }
    // Keys that any query of the tile sees, that any of the warp does, and that all of the warp do: later ones see later.
    u32 from, until, some_from, some_until, all_from, all_until, unused;
    visible(segment, tile.first, a.window, from, unused);
    visible(segment, stop - 1, a.window, unused, until);
    visible(segment, mine < stop ? mine : stop - 1, a.window, some_from, all_until);
    visible(segment, mine + QUERIES < stop ? mine + QUERIES - 1 : stop - 1, a.window, all_from, some_until);
    if (mine >= stop) some_until = 0;

    float sums[M][PIECES][4] = {};
    float highest[2 * M], total[2 * M] = {};
#pragma unroll
    for (int row = 0; row < 2 * M; row++) highest[row] = LOWEST;

    auto keys_at = [&](int half) { return shared + half * 2 * CHUNK * PITCH<DIM>; };
    auto ask = [&](u32 chunk, int half) {
        bf16 *keys = keys_at(half);
        fetch<DIM, CHUNK, 32 * WARPS>(a, segment, head, chunk, until, keys, keys + CHUNK * PITCH<DIM>);
    };
    ask(from, 0);
    int half = 0;
    for (u32 chunk = from; chunk < until; chunk += CHUNK, half ^= 1) {
        copies_wait<0>();
        barrier();  // this chunk is there, and the other half is free
        if (chunk + CHUNK < until) ask(chunk + CHUNK, half ^ 1);
#pragma unroll 1
        for (u32 first = chunk; first < chunk + CHUNK; first += KEYS) {
            if (first >= some_until || first + KEYS <= some_from) continue;
            const bf16 *keys = keys_at(half) + (first - chunk) * PITCH<DIM>, *values = keys + CHUNK * PITCH<DIM>;

            float scores[M][TILES][4] = {};
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
#pragma unroll
                for (int pair = 0; pair < TILES / 2; pair++) {
                    // Eight keys and the next eight, eight columns and the next eight.
                    const int key = 16 * pair + lane_id() / 16 * 8 + lane_id() % 8, column = 16 * step + lane_id() / 8 % 2 * 8;
                    u32 k[4];
                    load_matrices(k, keys + key * PITCH<DIM> + column);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma_bf16(scores[m][2 * pair], q[m][step], k[0], k[1]);
                        mma_bf16(scores[m][2 * pair + 1], q[m][step], k[2], k[3]);
                    }
                }
            }
            if (first < all_from || first + KEYS > all_until) {
#pragma unroll
                for (int row = 0; row < 2 * M; row++) {
                    u32 begin, end;
                    visible(segment, token_of(row), a.window, begin, end);
#pragma unroll
                    for (int i = 0; i < 2 * TILES; i++) {
                        const u32 position = first + 8 * (i / 2) + 2 * t + i % 2;
                        if (position < begin || position >= end) scores[row / 2][i / 2][row % 2 * 2 + i % 2] = LOWEST;
                    }
                }
            }
            bool higher = false;
            float before[2 * M];
#pragma unroll
            for (int row = 0; row < 2 * M; row++) {
                float now = highest[row];
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) now = greater(now, scores[row / 2][i / 2][row % 2 * 2 + i % 2]);
                // The four lanes of a row.
                now = greater(now, shuffle_xor(now, 1));
                now = greater(now, shuffle_xor(now, 2));
                before[row] = highest[row];
                higher |= now > highest[row];
                highest[row] = now;
            }
            if (votes(higher) != 0) {
#pragma unroll
                for (int row = 0; row < 2 * M; row++) {
                    const float less = power_of_two((before[row] - highest[row]) * LOG2_E);
                    total[row] *= less;
#pragma unroll
                    for (int i = 0; i < 2 * PIECES; i++) sums[row / 2][i / 2][row % 2 * 2 + i % 2] *= less;
                }
            }
#pragma unroll
            for (int row = 0; row < 2 * M; row++) {
                // What is not seen is LOWEST, and so may the highest be.
                const float top = highest[row] > LOWEST ? -LOG2_E * highest[row] : 0.0f;
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) {
                    float &score = scores[row / 2][i / 2][row % 2 * 2 + i % 2];
                    score = power_of_two(fused(score, LOG2_E, top));
                    total[row] += score;
                }
            }
#pragma unroll
            for (int pair = 0; pair < TILES / 2; pair++) {
                u32 weights[M][4];
#pragma unroll
                for (int i = 0; i < 4 * M; i++) {
                    const float *two = &scores[i / 4][2 * pair + i % 4 / 2][i % 2 * 2];
                    weights[i / 4][i % 4] = pack_bf16(two[0], two[1]);
                }
#pragma unroll
                for (int i = 0; i < PIECES; i += 2) {
                    // Keys 0 .. 8 and 8 .. 16 of the pair, eight columns and the next eight.
                    const int key = 16 * pair + lane_id() % 16, column = 8 * i + lane_id() / 16 * 8;
                    u32 v[4];
                    load_transposed(v, values + key * PITCH<DIM> + column);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma_bf16(sums[m][i], weights[m], v[0], v[1]);
                        mma_bf16(sums[m][i + 1], weights[m], v[2], v[3]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int row = 0; row < 2 * M; row++) {
        total[row] += shuffle_xor(total[row], 1);
        total[row] += shuffle_xor(total[row], 2);
        const u32 token = mine + g + 8 * row;
        const float inverse = total[row] > 0.0f ? 1.0f / total[row] : 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            const float *two = &sums[row / 2][i][row % 2 * 2];
            if (token < stop) write_pair<DIM>(a, segment.first_row + token, head, 8 * i + 2 * t, two[0] * inverse, two[1] * inverse);
        }
    }
}

KERNEL_OF(block_attend_many_32, BlockAttend, 128, 3) { block_attend_many<32, 2>(a); }
KERNEL_OF(block_attend_many_64, BlockAttend, 128, 3) { block_attend_many<64, 2>(a); }
// A warp's registers have no room for twice as many sums.
KERNEL_OF(block_attend_many_128, BlockAttend, 256, 1) { block_attend_many<128, 1>(a); }
