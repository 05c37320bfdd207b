// What kernels call, on the host: the vocabulary of device.cuh and copies.cuh over the fibres of host.h, which includes this.
#pragma once

inline void barrier_among(u32 warps) {
    host::Warp &warp = *host::block.warp;
    u32 bit = 1u << (threadIdx.x % host::WARP);
    warp.ready &= ~bit;
    warp.at_barrier |= bit;
    warp.among = warps;
    host::yield();
}
inline void barrier() { barrier_among(blockDim.x / host::WARP); }
template <int THREADS>
void barrier_of() {
    barrier_among(THREADS / host::WARP);
}
inline void warp_barrier() { host::meet(host::BARRIER); }
template <typename T>
T shuffle(T value, int lane) {
    return host::value_of<T>(host::meet(host::SHUFFLE, host::words_of(value))[lane & 31]);
}
template <typename T>
T shuffle_xor(T value, int mask) {
    int lane = threadIdx.x % host::WARP ^ mask;
    return shuffle(value, lane);
}
inline u32 votes(bool value) {
    const host::Words *shown = host::meet(host::VOTES, host::words_of(u32(value)));
    u32 bits = 0;
    for (u32 lane = 0; lane < host::WARP; ++lane) bits |= shown[lane].word[0] << lane;
    return bits;
}
template <typename T>
T atomic_sum(T *at, T value) {
    T before = *at;
    *at += value;
    return before;
}
inline u32 atomic_add(u32 *at, u32 value) { return atomic_sum(at, value); }
inline u64 atomic_add(u64 *at, u64 value) { return atomic_sum(at, value); }
inline void add_at(float *at, float value) { *at += value; }
inline u32 arrive(u32 *at) { return atomic_add(at, 1); }
// Kernels run one after the other here.
inline void await_before() {}
inline void let_next_start() {}
inline void for_tensor_cores() {}

inline u32 picked_bytes(u32 a, u32 b, u32 selector) {
    u32 picked = 0;
    for (u32 i = 0; i < 4; ++i) {
        u32 index = selector >> (4 * i) & 7;
        picked |= ((index < 4 ? a : b) >> (8 * (index % 4)) & 0xff) << (8 * i);
    }
    return picked;
}
inline u32 masked_or(u32 a, u32 b, u32 c) { return (a & b) | c; }

inline u32 bits_of(float x) { return host::value_of<u32>(host::words_of(x)); }
inline float float_of(u32 x) { return host::value_of<float>(host::words_of(x)); }
inline float fused(float a, float b, float c) { return std::fmaf(a, b, c); }
inline i32 rounded(double x) {
    double whole = std::nearbyint(x);
    return whole >= 2147483647.0 ? 0x7fffffff : whole > -2147483648.0 ? i32(whole) : -0x7fffffff - 1;
}
inline double double_of(u32 high, u32 low) { return host::value_of<double>(host::words_of(u64(high) << 32 | low)); }
inline u32 low_word(double x) { return u32(host::value_of<u64>(host::words_of(x))); }
inline double with_sign(double x, u32 flip) { return host::value_of<double>(host::words_of(host::value_of<u64>(host::words_of(x)) ^ u64(flip) << 32)); }
inline double cosine(double x) { return std::cos(x); }
inline double sine(double x) { return std::sin(x); }
inline float square_root(float x) { return std::sqrt(x); }
inline float greater(float a, float b) { return std::fmax(a, b); }
inline int lowest_bit(u32 bits) { return __builtin_ctz(bits); }

inline float half_to_float(u16 bits) {
    u32 sign = u32(bits & 0x8000) << 16, exponent = bits >> 10 & 31, rest = bits & 1023;
    if (exponent == 31) return float_of(sign | 0x7f800000u | (rest ? rest << 13 | 0x400000u : 0));
    float size = std::ldexp(float(exponent ? rest + 1024 : rest), int(exponent ? exponent : 1) - 25);
    return float_of(sign | bits_of(size));
}
inline u16 float_to_half(float x) {
    u32 bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    float size = std::fabs(x);
    if (!(size < 65520.0f)) return std::isnan(x) ? 0x7fffu : sign | 0x7c00u;
    if (size < 6.103515625e-5f) return sign | u32(std::nearbyint(size * 16777216.0f));
    return sign | (bits_of(size) + 0xfffu + (bits >> 13 & 1) - (112u << 23)) >> 13;
}
inline u32 pack_bf16(float low, float high) {
    auto round = [](float x) -> u32 {
        u32 bits = bits_of(x);
        return std::isnan(x) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    };
    return round(low) | round(high) << 16;
}
inline u32 fused_bf16x2(u32 a, u32 b, u32 c) {
    // The product is exact. The sum is rounded to odd, first in f64 and then in f32: the last rounding is then as if from the exact sum.
    auto one = [](u32 a, u32 b, u32 c) -> float {
        double product = double(float_of(a)) * double(float_of(b)), addend = float_of(c), sum = product + addend;
        if (!std::isfinite(sum)) return float(sum);
        double part = sum - product, rest = (product - (sum - part)) + (addend - part);
        u64 bits;
        memcpy(&bits, &sum, sizeof bits);
        if (rest != 0.0 && bits % 2 == 0) sum = std::nextafter(sum, rest > 0.0 ? HUGE_VAL : -HUGE_VAL);
        float narrow = float(sum);
        if (double(narrow) == sum) return narrow;
        if (std::fabs(double(narrow)) > std::fabs(sum)) narrow = std::nextafterf(narrow, 0.0f);
        return float_of(bits_of(narrow) | 1u);
    };
    return pack_bf16(one(a << 16, b << 16, c << 16), one(a & 0xffff0000u, b & 0xffff0000u, c & 0xffff0000u));
}

