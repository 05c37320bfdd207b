// Segments of few queries: all warps of a block have the same sixteen and share out the keys. What a step reads from the cache
// is from steps before, since rows of the batch are read beside it: so the first chunks are asked for before the kernel before
// has ended.
#include "query_tiles.cuh"

// A block to a tile of queries (grid x) and a head of keys (grid y).
template <int DIM, int WARPS, int STAGES>
DEVICE void block_attend(const BlockAttend &args) {
    const Attend &a = args.attend;
    const int CHUNK = 16 * WARPS;  // keys in shared memory at once
    const int TILES = 2, STEPS = DIM / 16, PIECES = DIM / 8;
    const int THREADS = 32 * WARPS;
    DYNAMIC_SHARED(bf16, shared);  // [STAGES][keys | values][CHUNK][PITCH]

    const QueryTile tile = args.tiles[blockIdx.x];
    if (tile.segment == NONE) {
        await_before();  // no block ends before what it follows
        return;
    }
    const Segment segment = a.segments[tile.segment];
    const u32 hidden = a.kv_heads * DIM, head = blockIdx.y * DIM;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const Queries queries = Queries::of<16>(a, segment, tile.first);
    // Keys that any query of the tile sees.
    u32 from, until, unused;
    visible(segment, tile.first, a.window, from, unused);
    visible(segment, queries.token_of(15), a.window, unused, until);

    // Queries g and g + 8.
    u32 begin[2], end[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        visible(segment, queries.token_of(g + 8 * half), a.window, begin[half], end[half]);
    }

    auto keys_at = [&](u32 chunk) { return shared + chunk % STAGES * 2 * CHUNK * PITCH<DIM>; };
    // A thread copies sixteen bytes of COPIES keys of a chunk, and of their values. Pages are looked up before.
    const int APART = THREADS / PIECES, COPIES = CHUNK / APART;
    const u32 key = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8, before = segment.first_position;
    auto look_up = [&](u32 chunk, u32 (&pages)[COPIES]) {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const u32 position = from + chunk * CHUNK + key + i * APART;
            const bool cached = position < before && position < until;
            pages[i] = cached ? a.pages[segment.pages + (position - segment.pages_start) / a.page_tokens] : 0;
        }
    };
    // What lies in the cache of a chunk, and the rest of it.
    auto ask_cached = [&](u32 chunk, const u32 (&pages)[COPIES]) {
        bf16 *to = keys_at(chunk) + key * PITCH<DIM> + column;
#pragma unroll
        for (int i = 0; i < COPIES; i++, to += APART * PITCH<DIM>) {
            const u32 position = from + chunk * CHUNK + key + i * APART;
            if (position >= before || position >= until) continue;
            const size_t page = (size_t(pages[i]) * a.layers + a.layer) * 2;
            const u32 token = (position - segment.pages_start) % a.page_tokens;
            const bf16 *at = static_cast<const bf16 *>(a.cache) + (page * a.page_tokens + token) * hidden + head + column;
            copy16_async(to, at);
            copy16_async(to + CHUNK * PITCH<DIM>, at + size_t(a.page_tokens) * hidden);
        }
    };
    auto ask_own = [&](u32 chunk) {
        bf16 *to = keys_at(chunk) + key * PITCH<DIM> + column;
        if (from + (chunk + 1) * CHUNK <= before) return;
#pragma unroll
        for (int i = 0; i < COPIES; i++, to += APART * PITCH<DIM>) {
            const u32 position = from + chunk * CHUNK + key + i * APART;
            if (position >= until) {
                store16(to, make_uint4(0, 0, 0, 0));
                store16(to + CHUNK * PITCH<DIM>, make_uint4(0, 0, 0, 0));
            } else if (position >= before) {
                const size_t own = segment.first_row + position - before;
                const bf16 *at = static_cast<const bf16 *>(a.current) + own * a.current_pitch + head + column;
                copy16_async(to, at);
                copy16_async(to + CHUNK * PITCH<DIM>, at + hidden);
            }
        }
    };
    const u32 chunks = (until - from + CHUNK - 1) / CHUNK;
    u32 first_pages[STAGES][COPIES], next_pages[COPIES];
#pragma unroll
    for (int chunk = 0; chunk < STAGES; chunk++) look_up(chunk, first_pages[chunk]);
#pragma unroll
    for (int chunk = 0; chunk < STAGES; chunk++) ask_cached(chunk, first_pages[chunk]);
    look_up(STAGES, next_pages);
    await_before();
    let_next_start();
#pragma unroll
    for (int chunk = 0; chunk < STAGES; chunk++) {
        if (u32(chunk) < chunks) ask_own(chunk);
        copies_commit();
    }
    u32 q[STEPS][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 query = g + 8 * half, row = segment.first_row + queries.token_of(query);
        const bf16 *at = static_cast<const bf16 *>(a.q) + size_t(row) * a.q_pitch + queries.head_of(query) * DIM + 2 * t;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            q[step][half] = *reinterpret_cast<const u32 *>(at + 16 * step);
            q[step][half + 2] = *reinterpret_cast<const u32 *>(at + 16 * step + 8);
        }
    }

    float sums[PIECES][4];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    }
    float highest[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        copies_wait<STAGES - 1>();
        barrier();  // this chunk is there
        const int mine = 16 * warp_id();
        const bf16 *keys = keys_at(chunk) + mine * PITCH<DIM>, *values = keys + CHUNK * PITCH<DIM>;
        const u32 first = from + chunk * CHUNK + mine;

        float scores[TILES][4];
#pragma unroll
        for (int column = 0; column < TILES; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[column][i] = 0.0f;
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int column = 0; column < TILES; column++) {
                const bf16 *at = keys + (8 * column + g) * PITCH<DIM> + 16 * step + 2 * t;
                mma_bf16(scores[column], q[step], *reinterpret_cast<const u32 *>(at), *reinterpret_cast<const u32 *>(at + 8));
            }
        }
        float now[2] = {highest[0], highest[1]};
