// Segments of many queries: a block has up to 128 of one, every warp M times sixteen of them and all keys that any of them sees.
#include "query_tiles.cuh"

const int CHUNK = 64;  // keys in shared memory at once

// What a block looks at.
struct Task {
    Segment segment;
    u32 from, until;  // keys that any of the queries sees
};

// Asked for again at the end: a loop's registers have no room for it.
DEVICE Queries queries_of(const BlockAttend &args, const Segment &segment) {
    return Queries::of<128>(args.attend, segment, args.tiles[blockIdx.x].first);
}

DEVICE bool task_of(Task &task, const BlockAttend &args) {
    const QueryTile tile = args.tiles[blockIdx.x];
    if (tile.segment == NONE) return false;
    task.segment = args.attend.segments[tile.segment];
    const Queries queries = queries_of(args, task.segment);
    u32 unused;
    visible(task.segment, tile.first, args.attend.window, task.from, unused);
    visible(task.segment, queries.token_of(127), args.attend.window, unused, task.until);
    return true;
}

// The sixteen queries from `first` on.
template <int STEPS>
struct Sixteen {
    u32 tokens[2];  // of g and g + 8
    u32 some_from, some_until, all_from, all_until;  // keys that any sees, and that all see: later ones see later
    u32 q[STEPS][4];

    DEVICE void load(const Attend &a, const Task &task, const Queries &queries, u32 first) {
        const int g = lane_id() / 4, t = lane_id() % 4;
        visible(task.segment, queries.token_of(first), a.window, some_from, all_until);
        visible(task.segment, queries.token_of(first + 15), a.window, all_from, some_until);
        if (first >= queries.count) some_until = 0;
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const u32 query = first + g + 8 * row;
            tokens[row] = queries.token_of(query);
            const bf16 *from = static_cast<const bf16 *>(a.q) + size_t(task.segment.first_row + tokens[row]) * a.q_pitch +
                               queries.head_of(query) * (16 * STEPS);
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                q[step][row] = *reinterpret_cast<const u32 *>(from + 16 * step + 2 * t);
                q[step][row + 2] = *reinterpret_cast<const u32 *>(from + 16 * step + 2 * t + 8);
            }
        }
    }

    DEVICE bool sees(u32 first, u32 count) const { return first < some_until && first + count > some_from; }

    template <int TILES>
    DEVICE void hide_unseen(float (&scores)[TILES][4], u32 first, const Task &task, u32 window) const {
        if (first < all_from || first + 8 * TILES > all_until) hide(scores, first, task.segment, window, tokens);
    }
};

// Writes what sixteen queries have seen.
template <int DIM>
DEVICE void write(const Attend &a, const Task &task, const Queries &queries, u32 first, Seen<DIM / 8> &seen) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
        float total = seen.total[row];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        const u32 query = first + lane_id() / 4 + 8 * row;
        if (query >= queries.count) continue;
        const u32 at = task.segment.first_row + queries.token_of(query), head = queries.head_of(query);
        const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
        for (int i = 0; i < DIM / 8; i++) {
            const float *two = &seen.sums[i][2 * row];
            const u32 column = 8 * i + 2 * (lane_id() % 4);
            write_pair<DIM>(a, at, head, column, two[0] * inverse, two[1] * inverse);
        }
    }
}

// A block to a tile of queries (grid x) and a head of keys (grid y).
template <int DIM, int M>
DEVICE void block_attend_many(const BlockAttend &args) {
    const Attend &a = args.attend;
    const int WARPS = 8 / M, TILES = CHUNK / 8, STEPS = DIM / 16, PIECES = DIM / 8;
    DYNAMIC_SHARED(bf16, shared);  // [2][keys | values][CHUNK][PITCH]
    Task task;
    if (!task_of(task, args)) return;
    const Queries queries = queries_of(args, task.segment);
    Sixteen<STEPS> own[M];
    Seen<PIECES> seen[M] = {};
#pragma unroll
    for (int m = 0; m < M; m++) {
        own[m].load(a, task, queries, 16 * (M * warp_id() + m));
        seen[m].highest[0] = seen[m].highest[1] = LOWEST;
    }
    auto keys_at = [&](int half) { return shared + half * 2 * CHUNK * PITCH<DIM>; };
    auto ask = [&](u32 chunk, int half) {
        bf16 *keys = keys_at(half);
        fetch<DIM, CHUNK, 32 * WARPS>(a, task.segment, blockIdx.y * DIM, chunk, task.until, keys, keys + CHUNK * PITCH<DIM>);
    };
    ask(task.from, 0);
    int half = 0;
    for (u32 chunk = task.from; chunk < task.until; chunk += CHUNK, half ^= 1) {
        copies_wait<0>();
        barrier();  // this chunk is there, and the other half is free
        if (chunk + CHUNK < task.until) ask(chunk + CHUNK, half ^ 1);
        bool any = false;
#pragma unroll
        for (int m = 0; m < M; m++) any |= own[m].sees(chunk, CHUNK);
        if (!any) continue;
        const bf16 *keys = keys_at(half), *values = keys + CHUNK * PITCH<DIM>;

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
                    mma_bf16(scores[m][2 * pair], own[m].q[step], k[0], k[1]);
                    mma_bf16(scores[m][2 * pair + 1], own[m].q[step], k[2], k[3]);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
            own[m].hide_unseen(scores[m], chunk, task, a.window);
            weigh(scores[m], seen[m]);
        }
#pragma unroll
        for (int pair = 0; pair < TILES / 2; pair++) {
            u32 weights[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) pack_weights(weights[m], scores[m][2 * pair], scores[m][2 * pair + 1]);
#pragma unroll
            for (int i = 0; i < PIECES; i += 2) {
                // Keys 0 .. 8 and 8 .. 16 of the pair, eight columns and the next eight.
                const int key = 16 * pair + lane_id() % 16, column = 8 * i + lane_id() / 16 * 8;
                u32 v[4];
                load_transposed(v, values + key * PITCH<DIM> + column);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma_bf16(seen[m].sums[i], weights[m], v[0], v[1]);
                    mma_bf16(seen[m].sums[i + 1], weights[m], v[2], v[3]);
                }
            }
        }
    }
    const Queries again = queries_of(args, task.segment);
#pragma unroll
    for (int m = 0; m < M; m++) write<DIM>(a, task, again, 16 * (M * warp_id() + m), seen[m]);
}

KERNEL_OF(block_attend_many_64, BlockAttend, 128, 2) { block_attend_many<64, 2>(a); }
KERNEL_OF(block_attend_many_32, BlockAttend, 128, 2) { block_attend_many<32, 2>(a); }
// A warp's registers have no room for twice as many sums.
KERNEL_OF(block_attend_many_128, BlockAttend, 256, 1) { block_attend_many<128, 1>(a); }
