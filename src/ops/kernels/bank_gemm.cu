// y += c_k (a_k l_k) ⊙ (S_b (r_k ⊙ x)) for the rows of many variants and several banks in one launch: the second product of a
// superposed layer. It passes over a bank once: tiles and images of the rows (rotate.cu) are copied to shared memory several
// super-blocks ahead, tiles from before the kernel before has ended, and 4-bit weights are widened on the way from there to
// the tensor cores. Gains and signs of the output side, scale and mix weight are folded in where y is added to.
//
// The work is a row of units, by group, strip of outputs and super-block of 256 inputs, of which every block has an equal share.
// What lies within one strip of the outputs is added up in registers; a strip that several blocks have shares of is added up by
// the last of them, in their order. Every sum has one order, which the sizes of the launch decide.
#include "copies.cuh"
#include "images.cuh"
#include "parts.cuh"

struct BankGemm {
    const u8 *x;           // [groups][super-blocks] images
    float *y;              // [rows, pitch]
    const u64 *banks;      // addresses of tiles
    const Part *parts;     // no two of one row
    const Group *groups;
    const bf16 *outputs;   // [variants][out]: c a l
    float4 *partial;       // [grid x][2][OUTS][ROWS / 8][128]
    u32 *counters;         // [groups][strips], all 0 before and after
    u32 out;
    u32 pitch;             // from one row of y to the next
    u32 input;
    u32 writes;            // whether the parts' rows of y are written rather than added to
};

// What a warp needs of one tile's 256 inputs to widen it.
struct Steps {
    uint4 levels;
    float scale[2], scale_less[2], minimum[2], minimum_less[2];
};

DEVICE Steps steps_of(const Tile &tile) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const uint2 halves = *reinterpret_cast<const uint2 *>(tile.halves[g]);
    Steps steps;
    steps.levels = load16(&tile.levels[t / 2][g]);
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
        const u32 half = upper ? halves.y : halves.x;
        steps.scale[upper] = half_to_float(u16(half));
        steps.scale_less[upper] = -8388608.0f * steps.scale[upper];
        steps.minimum[upper] = half_to_float(u16(half >> 16));
        steps.minimum_less[upper] = -8388608.0f * steps.minimum[upper];
    }
    return steps;
}

// w = (16 + quant) · step + offset, rounded once, with both rounded to bfloat16, twice each: of outputs g and g + 8, for 64 inputs.
struct Scales {
    u32 step[2], offset[2];
};

DEVICE Scales scales_of(const Steps &steps, int quarter) {
    const u32 level = word_of(steps.levels, quarter);
    Scales scales;
#pragma unroll
    for (int upper = 0; upper < 2; upper++) {
        // 2^23 + byte as a float: exact, and so is what is left of the products.
        auto level_times = [&](u32 byte, float by, float less) {
            return fused(float_of(picked_bytes(level, 0x4b000000u, 0x7540u | byte)), by, less);
        };
        const float step = level_times(2 * upper, steps.scale[upper], steps.scale_less[upper]);
        const float minimum = level_times(2 * upper + 1, steps.minimum[upper], steps.minimum_less[upper]);
        scales.step[upper] = pack_bf16(step, step);
        const float offset = fused(-16.0f, widen_low(scales.step[upper]), -minimum);
        scales.offset[upper] = pack_bf16(offset, offset);
    }
    return scales;
}

// A fragment of sixteen outputs and sixteen inputs.
DEVICE void widen_word(u32 (&weights)[4], u32 word, const Scales &scales) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
        // 16 + quant as bfloat16.
        const u32 quant = masked_or(p == 0 ? word << 3 : word >> (4 * p - 3), 0x00780078u, 0x41804180u);
        weights[p] = fused_bf16x2(quant, scales.step[p % 2], scales.offset[p % 2]);
    }
}

DEVICE float4 added(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// A block has 4 OUTS SLICES warps for products, 16 outputs to a warp, 64 OUTS to a block, SLICES sharing out a super-block's inputs;
// one more fetches what they need.
template <int ROWS, int OUTS, int SLICES, int STAGES>
DEVICE void bank_gemm(const BankGemm &a) {
    const int WARPS = 4 * OUTS * SLICES, TILES = 4 * OUTS, COLUMNS = ROWS / 8, QUARTERS = 4 / SLICES, IMAGE = ROWS * IMAGE_ROW;
    DYNAMIC_SHARED(u8, images);  // [STAGES], then [STAGES][TILES] tiles, [SLICES - 1][OUTS][COLUMNS][128] sums and the rest
    Tile *tiles = reinterpret_cast<Tile *>(images + STAGES * IMAGE);
    float4 *shares = reinterpret_cast<float4 *>(tiles + STAGES * TILES);
    Part *parts = reinterpret_cast<Part *>(shares + (SLICES - 1) * OUTS * COLUMNS * 128);
    u64 *there = reinterpret_cast<u64 *>(parts + ROWS), *free = there + STAGES;
    u32 *last = reinterpret_cast<u32 *>(free + STAGES);

    const u32 all = (a.input + TILE_IN - 1) / TILE_IN, rows16 = (a.out + TILE_OUT - 1) / TILE_OUT;
    const u32 strips = (rows16 + TILES - 1) / TILES, units = a.groups[0].groups * strips * all;
    const u32 blocks = gridDim.x < units ? gridDim.x : units;
    if (blockIdx.x >= blocks) return;
    const u32 begin = blockIdx.x * units / blocks, end = (blockIdx.x + 1) * units / blocks;
    u32 super = begin % all, strip = begin / all % strips, group = begin / all / strips;
    auto go_on = [&]() {
        if (++super < all) return;
        super = 0;
        if (++strip < strips) return;
        strip = 0;
        group++;
    };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            copies_start(there + stage);
            leaves_start(free + stage, WARPS);
        }
    }
    barrier();

    if (warp_id() == WARPS) {
        const Tile *bank = nullptr;
        auto fetch_tiles = [&](u32 stage) {
            if (bank == nullptr || (super == 0 && strip == 0)) bank = reinterpret_cast<const Tile *>(a.banks[a.groups[group].bank]);
            copies_begin(there + stage, IMAGE + TILES * sizeof(Tile));
            // Past the last outputs, the last tile once more.
            copies_by_warp<TILES>(tiles + stage * TILES, sizeof(Tile), there + stage, [&](u32 tile) {
                const u32 wanted = strip * TILES + tile, row16 = wanted < rows16 ? wanted : rows16 - 1;
                return bank + size_t(row16) * all + super;
            });
        };
        auto fetch_image = [&](u32 stage) {
            const u8 *from = a.x + (size_t(group) * all + super) * IMAGE;
            copies_by_warp<1>(images + stage * IMAGE, IMAGE, there + stage, [&](u32) { return from; });
            copies_end(there + stage);
        };
        const u32 ready = end - begin < STAGES ? end - begin : STAGES;
        const u32 super_first = super, strip_first = strip, group_first = group;
        for (u32 stage = 0; stage < ready; stage++, go_on()) fetch_tiles(stage);
        super = super_first, strip = strip_first, group = group_first;
        await_before();
        let_next_start();
        for (u32 stage = 0; stage < ready; stage++, go_on()) fetch_image(stage);
        u32 stage = 0, turn = 0;
#pragma unroll 1
        for (u32 unit = begin + STAGES; unit < end; unit++, go_on()) {
            wait_for(free + stage, turn & 1);
            fetch_tiles(stage);
            fetch_image(stage);
            if (++stage == STAGES) stage = 0, turn++;
        }
        return;
    }

    const int g = lane_id() / 4, t = lane_id() % 4;
    const int team = warp_id() / 4, beside = team % OUTS, slice = team / OUTS;
    const u32 thread = threadIdx.x % 128;
    auto meet = []() { barrier_of<32 * WARPS>(); };
    u32 loaded = NONE, count = 0;
    auto load_parts = [&]() {
        const Group of = a.groups[group];
        if (threadIdx.x < of.count) parts[threadIdx.x] = a.parts[of.first + threadIdx.x];
        loaded = group;
        count = of.count;
    };
    load_parts();
    meet();
    await_before();
    let_next_start();
    float sums[COLUMNS][4];
    auto clear = [&]() {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[column][j] = 0.0f;
        }
    };
    clear();
    u32 segment = begin;  // the first unit of those in `sums`
    u32 stage = 0, turn = 0;
