// Attention of whole sequences in training, and its gradient: a warp to a query or to a key, what they look at a tile at a time in
// shared memory. All of it is f32; weights are computed again on the way back.
#include "device.cuh"

// Keys or queries in shared memory at once, and warps to a block.
const u32 TILE = 32, WARPS = 8;
const u32 MAX_HEAD = 256, PIECES = MAX_HEAD / 32;

// Up to WARPS queries that see the same keys: rows of a sequence.
struct QueryChunk {
    u32 first;
    u32 count;
    u32 begin[2], end[2];
    u32 unused[2];
};
// Up to WARPS keys that the same queries see.
struct KeyChunk {
    u32 first;
    u32 count;
    u32 begin, end;  // in the list of rows of queries
};

struct TrainAttend {
    const float *qkv;  // [sequences * rows, 3, heads, head_dim], turned and scaled
    float *out;        // [sequences * queries, heads, head_dim]
    float *peaks;      // [sequences * queries, heads]: the highest score
    float *shares;     // [sequences * queries, heads]: 1 / sum of e^(score - peak)
    const QueryChunk *chunks;
    u32 rows;
    u32 queries;
    u32 heads;
    u32 head_dim;
};

// `count` rows of numbers to shared memory, by all of the block; row i is rows(i).
template <typename Rows>
DEVICE void stage(float *to, u32 pitch, u32 count, u32 dim, Rows rows) {
    for (u32 i = threadIdx.x; i < count * dim; i += 32 * WARPS) to[i / dim * pitch + i % dim] = rows(i / dim)[i % dim];
}
// Inner product of two vectors in shared memory.
DEVICE float inner_product(const float *a, const float *b, u32 dim) {
    float sum = 0.0f;
    for (u32 i = 0; i < dim; i++) sum = fused(a[i], b[i], sum);
    return sum;
}
// sum += weight * vector, a lane having every 32nd number.
DEVICE void add_weighted(float (&sum)[PIECES], float weight, const float *vector, u32 dim) {
#pragma unroll
    for (u32 i = 0; i < PIECES; i++) {
        const u32 column = lane_id() + 32 * i;
        if (column < dim) sum[i] = fused(weight, vector[column], sum[i]);
    }
}
DEVICE void put_scaled(float *at, const float (&sum)[PIECES], float scale, u32 dim) {
#pragma unroll
    for (u32 i = 0; i < PIECES; i++) {
        const u32 column = lane_id() + 32 * i;
        if (column < dim) at[column] = sum[i] * scale;
    }
}

// The row of key `index` of all that a chunk sees, and how many these are.
DEVICE u32 key_row(const QueryChunk &chunk, u32 index) {
    const u32 near = chunk.end[0] - chunk.begin[0];
    return index < near ? chunk.begin[0] + index : chunk.begin[1] + index - near;
}
DEVICE u32 keys_of(const QueryChunk &chunk) { return chunk.end[0] - chunk.begin[0] + chunk.end[1] - chunk.begin[1]; }

// Keys from number `first` on of those that a chunk sees, and their values, to shared memory by all of the block, which has done
// with what was there; gives how many. `heads` is the sequence's first row at a head.
DEVICE u32 stage_keys(float *keys, float *values, const float *heads, const QueryChunk &chunk, u32 first, u32 dim, u32 hidden) {
    const u32 left = keys_of(chunk) - first, count = left < TILE ? left : TILE;
    auto row = [&](u32 i) { return heads + size_t(key_row(chunk, first + i)) * 3 * hidden; };
    barrier();
    stage(keys, dim + 1, count, dim, [&](u32 i) { return row(i) + hidden; });
    stage(values, dim + 1, count, dim, [&](u32 i) { return row(i) + 2 * hidden; });
    barrier();
    return count;
}

// A block to a chunk (grid x) of a head (grid y) of a sequence (grid z).
KERNEL_OF(train_attend, TrainAttend, 32 * WARPS, 2) {
    DYNAMIC_SHARED(float, shared);
    const u32 dim = a.head_dim, pitch = dim + 1, hidden = a.heads * dim, head = blockIdx.y;
    float *keys = shared, *values = keys + TILE * pitch, *query = values + TILE * pitch;
    const QueryChunk chunk = a.chunks[blockIdx.x];
    const float *heads = a.qkv + size_t(blockIdx.z) * a.rows * 3 * hidden + head * dim;
    stage(query, dim, chunk.count, dim, [&](u32 i) { return heads + size_t(chunk.first + i) * 3 * hidden; });
    float sum[PIECES] = {}, highest = -1e30f, total = 0.0f;
    for (u32 first = 0, all = keys_of(chunk); first < all; first += TILE) {
        const u32 count = stage_keys(keys, values, heads, chunk, first, dim, hidden);
        if (u32(warp_id()) >= chunk.count) continue;
        const bool mine = u32(lane_id()) < count;
        const float score = mine ? inner_product(query + warp_id() * dim, keys + lane_id() * pitch, dim) : -1e30f;
        const float above = max_warp(score), now = above > highest ? above : highest;
        const float weight = mine ? exponential(score - now) : 0.0f, before = exponential(highest - now);
        total = total * before + add_warp(weight);
        highest = now;
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) sum[i] *= before;
        for (u32 key = 0; key < count; key++) add_weighted(sum, shuffle(weight, int(key)), values + key * pitch, dim);
    }
    if (u32(warp_id()) >= chunk.count) return;
    const size_t at = (size_t(blockIdx.z) * a.queries + chunk.first + warp_id()) * a.heads + head;
    put_scaled(a.out + at * dim, sum, 1.0f / total, dim);
    if (lane_id() == 0) {
        a.peaks[at] = highest;
        a.shares[at] = 1.0f / total;
    }
}

