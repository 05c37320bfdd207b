// Kernels that probe the emulation itself.
#include "../../crates/ops/src/kernels/copies.cuh"

struct Pair {
    const void *in;
    void *out;
    u64 count;
};

// Each block turns its `count` numbers round, through shared memory. Without the barrier where `skip` is set.
struct Reverse {
    const u32 *in;
    u32 *out;
    u32 count, skip;
};
KERNEL(probe_reverse, Reverse, 1024) {
    SHARED u32 numbers[1024];
    DYNAMIC_SHARED(u32, again);
    u32 base = blockIdx.x * a.count;
    if (threadIdx.x >= a.count) return;
    numbers[threadIdx.x] = a.in[base + threadIdx.x];
    if (!a.skip) barrier();
    again[threadIdx.x] = numbers[a.count - 1 - threadIdx.x];
    a.out[base + threadIdx.x] = again[threadIdx.x];
}

// Static shared memory of a template: each type has its own.
template <typename T>
DEVICE void stale(T *out) {
    SHARED T kept[32];
    DYNAMIC_SHARED(T, dynamic);
    out[threadIdx.x] = kept[threadIdx.x];
    out[32 + threadIdx.x] = dynamic[threadIdx.x];
    kept[threadIdx.x] = T(1);
    dynamic[threadIdx.x] = T(1);
}
KERNEL(probe_stale, Pair, 32) {
    stale<float>(static_cast<float *>(a.out) + 128 * blockIdx.x);
    stale<u32>(static_cast<u32 *>(a.out) + 128 * blockIdx.x + 64);
}

// Of every lane: the number of its neighbour, of lane 5, of the mirrored lane as u64, and who is odd.
struct Lanes {
    u32 neighbour, fifth, odd, spare;
    u64 mirrored;
};
KERNEL(probe_lanes, Pair, 1024) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x, number = static_cast<const u32 *>(a.in)[at];
    Lanes lanes;
    lanes.neighbour = shuffle_xor(number, 1);
    lanes.fifth = shuffle(number, 5);
    lanes.odd = votes(number % 2 == 1);
    lanes.spare = u32(add_warp(float(number % 1024)));
    warp_barrier();
    lanes.mirrored = shuffle(u64(number) << 32 | number, 31 - lane_id());
    static_cast<Lanes *>(a.out)[at] = lanes;
}

// out: the sum of all in, and how many blocks were done when the last one was.
KERNEL(probe_sum, Pair, 256) {
    const u32 *in = static_cast<const u32 *>(a.in);
    u64 *out = static_cast<u64 *>(a.out);
    for (u64 i = blockIdx.x * blockDim.x + threadIdx.x; i < a.count; i += gridDim.x * blockDim.x) atomic_add(out, u64(in[i]));
    barrier();
    if (threadIdx.x == 0 && arrive(reinterpret_cast<u32 *>(out + 1)) == gridDim.x - 1) out[2] = gridDim.x;
}

// d [16, 8] = a [16, 16] b [16, 8] and, a second time, onto it. All by rows, a and b in bf16, one after the other.
KERNEL(probe_product, Pair, 128) {
    const bf16 *x = static_cast<const bf16 *>(a.in) + (16 * 16 + 16 * 8) * warp_id(), *y = x + 16 * 16;
    float *out = static_cast<float *>(a.out) + 16 * 8 * warp_id();
    int g = lane_id() / 4, t = lane_id() % 4;
    auto pair = [](bf16 low, bf16 high) { return u32(low.bits) | u32(high.bits) << 16; };
    u32 left[4];
    for (int i = 0; i < 4; ++i) {
        const bf16 *at = x + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        left[i] = pair(at[0], at[1]);
    }
    u32 b0 = pair(y[2 * t * 8 + g], y[(2 * t + 1) * 8 + g]), b1 = pair(y[(2 * t + 8) * 8 + g], y[(2 * t + 9) * 8 + g]);
    float d[4] = {0, 0, 0, 0};
    mma_bf16(d, left, b0, b1);
    mma_bf16(d, left, b0, b1);
    for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// Three groups of one copy each; what is there after waiting for all but one, then for all.
KERNEL(probe_copies, Pair, 32) {
    DYNAMIC_SHARED(uint4, tile);
    const uint4 *in = static_cast<const uint4 *>(a.in);
    uint4 *out = static_cast<uint4 *>(a.out);
    for (int i = 0; i < 3; ++i) {
        copy16_async(tile + i * 32 + threadIdx.x, in + i * 32 + threadIdx.x);
        copies_commit();
    }
    copies_wait<1>();
    for (int i = 0; i < 3; ++i) store16(out + i * 32 + threadIdx.x, load16(tile + i * 32 + threadIdx.x));
    copies_wait<0>();
    for (int i = 0; i < 3; ++i) store16(out + (3 + i) * 32 + threadIdx.x, load16_once(tile + i * 32 + threadIdx.x));
}

// out [64]: the sums of `count` pieces of 64 words, which a third warp hands to the two others, two at a time; then what all
// of them have together.
KERNEL(probe_handed, Pair, 96) {
    DYNAMIC_SHARED(u32, pieces);  // [2][64], [64]
    u64 *there = reinterpret_cast<u64 *>(pieces + 3 * 64), *free = there + 2;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < 2; stage++) {
            copies_start(there + stage);
            leaves_start(free + stage, 2);
        }
    }
    barrier();
    if (warp_id() == 2) {
        for (u32 piece = 0; piece < a.count; piece++) {
            const u32 stage = piece % 2, turn = piece / 2;
            if (turn > 0) wait_for(free + stage, (turn - 1) & 1);
            copies_begin(there + stage, 256);
            const u32 *from = static_cast<const u32 *>(a.in) + 64 * piece;
            copies_by_warp<4>(pieces + 64 * stage, 64, there + stage, [&](u32 quarter) { return from + 16 * quarter; });
            copies_end(there + stage);
        }
        return;
    }
    u32 sum = 0;
    for (u32 piece = 0; piece < a.count; piece++) {
        wait_for(there + piece % 2, piece / 2 & 1);
        sum += pieces[piece % 2 * 64 + 63 - threadIdx.x];
        warp_barrier();
        leave(free + piece % 2);
    }
    u32 *sums = pieces + 2 * 64;
    sums[threadIdx.x] = sum;
    barrier_of<64>();
    static_cast<u32 *>(a.out)[threadIdx.x] = sum + sums[63 - threadIdx.x];
}

// Mistakes, by `count`.
KERNEL(probe_mistake, Pair, 64) {
    u8 *out = static_cast<u8 *>(a.out);
    DYNAMIC_SHARED(u8, dynamic);
    switch (a.count) {
    case 0: // half of a warp at the barrier, half at a shuffle
        if (lane_id() < 16) barrier();
        else shuffle_xor(1u, 1);
        break;
    case 1:
        if (lane_id() < 16) warp_barrier();
        else votes(true);
        break;
    case 2: // a shuffle after some lanes have left
        if (lane_id() == 3) return;
        shuffle_xor(1u, 1);
        break;
    case 3: out[a.count + 61 + threadIdx.x] = 1; break; // 64 .. 128
    case 4: out[-1 - i32(threadIdx.x)] = 1; break;
    case 5: load16(out + 8); break;
    case 6: dynamic[64 + threadIdx.x] = 1; break;
    case 7: // one warp at the barrier, the other has left: no mistake
        if (warp_id() == 0) return;
        barrier();
        out[threadIdx.x] = 7;
        break;
    case 8: // nobody comes
        copies_start(reinterpret_cast<u64 *>(dynamic));
        wait_for(reinterpret_cast<const u64 *>(dynamic), 0);
        break;
    case 9: // one of two warps at the barrier, the other at one that is not its own
        if (warp_id() == 0) barrier();
        else barrier_of<32>();
        break;
    case 10: out[-(1ll << 45)] = 1; // no memory at all
    }
}

enum Function : u32 { EXPONENTIAL, GELU, HALF, PACK, FUSED, ROOT };
struct Map {
    const u32 *in, *second, *third;
    u32 *out;
    u32 count;
    Function function;
};
KERNEL(probe_map, Map, 256) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.count) return;
    u32 x = a.in[i], y = a.second[i], z = a.third[i];
    switch (a.function) {
    case EXPONENTIAL: a.out[i] = bits_of(exponential(float_of(x))); break;
    case GELU: a.out[i] = bits_of(gelu(float_of(x))); break;
    case HALF: a.out[i] = bits_of(half_to_float(u16(x))); break;
    case PACK: a.out[i] = pack_bf16(float_of(x), float_of(y)); break;
    case FUSED: a.out[i] = fused_bf16x2(x, y, z); break;
    case ROOT: a.out[i] = bits_of(square_root(float_of(x))); break;
    }
}