#pragma unroll 1
    for (u32 unit = begin; unit < end; unit++) {
        wait_for(there + stage, turn & 1);
        const Image image = image_at(images + stage * IMAGE);
        const Tile &tile = tiles[stage * TILES + 4 * beside + warp_id() % 4];
        const Steps steps = steps_of(tile);
        const uint4 *quants = &tile.quants[slice * QUARTERS][lane_id()];
        uint4 next = load16(quants);
        u32 weights[2][2][4];
#pragma unroll
        for (int q = 0; q < QUARTERS; q++) {
            const int quarter = slice * QUARTERS + q;
            const uint4 now = next;
            if (q + 1 < QUARTERS) next = load16(quants + 32 * (q + 1));
            const Scales scales = scales_of(steps, quarter);
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 0; i < 2; i++) widen_word(weights[half][i], word_of(now, 2 * half + i), scales);
                products_begin();
#pragma unroll
                for (int i = 0; i < 2; i++) products_of<ROWS>(sums, weights[half][i], image, quarter, 2 * half + i);
                products_commit();
                if (q + 1 < QUARTERS || half == 0) products_wait<1>();  // the weights before these are free
            }
        }
        products_wait<0>();
        warp_barrier();
        leave(free + stage);
        if (++stage == STAGES) stage = 0, turn++;

        const u32 group_now = group, strip_now = strip;
        go_on();
        if (super != 0 && unit + 1 < end) continue;
        // All that this block has of a strip: outputs 16 warp + g + 8 (j / 2), part 8 column + 2 t + j % 2.
        float4 total[COLUMNS];
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            total[column] = make_float4(sums[column][0], sums[column][1], sums[column][2], sums[column][3]);
        }
        clear();
        auto share_of = [&](int slice, int column) -> float4 & { return shares[((slice * OUTS + beside) * COLUMNS + column) * 128 + thread]; };
        if (SLICES > 1) {
            if (slice > 0) {
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) share_of(slice - 1, column) = total[column];
            }
            meet();
        }
        if (slice == 0) {
#pragma unroll
            for (int other = 0; other < SLICES - 1; other++) {
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) total[column] = added(total[column], share_of(other, column));
            }
        }
        if (SLICES > 1) meet();
        const u32 from = (group_now * strips + strip_now) * all, until = from + all;
        bool mine = true;
        if (segment > from || unit + 1 < until) {
            auto partial_of = [&](u32 block) {
                const bool first = block * units / blocks >= from;  // of the block's two shares
                return a.partial + (((block * 2 + (first ? 0 : 1)) * OUTS + beside) * COLUMNS) * 128 + thread;
            };
            if (slice == 0) {
                float4 *to = partial_of(blockIdx.x);
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) to[column * 128] = total[column];
            }
            // Whoever comes last adds the shares of all blocks.
            const u32 first = ((from + 1) * blocks - 1) / units, after = (until * blocks - 1) / units + 1;
            meet();
            if (threadIdx.x == 0) {
                u32 *counter = a.counters + group_now * strips + strip_now;
                *last = arrive(counter) + 1 == after - first;
                if (*last) *counter = 0;
            }
            meet();
            mine = *last;
            if (mine && slice == 0) {
                const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                const int BESIDE = COLUMNS < 8 ? 8 / COLUMNS : 1;  // shares that are asked for together
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) total[column] = none;
#pragma unroll 1
                for (u32 block = first; block < after; block += BESIDE) {
                    float4 share[BESIDE][COLUMNS];
#pragma unroll
                    for (int i = 0; i < BESIDE; i++) {
                        const float4 *at = partial_of(block + i < after ? block + i : block);
#pragma unroll
                        for (int column = 0; column < COLUMNS; column++) share[i][column] = at[column * 128];
                    }
#pragma unroll
                    for (int i = 0; i < BESIDE; i++) {
                        if (block + i >= after) break;
#pragma unroll
                        for (int column = 0; column < COLUMNS; column++) total[column] = added(total[column], share[i][column]);
                    }
                }
            }
        }
        if (group_now != loaded) {
            meet();
            const u32 group_next = group;
            group = group_now;
            load_parts();
            group = group_next;
            meet();
        }
        if (mine && slice == 0) {
            const u32 output_now = strip_now * 64 * OUTS + 64 * beside + 16 * (warp_id() % 4) + g;
            // A few columns at a time, so that what is read of them is waited for once.
            const int BESIDE = COLUMNS < 4 ? COLUMNS : 4;
#pragma unroll
            for (int from = 0; from < COLUMNS; from += BESIDE) {
                float gains[BESIDE][4];
#pragma unroll
                for (int c = 0; c < BESIDE; c++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const u32 index = 8 * (from + c) + 2 * t + j % 2, output = output_now + 8 * (j / 2);
                        gains[c][j] = 0.0f;
                        if (index < count && output < a.out) gains[c][j] = widen(a.outputs[size_t(parts[index].variant) * a.out + output]);
                    }
                }
#pragma unroll
                for (int c = 0; c < BESIDE; c++) {
                    const float values[4] = {total[from + c].x, total[from + c].y, total[from + c].z, total[from + c].w};
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const u32 index = 8 * (from + c) + 2 * t + j % 2, output = output_now + 8 * (j / 2);
                        if (index >= count || output >= a.out) continue;
                        // No two parts are of one row, so that nothing else is added here.
                        float *y = a.y + size_t(parts[index].row) * a.pitch + output;
                        const float value = parts[index].weight * gains[c][j] * values[j];
                        if (a.writes) *y = value;
                        else add_at(y, value);
                    }
                }
            }
        }
        segment = unit + 1;
        warp_barrier();  // or the compiler lets no product run beside the widening of the next weights
    }
}

#ifndef BENCH
#define BANK_GEMM(rows, outs, slices, stages)                                                            \
    KERNEL_EARLY(bank_gemm_##rows##_##outs##_##slices, BankGemm, 128 * outs * slices + 32, 2) { \
        bank_gemm<rows, outs, slices, stages>(a);                                                        \
    }
// Stages as products.rs has them.
BANK_GEMM(8, 2, 1, 3)
BANK_GEMM(16, 2, 1, 3)
BANK_GEMM(32, 2, 1, 3)
BANK_GEMM(8, 1, 2, 4)
BANK_GEMM(16, 1, 2, 4)
BANK_GEMM(32, 1, 2, 3)
BANK_GEMM(64, 1, 2, 2)
BANK_GEMM(64, 1, 1, 2)
#endif