#pragma unroll
        for (int column = 0; column < TILES; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 position = first + 8 * column + 2 * t + i % 2;
                const bool seen = position >= begin[i / 2] && position < end[i / 2];
                scores[column][i] = seen ? scores[column][i] * LOG2_E : LOWEST;
                now[i / 2] = scores[column][i] > now[i / 2] ? scores[column][i] : now[i / 2];
            }
        }
#pragma unroll
        for (int row = 0; row < 2; row++) {
            // The four lanes of a row.
            float other = shuffle_xor(now[row], 1);
            now[row] = other > now[row] ? other : now[row];
            other = shuffle_xor(now[row], 2);
            now[row] = other > now[row] ? other : now[row];
            const float before = power_of_two(highest[row] - now[row]);
            highest[row] = now[row];
            total[row] *= before;
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                sums[i][2 * row] *= before;
                sums[i][2 * row + 1] *= before;
            }
        }
#pragma unroll
        for (int column = 0; column < TILES; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // What is not seen is LOWEST, and so may the highest be.
                const float score = scores[column][i];
                scores[column][i] = score > LOWEST ? power_of_two(score - highest[i / 2]) : 0.0f;
                total[i / 2] += scores[column][i];
            }
        }
#pragma unroll
        for (int pair = 0; pair < TILES / 2; pair++) {
            u32 weights[4];
            weights[0] = pack_bf16(scores[2 * pair][0], scores[2 * pair][1]);
            weights[1] = pack_bf16(scores[2 * pair][2], scores[2 * pair][3]);
            weights[2] = pack_bf16(scores[2 * pair + 1][0], scores[2 * pair + 1][1]);
            weights[3] = pack_bf16(scores[2 * pair + 1][2], scores[2 * pair + 1][3]);
#pragma unroll
            for (int i = 0; i < PIECES; i += 2) {
                // Keys 0 .. 8 and 8 .. 16 of the pair, eight columns and the next eight.
                const int key = 16 * pair + lane_id() % 16, column = 8 * i + lane_id() / 16 * 8;
                u32 v[4];
                load_transposed(v, values + key * PITCH<DIM> + column);
                mma_bf16(sums[i], weights, v[0], v[1]);
                mma_bf16(sums[i + 1], weights, v[2], v[3]);
            }
        }
        barrier();  // all are done with it
        if (chunk + STAGES < chunks) {
            ask_cached(chunk + STAGES, next_pages);
            ask_own(chunk + STAGES);
            look_up(chunk + STAGES + 1, next_pages);
        }
        copies_commit();
    }
#pragma unroll
    for (int row = 0; row < 2; row++) {
        total[row] += shuffle_xor(total[row], 1);
        total[row] += shuffle_xor(total[row], 2);
    }
    // Shares of the same queries: each warp's sums, highest score and total.
    float *shares = reinterpret_cast<float *>(shared);  // [WARPS][16][PITCH]
    SHARED float highests[WARPS][16], totals[WARPS][16];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        const int query = g + 8 * row;
        if (t == 0) {
            highests[warp_id()][query] = highest[row];
            totals[warp_id()][query] = total[row];
        }
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float *to = shares + (warp_id() * 16 + query) * PITCH<DIM> + 8 * i + 2 * t;
            *reinterpret_cast<float2 *>(to) = make_float2(sums[i][2 * row], sums[i][2 * row + 1]);
        }
    }
    barrier();
    for (int at = 2 * threadIdx.x; at < 16 * DIM; at += 2 * THREADS) {
        const int query = at / DIM, column = at % DIM;
        if (u32(query) >= queries.count) continue;
        float above = LOWEST;
        for (int warp = 0; warp < WARPS; warp++) above = highests[warp][query] > above ? highests[warp][query] : above;
        float whole = 0.0f, first = 0.0f, second = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) {
            const float share = power_of_two(highests[warp][query] - above);
            const float2 both = *reinterpret_cast<const float2 *>(shares + (warp * 16 + query) * PITCH<DIM> + column);
            whole = fused(share, totals[warp][query], whole);
            first = fused(share, both.x, first);
            second = fused(share, both.y, second);
        }
        const float inverse = whole > 0.0f ? 1.0f / whole : 0.0f;
        const u32 row = segment.first_row + queries.token_of(query);
        write_pair<DIM>(a, row, queries.head_of(query), column, first * inverse, second * inverse);
    }
}

KERNEL_EARLY(block_attend_few_32, BlockAttend, 256, 1) { block_attend<32, 8, 4>(a); }
KERNEL_EARLY(block_attend_few_64, BlockAttend, 256, 1) { block_attend<64, 8, 4>(a); }
KERNEL_EARLY(block_attend_few_128, BlockAttend, 256, 1) { block_attend<128, 8, 2>(a); }
// Less shared memory, where there are blocks enough.
KERNEL_EARLY(block_attend_some_32, BlockAttend, 128, 2) { block_attend<32, 4, 4>(a); }
KERNEL_EARLY(block_attend_some_64, BlockAttend, 128, 2) { block_attend<64, 4, 4>(a); }
KERNEL_EARLY(block_attend_some_128, BlockAttend, 128, 2) { block_attend<128, 4, 2>(a); }