inline uint4 load16(const void *at) {
    host::aligned(at, "a load");
    uint4 value;
    memcpy(&value, at, sizeof value);
    return value;
}
inline uint4 load16_once(const void *at) { return load16(at); }
inline void store16(void *at, uint4 value) {
    host::aligned(at, "a store");
    memcpy(at, &value, sizeof value);
}

inline void copy16_async(void *shared, const void *global) {
    host::aligned(shared, "a copy to");
    host::aligned(global, "a copy from");
    memset(shared, host::POISON, 16);
    host::Fibre &fibre = *host::block.fibre;
    fibre.copies.push_back({shared, global, fibre.groups});
}
inline void copies_commit() { ++host::block.fibre->groups; }
template <int LEFT>
void copies_wait() {
    host::Fibre &fibre = *host::block.fibre;
    size_t done = 0;
    for (; done < fibre.copies.size() && fibre.copies[done].group + LEFT < fibre.groups; ++done)
        memcpy(fibre.copies[done].to, fibre.copies[done].from, 16);
    fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + done);
}

// An arrival holds how many it is counted for, how many of them have come, and its turns.
struct Arrival {
    u16 count, come;
    u32 turns;
};
inline Arrival &arrival_of(const u64 *at) { return *reinterpret_cast<Arrival *>(const_cast<u64 *>(at)); }
inline void arrive_once(u64 *at) {
    Arrival &arrival = arrival_of(at);
    if (++arrival.come < arrival.count) return;
    arrival.come = 0;
    arrival.turns++;
}
inline void copies_start(u64 *at) { arrival_of(at) = {1, 0, 0}; }
inline void leaves_start(u64 *at, u32 warps) { arrival_of(at) = {u16(host::WARP * warps), 0, 0}; }
inline void leave(u64 *at) { arrive_once(at); }
inline void copies_begin(u64 *, u32) {}
template <int COUNT, typename F>
void copies_by_warp(void *shared, u32 bytes, u64 *at, F from) {
    u32 lane = threadIdx.x % host::WARP;
    for (u32 piece = lane; piece < COUNT; piece += host::WARP) {
        u8 *to = static_cast<u8 *>(shared) + piece * bytes;
        const void *source = from(piece);
        host::aligned(to, "a copy to");
        host::aligned(source, "a copy from");
        if (bytes % 16 != 0) host::say("a copy of %u bytes", bytes);
        memset(to, host::POISON, bytes);
        host::block.copies.push_back({to, source, bytes, at});
    }
    warp_barrier();
}
inline void copies_end(u64 *at) {
    if (threadIdx.x % host::WARP == 0) arrive_once(at);
}
inline void wait_for(const u64 *at, u32 parity) {
    const Arrival &arrival = arrival_of(at);
    for (u32 times = 0; arrival.turns % 2 == parity; times++) {
        if (times == 1000000) host::say("thread %u waits in vain", threadIdx.x);
        host::block.pause = true; // for other warps
        host::block.warp->turn++; // and lanes
        host::yield();
    }
    std::vector<host::WarpCopy> left;
    for (const host::WarpCopy &copy : host::block.copies) {
        if (copy.arrival == at) memcpy(copy.to, copy.from, copy.bytes);
        else left.push_back(copy);
    }
    host::block.copies.swap(left);
}

inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const host::Words *lanes = host::meet(host::PRODUCT, {{a[0], a[1], a[2], a[3], b0, b1}});
    u32 g = threadIdx.x % host::WARP / 4, t = threadIdx.x % 4;
    for (u32 i = 0; i < 4; ++i) {
        u32 row_half = i / 2, column = 2 * t + i % 2;
        for (u32 pair = 0; pair < 8; ++pair) { // k = 2 pair and 2 pair + 1
            u32 x = lanes[g * 4 + pair % 4].word[row_half + pair / 4 * 2];
            u32 y = lanes[column * 4 + pair % 4].word[4 + pair / 4];
            d[i] += float_of(x << 16) * float_of(y << 16);
            d[i] += float_of(x & 0xffff0000u) * float_of(y & 0xffff0000u);
        }
    }
}

namespace host {
// The addresses of the rows of four 8 x 8 matrices, from those of the lanes.
struct Rows {
    const u16 *of[WARP];
    Rows(const void *row) {
        aligned(row, "a row of a matrix at");
        const u64 address = reinterpret_cast<u64>(row);
        const Words *lanes = meet(MATRICES, {{u32(address), u32(address >> 32), 0, 0, 0, 0}});
        for (u32 lane = 0; lane < WARP; ++lane)
            of[lane] = reinterpret_cast<const u16 *>(u64(lanes[lane].word[0]) | u64(lanes[lane].word[1]) << 32);
    }
};
} // namespace host
inline void load_matrices(u32 (&out)[4], const void *row) {
    const host::Rows rows(row);
    u32 g = threadIdx.x % host::WARP / 4, t = threadIdx.x % 4;
    for (u32 i = 0; i < 4; ++i) out[i] = rows.of[8 * i + g][2 * t] | u32(rows.of[8 * i + g][2 * t + 1]) << 16;
}
inline void load_transposed(u32 (&out)[4], const void *row) {
    const host::Rows rows(row);
    u32 g = threadIdx.x % host::WARP / 4, t = threadIdx.x % 4;
    for (u32 i = 0; i < 4; ++i) out[i] = rows.of[8 * i + 2 * t][g] | u32(rows.of[8 * i + 2 * t + 1][g]) << 16;
}
inline float power_of_two(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }
