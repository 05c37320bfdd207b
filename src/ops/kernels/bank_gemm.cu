// y += c_k (a_k l_k) ⊙ (S_b (r_k ⊙ x)) for the rows of many variants and several banks in one launch: the second product of a
// superposed layer. It passes over a bank once: tiles and rows of x are copied to shared memory several super-blocks ahead, and
// 4-bit weights are widened on the way from there to the tensor cores. Signs of the input side are folded in where x lies in
// shared memory, or, where rows are many, before; gains and signs of the output side, scale and mix weight where y is added to.
//
// OUTS of a block's eight warps are beside each other, 32 outputs each; the others share out the 256 inputs of a super-block with
// them. Every sum has one order, which the sizes of the launch decide.
#include "parts.cuh"
#include "tiles.cuh"

// Parts of one bank that go through it together.
struct Group {
    u32 bank;
    u32 first;  // index of its first part
    u32 count;  // 0 for a group that pads the launch
    u32 unused;
};

struct BankGemm {
    const void *x;         // [rows, input], or [parts, input] with the parts' signs
    float *y;              // [rows, pitch]
    const u64 *banks;      // addresses of tiles
    const Part *parts;     // no two of one row
    const Group *groups;   // [grid z]
    const u32 *keys;       // [variants][8], input side
    const bf16 *outputs;   // [variants][out]: c a l
    float *partial;        // [grid z][grid x][splits][ROWS][outputs of a block], where there are several splits
    u32 *counters;         // [grid z][grid x], all 0 before and after
    u32 out;
    u32 pitch;             // from one row of y to the next, at least `out`
    u32 input;
    u32 splits;            // grid y
    u32 supers;            // super-blocks to a split
    u32 unused;
};

const int WARPS = 8, THREADS = 32 * WARPS;
const int PITCH = TILE_IN + 8;  // of x in shared memory: rows lie four banks apart

// Fragments of sixteen outputs and 64 inputs, four steps of sixteen inputs, from a tile in shared memory.
DEVICE void widen_tile(u32 (&weights)[4][4], const Tile &tile, int quarter) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const uint4 quants = load16(&tile.quants[quarter][lane_id()]);
    const u32 level = reinterpret_cast<const u32 *>(&tile.levels[t / 2][g])[quarter];
    const uint2 halves = *reinterpret_cast<const uint2 *>(tile.halves[g]);
    // w = (quant - 8) · step + middle, with both rounded to bfloat16.
    u32 step[2], middle[2];
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
        const u32 half = upper ? halves.y : halves.x, pair = upper ? level >> 16 : level & 0xffffu;
        const float s = half_to_float(u16(half)) * float(pair & 0xffu);
        const float m = 8.0f * s - half_to_float(u16(half >> 16)) * float(pair >> 8);
        step[upper] = pack_bf16(s, s);
        middle[upper] = pack_bf16(m, m);
    }
#pragma unroll
    for (int s = 0; s < 4; s++) {
#pragma unroll
        for (int p = 0; p < 4; p++) {
            // 128 + quant as bfloat16, less 136: exact.
            const u32 shifted = ((word_of(quants, s) >> (4 * p)) & 0x000f000fu) | 0x43004300u;
            const u32 centred = fused_bf16x2(shifted, 0x3f803f80u, 0xc308c308u);
            weights[s][p] = fused_bf16x2(centred, step[p % 2], middle[p % 2]);
        }
    }
}