struct TrainAttendBackward {
    const float *qkv;   // as it was
    const float *out;   // as it came
    const float *dout;  // [sequences * queries, heads, head_dim]
    const float *peaks;
    const float *shares;
    float *along;  // [sequences * queries, heads]: <dout, out>, of the queries, which the keys read
    float *dqkv;   // [sequences * rows, 3, heads, head_dim], still turned; where nothing is seen it stays as it is
    const QueryChunk *chunks;
    const KeyChunk *key_chunks;
    const u32 *seeing;  // rows of queries
    u32 rows;
    u32 queries;
    u32 heads;
    u32 head_dim;
};

// A block to a chunk (grid x) of a head (grid y) of a sequence (grid z).
KERNEL_OF(train_attend_queries, TrainAttendBackward, 32 * WARPS, 2) {
    DYNAMIC_SHARED(float, shared);
    const u32 dim = a.head_dim, pitch = dim + 1, hidden = a.heads * dim, head = blockIdx.y;
    float *keys = shared, *values = keys + TILE * pitch, *query = values + TILE * pitch, *above = query + WARPS * dim;
    const QueryChunk chunk = a.chunks[blockIdx.x];
    const size_t start = size_t(blockIdx.z) * a.rows * 3 * hidden + head * dim;
    const float *heads = a.qkv + start;
    const size_t first_at = (size_t(blockIdx.z) * a.queries + chunk.first) * a.heads + head;
    stage(query, dim, chunk.count, dim, [&](u32 i) { return heads + size_t(chunk.first + i) * 3 * hidden; });
    stage(above, dim, chunk.count, dim, [&](u32 i) { return a.dout + (first_at + size_t(i) * a.heads) * dim; });
    const bool works = u32(warp_id()) < chunk.count;
    const size_t at = first_at + size_t(works ? warp_id() : 0) * a.heads;
    const float peak = a.peaks[at], share = a.shares[at];
    float sum[PIECES] = {}, along = 0.0f;
    for (u32 i = lane_id(); i < dim; i += 32) along = fused(a.dout[at * dim + i], a.out[at * dim + i], along);
    along = add_warp(along);
    for (u32 first = 0, all = keys_of(chunk); first < all; first += TILE) {
        const u32 count = stage_keys(keys, values, heads, chunk, first, dim, hidden);
        if (!works) continue;
        float slope = 0.0f;
        if (u32(lane_id()) < count) {
            const float weight = exponential(inner_product(query + warp_id() * dim, keys + lane_id() * pitch, dim) - peak) * share;
            slope = weight * (inner_product(above + warp_id() * dim, values + lane_id() * pitch, dim) - along);
        }
        for (u32 key = 0; key < count; key++) add_weighted(sum, shuffle(slope, int(key)), keys + key * pitch, dim);
    }
    if (!works) return;
    put_scaled(a.dqkv + start + size_t(chunk.first + warp_id()) * 3 * hidden, sum, 1.0f, dim);
    if (lane_id() == 0) a.along[at] = along;
}

// A block to a chunk of keys (grid x) of a head (grid y) of a sequence (grid z).
KERNEL_OF(train_attend_keys, TrainAttendBackward, 32 * WARPS, 2) {
    DYNAMIC_SHARED(float, shared);
    const u32 dim = a.head_dim, pitch = dim + 1, hidden = a.heads * dim, head = blockIdx.y;
    float *queries = shared, *above = queries + TILE * pitch, *key = above + TILE * pitch, *value = key + WARPS * dim;
    const KeyChunk chunk = a.key_chunks[blockIdx.x];
    const size_t start = size_t(blockIdx.z) * a.rows * 3 * hidden + head * dim;
    const float *heads = a.qkv + start;
    auto key_at = [&](u32 i) { return heads + size_t(chunk.first + i) * 3 * hidden; };
    stage(key, dim, chunk.count, dim, [&](u32 i) { return key_at(i) + hidden; });
    stage(value, dim, chunk.count, dim, [&](u32 i) { return key_at(i) + 2 * hidden; });
    float dkey[PIECES] = {}, dvalue[PIECES] = {};
    for (u32 first = chunk.begin; first < chunk.end; first += TILE) {
        const u32 count = chunk.end - first < TILE ? chunk.end - first : TILE;
        auto at = [&](u32 i) { return (size_t(blockIdx.z) * a.queries + a.seeing[first + i]) * a.heads + head; };
        barrier();
        stage(queries, pitch, count, dim, [&](u32 i) { return heads + size_t(a.seeing[first + i]) * 3 * hidden; });
        stage(above, pitch, count, dim, [&](u32 i) { return a.dout + at(i) * dim; });
        barrier();
        if (u32(warp_id()) >= chunk.count) continue;
        float weight = 0.0f, slope = 0.0f;
        if (u32(lane_id()) < count) {
            const size_t mine = at(lane_id());
            const float score = inner_product(queries + lane_id() * pitch, key + warp_id() * dim, dim);
            weight = exponential(score - a.peaks[mine]) * a.shares[mine];
            slope = weight * (inner_product(above + lane_id() * pitch, value + warp_id() * dim, dim) - a.along[mine]);
        }
        for (u32 query = 0; query < count; query++) {
            add_weighted(dvalue, shuffle(weight, int(query)), above + query * pitch, dim);
            add_weighted(dkey, shuffle(slope, int(query)), queries + query * pitch, dim);
        }
    }
    if (u32(warp_id()) >= chunk.count) return;
    float *row = a.dqkv + start + size_t(chunk.first + warp_id()) * 3 * hidden;
    put_scaled(row + hidden, dkey, 1.0f, dim);
    put_scaled(row + 2 * hidden, dvalue, 1.0f, dim);
}
