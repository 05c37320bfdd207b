// y += c_k (a_k l_k) ⊙ (S_b (r_k ⊙ x)) for the rows of many variants and several banks in one launch: the second product of a
// superposed layer. It passes over a bank once: tiles and images of the rows are copied to shared memory several super-blocks
// ahead, tiles from before the kernel before has ended, and 4-bit weights are widened on the way from there to the tensor
// cores. Where a block has no more than fits, it makes the images itself; else signs.cu has made them. Gains and signs of the output side, scale and mix weight are folded in where y is added to.
//
// The work is a row of units, by group, strip of outputs and super-block of 256 inputs, of which every block has an equal share.
// What lies within one strip of the outputs is added up in registers; a strip that several blocks have shares of is added up by
// the last of them, in their order. Every sum has one order, which the sizes of the launch decide.
#include "copies.cuh"
#include "images.cuh"
#include "parts.cuh"

enum Rows : u32 { IMAGES = 0, ROWS_F32 = 1, ROWS_BF16 = 2 };

struct BankGemm {
    const void *x;         // [groups][super-blocks] images, or [rows, input] where no block has more units than it has stages
    float *y;              // [rows, pitch]
    const u64 *banks;      // addresses of tiles
    const Part *parts;     // no two of one row
    const Group *groups;
    const u32 *keys;       // [variants][8], input side
    const bf16 *outputs;   // [variants][out]: c a l
    float4 *partial;       // [grid x][2][ROWS / 8][128 OUTS]
    u32 *counters;         // [groups][strips], all 0 before and after
    u32 out;
    u32 pitch;             // from one row of y to the next
    u32 input;
    u32 writes;            // whether the parts' rows of y are written rather than added to
    u32 kind;              // Rows
    u32 unused;
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

// A row of x beside one super-block: which one, or NONE, and its signs.
struct RowSigns {
    u32 row;
    u32 words[8];
};

// A block has 4 OUTS warps for products, 16 outputs to a warp; one more fetches what they need.
template <int ROWS, int OUTS, int STAGES>
DEVICE void bank_gemm(const BankGemm &a) {
    const int WARPS = 4 * OUTS, COLUMNS = ROWS / 8, IMAGE = ROWS * IMAGE_ROW;
    DYNAMIC_SHARED(u8, images);  // [STAGES], then [STAGES][WARPS] tiles and the rest
    Tile *tiles = reinterpret_cast<Tile *>(images + STAGES * IMAGE);
    Part *parts = reinterpret_cast<Part *>(tiles + STAGES * WARPS);
    u64 *there = reinterpret_cast<u64 *>(parts + ROWS), *free = there + STAGES;
    RowSigns(*rows)[ROWS] = reinterpret_cast<RowSigns(*)[ROWS]>(free + STAGES);  // [STAGES]
    u32 *last = reinterpret_cast<u32 *>(rows + STAGES);

    const u32 all = (a.input + TILE_IN - 1) / TILE_IN, rows16 = (a.out + TILE_OUT - 1) / TILE_OUT;
    const u32 strips = (rows16 + WARPS - 1) / WARPS, units = a.groups[0].groups * strips * all;
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
            copies_begin(there + stage, (a.kind == IMAGES ? IMAGE : 0) + WARPS * sizeof(Tile));
            // Past the last outputs, the last tile once more.
            copies_by_warp<WARPS>(tiles + stage * WARPS, sizeof(Tile), there + stage, [&](u32 tile) {
                const u32 wanted = strip * WARPS + tile, row16 = wanted < rows16 ? wanted : rows16 - 1;
                return bank + size_t(row16) * all + super;
            });
        };
        auto fetch_image = [&](u32 stage) {
            const u8 *from = static_cast<const u8 *>(a.x) + (size_t(group) * all + super) * IMAGE;
            if (a.kind == IMAGES) copies_by_warp<1>(images + stage * IMAGE, IMAGE, there + stage, [&](u32) { return from; });
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
    auto meet = []() { barrier_of<32 * WARPS>(); };
    u32 loaded = NONE, count = 0;
    auto load_parts = [&](u32 group) {
        const Group of = a.groups[group];
        if (threadIdx.x < of.count) parts[threadIdx.x] = a.parts[of.first + threadIdx.x];
        loaded = group;
        count = of.count;
    };
    load_parts(group);
    const u32 ready = end - begin;  // units, where images are made here
    if (a.kind != IMAGES && threadIdx.x < ready * ROWS) {
        const u32 unit = begin + threadIdx.x / ROWS, index = threadIdx.x % ROWS;
        const Group of = a.groups[unit / all / strips];
        RowSigns &mine = rows[threadIdx.x / ROWS][index];
        mine.row = NONE;
        if (index < of.count) {
            const Part part = a.parts[of.first + index];
            u32 words[16];
            chacha8(a.keys + 8 * part.variant, unit % all / 2, words);
            mine.row = part.row;
#pragma unroll
            for (int i = 0; i < 8; i++) mine.words[i] = unit % all % 2 ? words[8 + i] : words[i];
        }
    }
    meet();
    await_before();
    let_next_start();
    if (a.kind != IMAGES) {
        auto put = [&](auto x) {
            for (u32 piece = threadIdx.x; piece < ready * ROWS * 16; piece += 32 * WARPS) {
                const u32 stage = piece / (16 * ROWS), index = piece / 16 % ROWS, quarter = piece / 4 % 4, t = piece % 4;
                const RowSigns &of = rows[stage][index];
                if (of.row == NONE) continue;
                const u32 column = (begin + stage) % all * TILE_IN + 64 * quarter + 16 * t;
                const u32 signs = of.words[2 * quarter + t / 2] >> (16 * (t % 2)), left = column < a.input ? a.input - column : 0;
                put_inputs(images + stage * IMAGE, ROWS, index, quarter, t, x + size_t(of.row) * a.input + column, left,
                           a.input % 16 == 0, signs);
            }
        };
        if (a.kind == ROWS_BF16) put(static_cast<const bf16 *>(a.x));
        else put(static_cast<const float *>(a.x));
        for_tensor_cores();
        meet();
    }
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
        const Tile &tile = tiles[stage * WARPS + warp_id()];
        const Steps steps = steps_of(tile);
        const uint4 *quants = &tile.quants[0][lane_id()];
        uint4 next = load16(quants);
        u32 weights[2][2][4];
#pragma unroll
        for (int quarter = 0; quarter < 4; quarter++) {
            const uint4 now = next;
            if (quarter < 3) next = load16(quants + 32 * (quarter + 1));
            const Scales scales = scales_of(steps, quarter);
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 0; i < 2; i++) widen_word(weights[half][i], word_of(now, 2 * half + i), scales);
                products_begin();
#pragma unroll
                for (int i = 0; i < 2; i++) products_of<ROWS>(sums, weights[half][i], image, quarter, 2 * half + i);
                products_commit();
                if (quarter < 3 || half == 0) products_wait<1>();  // the weights before these are free
            }
        }
        products_wait<0>();
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
        const u32 from = (group_now * strips + strip_now) * all, until = from + all;
        bool mine = true;
        if (segment > from || unit + 1 < until) {
            auto partial_of = [&](u32 block) {
                const bool first = block * units / blocks >= from;  // of the block's two shares
                return a.partial + (block * 2 + (first ? 0 : 1)) * COLUMNS * 32 * WARPS + threadIdx.x;
            };
            float4 *to = partial_of(blockIdx.x);
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) to[column * 32 * WARPS] = total[column];
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
            if (mine) {
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
                        for (int column = 0; column < COLUMNS; column++) share[i][column] = at[column * 32 * WARPS];
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
            load_parts(group_now);
            meet();
        }
        if (mine) {
            const u32 output_now = (strip_now * WARPS + warp_id()) * TILE_OUT + g;
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
#define BANK_GEMM(rows, outs, stages) \
    KERNEL_EARLY(bank_gemm_##rows, BankGemm, 128 * outs + 32, 2) { bank_gemm<rows, outs, stages>(a); }
// As products.rs has them. Shared memory holds two blocks to a processor: where three fit, some have three and others one.
BANK_GEMM(8, 2, 4)
BANK_GEMM(16, 2, 3)
BANK_GEMM(32, 2, 2)
BANK_GEMM(64, 1, 2)
#endif