// Up to eight numbers as bfloat16, zeros after them.
template <typename T>
DEVICE uint4 narrowed8(const T *at, u32 count) {
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = u32(i) < count ? widen(at[i]) : 0.0f;
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

DEVICE float4 added(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

template <typename T>
struct IsBf16 {
    static const bool yes = false;
};
template <>
struct IsBf16<bf16> {
    static const bool yes = true;
};

// A block to 32 OUTS outputs (grid x), a share of the inputs (grid y) and a group of up to ROWS parts (grid z). Many parts come
// with their signs: too much of the time would go into changing them here.
template <typename T, int ROWS, int OUTS>
DEVICE void bank_gemm(const BankGemm &a) {
    const bool SIGNED = ROWS < 32;
    const int QUARTERS = 4 * OUTS / WARPS;  // of 64 inputs, to a warp
    const int COLUMNS = ROWS / 8;   // tiles of eight parts
    const int PIECES = ROWS / WARPS;  // of eight inputs of x, to a thread and super-block: a warp to a part
    const int SLICES = WARPS / OUTS, WIDTH = 32 * OUTS, SUM_PITCH = WIDTH + 4;
    const int TILES = 2 * OUTS, TILE_PIECES = sizeof(Tile) / 16;
    const int STAGES = ROWS > 32 ? 3 : 4, STAGE = ROWS * PITCH * 2 + TILES * sizeof(Tile);
    DYNAMIC_SHARED(u8, dynamic);  // [STAGES] of rows of x [ROWS][PITCH] and tiles, then signs [ROWS][words]
    u32 *signs = reinterpret_cast<u32 *>(dynamic + STAGES * STAGE);
    SHARED Part parts[ROWS];
    SHARED u32 last;

    const Group group = a.groups[blockIdx.z];
    if (group.count == 0) return;
    const u32 count = group.count;
    const u32 all = (a.input + TILE_IN - 1) / TILE_IN, strips = (a.out + TILE_OUT - 1) / TILE_OUT;
    const u32 begin = blockIdx.y * a.supers, end = begin + a.supers < all ? begin + a.supers : all;
    const u32 supers = end - begin;
    const int g = lane_id() / 4, t = lane_id() % 4;
    const int slice = warp_id() / OUTS, quarter = slice * QUARTERS;
    if (threadIdx.x < count) parts[threadIdx.x] = a.parts[group.first + threadIdx.x];

    auto stage_of = [&](u32 super) { return dynamic + super % STAGES * STAGE; };
    // Sixteen bytes of tiles at a time; past the last outputs, the last tile once more.
    const Tile *bank = reinterpret_cast<const Tile *>(a.banks[group.bank]);
    const int TURNS = (TILES * TILE_PIECES + THREADS - 1) / THREADS;
    const u8 *pieces[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const u32 piece = turn * THREADS + threadIdx.x, wanted = blockIdx.x * TILES + piece / TILE_PIECES;
        const u32 strip = wanted < strips ? wanted : strips - 1;
        pieces[turn] = reinterpret_cast<const u8 *>(bank + size_t(strip) * all + begin) + 16 * (piece % TILE_PIECES);
    }
    auto fetch_tiles = [&](u32 super) {
        u8 *to = stage_of(super) + ROWS * PITCH * 2 + 16 * threadIdx.x;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            if (turn * THREADS + threadIdx.x < TILES * TILE_PIECES) {
                copy16_async(to + 16 * THREADS * turn, pieces[turn] + super * sizeof(Tile));
            }
        }
    };
    const bool direct = IsBf16<T>::yes && a.input % 8 == 0;
    auto fetch_rows = [&](u32 super) {
        const u32 column = (begin + super) * TILE_IN + 8 * lane_id();
        bf16 *x = reinterpret_cast<bf16 *>(stage_of(super)) + 8 * lane_id();
        auto at = [&](u32 row) {
            return static_cast<const T *>(a.x) + size_t(SIGNED ? parts[row].row : group.first + row) * a.input + column;
        };
        if (direct && column < a.input) {
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                const u32 row = i * WARPS + warp_id();
                if (row < count) copy16_async(x + row * PITCH, at(row));
            }
            return;
        }
#pragma unroll 1
        for (u32 row = warp_id(); row < count; row += WARPS) {
            store16(x + row * PITCH, narrowed8(at(row), column < a.input ? a.input - column : 0));
        }
    };
    if (!SIGNED) barrier();
#pragma unroll 1
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        if (stage < supers) fetch_tiles(stage);
        if (SIGNED && stage == 0) barrier();  // parts are there
        if (stage < supers) fetch_rows(stage);
        copies_commit();
    }
    // Signs of all inputs of this share: 512 of one part to a thread.
    const u32 first_block = begin / 2, blocks = (end + 1) / 2 - first_block, words = 16 * blocks;
    if (SIGNED) {
#pragma unroll 1
        for (u32 job = threadIdx.x; job < count * blocks; job += THREADS) {
            const u32 part = job / blocks, block = job % blocks;
            u32 made[16];
            chacha8(a.keys + 8 * parts[part].variant, first_block + block, made);
            uint4 *to = reinterpret_cast<uint4 *>(signs + part * words + 16 * block);
#pragma unroll
            for (int i = 0; i < 4; i++) to[i] = make_uint4(made[4 * i], made[4 * i + 1], made[4 * i + 2], made[4 * i + 3]);
        }
        barrier();
    }

    float sums[2][COLUMNS][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][column][j] = 0.0f;
        }
    }
#pragma unroll 1
    for (u32 super = 0; super < supers; super++) {
        bf16 *x = reinterpret_cast<bf16 *>(stage_of(super));
        const Tile *tiles = reinterpret_cast<const Tile *>(stage_of(super) + ROWS * PITCH * 2) + warp_id() % OUTS * 2;
        copies_wait<STAGES - 2>();
        if (SIGNED) {
            // Whoever copied changes the signs.
#pragma unroll
            for (int i = 0; i < PIECES; i++) {
                const u32 row = i * WARPS + warp_id();
                if (row >= count) continue;
                bf16 *at = x + row * PITCH + 8 * lane_id();
                const u32 word = signs[row * words + 8 * (begin + super) - 16 * first_block + lane_id() / 4];
                store16(at, flipped8(load16(at), word >> (8 * (lane_id() % 4))));
            }
        }
        barrier();  // this super-block is there, and the stage before it is free
        if (super + STAGES - 1 < supers) {
            fetch_tiles(super + STAGES - 1);
            fetch_rows(super + STAGES - 1);
        }
        copies_commit();
#pragma unroll
        for (int q = 0; q < QUARTERS; q++) {
            u32 fragments[2][4][4];
            widen_tile(fragments[0], tiles[0], quarter + q);
            widen_tile(fragments[1], tiles[1], quarter + q);
            // A few tiles of rows at a time, step by step, so that one product does not wait for the one before.
            const int BESIDE = COLUMNS < 4 ? COLUMNS : 4;
#pragma unroll
            for (int from = 0; from < COLUMNS; from += BESIDE) {
                uint4 rows[BESIDE][2];
#pragma unroll
                for (int c = 0; c < BESIDE; c++) {
                    const bf16 *at = x + (8 * (from + c) + g) * PITCH + 64 * (quarter + q) + 16 * t;
                    rows[c][0] = load16(at);
                    rows[c][1] = load16(at + 8);
                }
#pragma unroll
                for (int s = 0; s < 4; s++) {
#pragma unroll
                    for (int c = 0; c < BESIDE; c++) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const uint4 eight = rows[c][s / 2];
                            mma_bf16(sums[i][from + c], fragments[i][s], s % 2 ? eight.z : eight.x, s % 2 ? eight.w : eight.y);
                        }
                    }
                }
            }
        }
    }

    // Shares of the inputs within the block are added first: output 16 i + g + 8 (j / 2) of a warp, part 8 column + 2 t + j % 2.
    copies_wait<0>();
    barrier();
    float *shares = reinterpret_cast<float *>(dynamic);  // [SLICES][ROWS][SUM_PITCH]
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int row = 8 * column + 2 * t + j % 2, output = warp_id() % OUTS * 32 + 16 * i + g + 8 * (j / 2);
                shares[(slice * ROWS + row) * SUM_PITCH + output] = sums[i][column][j];
            }
        }
    }
    barrier();
    const size_t here = size_t(blockIdx.z) * gridDim.x + blockIdx.x;
    const u32 FOURS = WIDTH / 4;
    float4 *partial = reinterpret_cast<float4 *>(a.partial) + here * a.splits * ROWS * FOURS;
    auto share_of = [&](u32 row, u32 four) {
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int s = 0; s < SLICES; s++) {
            sum = added(sum, *reinterpret_cast<const float4 *>(shares + (s * ROWS + row) * SUM_PITCH + 4 * four));
        }
        return sum;
    };
    if (a.splits > 1) {
        for (u32 at = threadIdx.x; at < count * FOURS; at += THREADS) {
            partial[size_t(blockIdx.y) * ROWS * FOURS + at] = share_of(at / FOURS, at % FOURS);
        }
        // Whoever comes last adds the shares of all blocks, in their order.
        fence();
        barrier();
        if (threadIdx.x == 0) last = atomic_add(&a.counters[here], 1) + 1 == a.splits;
        barrier();
        if (!last) return;
        fence();
        if (threadIdx.x == 0) a.counters[here] = 0;
    }
    const bool whole = a.pitch % 4 == 0;  // what lies between the last output and the pitch may be written
#pragma unroll 1
    for (u32 at = threadIdx.x; at < count * FOURS; at += THREADS) {
        const u32 row = at / FOURS, output = blockIdx.x * WIDTH + at % FOURS * 4;
        if (output >= a.out) continue;
        float4 share;
        if (a.splits == 1) {
            share = share_of(row, at % FOURS);
        } else {
            share = partial[at];
#pragma unroll 4
            for (u32 split = 1; split < a.splits; split++) share = added(share, partial[size_t(split) * ROWS * FOURS + at]);
        }
        const Part part = parts[row];
        float *y = a.y + size_t(part.row) * a.pitch + output;
        const bf16 *outputs = a.outputs + size_t(part.variant) * a.out + output;
        const float values[4] = {share.x, share.y, share.z, share.w};
        const float4 before = whole ? *reinterpret_cast<const float4 *>(y) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float sum[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (output + i >= a.out) continue;
            sum[i] = fused(part.weight * widen(outputs[i]), values[i], whole ? sum[i] : y[i]);
            if (!whole) y[i] = sum[i];
        }
        if (whole) *reinterpret_cast<float4 *>(y) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
}

#define BANK_GEMM(name, type, rows, blocks)                                                             \
    KERNEL_OF(bank_gemm_##name##_##rows##_2, BankGemm, 256, blocks) { bank_gemm<type, rows, 2>(a); } \
    KERNEL_OF(bank_gemm_##name##_##rows##_4, BankGemm, 256, blocks) { bank_gemm<type, rows, 4>(a); }

BANK_GEMM(f32, float, 8, 2)
BANK_GEMM(f32, float, 16, 2)
BANK_GEMM(f32, float, 32, 1)
BANK_GEMM(f32, float, 64, 1)
BANK_GEMM(bf16, bf16, 8, 2)
BANK_GEMM(bf16, bf16, 16, 2)
BANK_GEMM(bf16, bf16, 32, 1)
BANK_GEMM(bf16, bf16, 64, 1)
