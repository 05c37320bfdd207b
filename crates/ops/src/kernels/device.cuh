// What kernels are written in, for nvcc and for a host compiler: the tests' host.h defines the same names for the host, where a block
// is a set of fibres. Everything is compiled without contraction of multiply and add, so a sum is the same on both.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef short i16;
typedef signed char i8;

// A bfloat16 as it lies in memory.
struct bf16 {
    u16 bits;
};

#ifdef __CUDACC__

#define DEVICE __device__ __forceinline__
// For what is long and used in several places: code that runs once is waited for.
#define DEVICE_CALL __device__ __noinline__
// Kernels start while the one before still runs, where a device can do that (sm_90). After `await_before` all that kernels before
// wrote is there, and what they read may be overwritten; until then a kernel reads only what the one before does not write. After
// `let_next_start`, called by all blocks, the next one starts as soon as there is room: called after `await_before`, so that
// the next one knows all but this one to be done.
DEVICE void await_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A kernel `name` with one argument `a`, and at most `threads` threads to a block; the second form asks for registers to be
// spared so that `blocks` of them fit on a multiprocessor. The third is for those that have something to do before they wait.
#define KERNEL(name, Args, threads) KERNEL_BODY(name, Args, threads)
#define KERNEL_OF(name, Args, threads, blocks) KERNEL_BODY(name, Args, threads, blocks)
#define KERNEL_EARLY(name, Args, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a)
#define KERNEL_BODY(name, Args, ...)                                                                 \
    DEVICE void name##_body(const Args &a);                                                          \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Args a) { \
        await_before();                                                                              \
        let_next_start();                                                                            \
        name##_body(a);                                                                              \
    }                                                                                                \
    DEVICE void name##_body(const Args &a)
#define SHARED __shared__
#define DYNAMIC_SHARED(type, name)                    \
    extern __shared__ __align__(16) u8 dynamic_bytes[]; \
    type *name = reinterpret_cast<type *>(dynamic_bytes)

DEVICE void barrier() { __syncthreads(); }
// Among the block's first THREADS threads.
template <int THREADS>
DEVICE void barrier_of() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }
DEVICE void warp_barrier() { __syncwarp(); }
template <typename T>
DEVICE T shuffle_xor(T value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
template <typename T>
DEVICE T shuffle(T value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE u32 votes(bool value) { return __ballot_sync(0xffffffffu, value); }
DEVICE u32 atomic_add(u32 *at, u32 value) { return atomicAdd(at, value); }
DEVICE u64 atomic_add(u64 *at, u64 value) { return atomicAdd(at, value); }
// Adds to what nobody looks at before the next kernel.
DEVICE void add_at(float *at, float value) { atomicAdd(at, value); }
// Adds 1, by one thread between two barriers of its block: what its block wrote before them is seen after them by the blocks
// that arrive later. Gives what was there.
DEVICE u32 arrive(u32 *at) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(at) : "memory");
    return before;
}

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// To the nearest integer, ties to even; the nearest there is where it is too large.
DEVICE i32 rounded(double x) { return __double2int_rn(x); }
// The bits of a number in f64.
DEVICE double double_of(u32 high, u32 low) { return __hiloint2double(int(high), int(low)); }
DEVICE u32 low_word(double x) { return u32(__double2loint(x)); }
// With the sign changed by `flip`, a sign bit.
DEVICE double with_sign(double x, u32 flip) { return __hiloint2double(__double2hiint(x) ^ int(flip), __double2loint(x)); }
DEVICE double cosine(double x) { return cos(x); }
DEVICE double sine(double x) { return sin(x); }
DEVICE float square_root(float x) { return __fsqrt_rn(x); }
// The greater; a NaN is none.
DEVICE float greater(float a, float b) { return fmaxf(a, b); }
// The index of the lowest bit that is set; some is.
DEVICE int lowest_bit(u32 bits) { return __ffs(int(bits)) - 1; }

DEVICE float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
DEVICE u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// Bytes of a (0 to 3) and b (4 to 7), by the selector's nibbles from the lowest on.
DEVICE u32 picked_bytes(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
// a & b | c
DEVICE u32 masked_or(u32 a, u32 b, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// Two numbers rounded to bfloat16, `low` in the low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// a * b + c in bfloat16, both halves, rounded once.
DEVICE u32 fused_bf16x2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Sixteen bytes at a multiple of sixteen; the second form is for what is read once and not written by this kernel.
DEVICE uint4 load16(const void *at) { return *reinterpret_cast<const uint4 *>(at); }
DEVICE uint4 load16_once(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}
DEVICE void store16(void *at, uint4 value) { *reinterpret_cast<uint4 *>(at) = value; }

DEVICE u32 shared_address(const void *shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

// Sixteen bytes to shared memory, on the side; a group of copies is complete after `copies_wait<n>`, n groups being left.
DEVICE void copy16_async(void *shared, const void *global) {
    u32 at = shared_address(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global));
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int LEFT>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

// What this thread wrote to shared memory is seen by the tensor cores' own reads of it, after a barrier.
DEVICE void for_tensor_cores() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// d [16, 8] += a [16, 16] b [16, 8], in the fragments of mma.sync.m16n8k16: with g = lane / 4 and t = lane % 4, a holds rows
// g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 (and the next one), b rows 2t and 2t + 8 (and the next) of
// column g, d rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit numbers in shared memory: lanes 8 i .. 8 i + 8 give the addresses of matrix i's rows, and
// lane 4 g + t gets columns 2t and 2t + 1 of its row g: what a of mma_bf16 takes, and b where its columns lie along memory.
DEVICE void load_matrices(u32 (&out)[4], const void *row) {
    u32 at = shared_address(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
// The same, but rows 2t and 2t + 1 of column g: what b of mma_bf16 takes where its rows lie along memory.
DEVICE void load_transposed(u32 (&out)[4], const void *row) {
    u32 at = shared_address(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
// 2^x to about 22 bits.
DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x to a unit of the last place.
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include "host.h"
#endif

const float LOG2_E = 1.44269504f;
// An index that is none.
const u32 NONE = 0xffffffffu;

DEVICE int lane_id() { return threadIdx.x & 31; }
DEVICE int warp_id() { return threadIdx.x >> 5; }

DEVICE float widen(bf16 x) { return float_of(u32(x.bits) << 16); }
DEVICE float widen(float x) { return x; }
DEVICE float widen_low(u32 both) { return float_of(both << 16); }
DEVICE float widen_high(u32 both) { return float_of(both & 0xffff0000u); }
// Rounds to T, to the nearest, ties to even.
template <typename T>
DEVICE T narrow(float x);
template <>
DEVICE float narrow<float>(float x) { return x; }
template <>
DEVICE bf16 narrow<bf16>(float x) { return bf16{u16(pack_bf16(x, 0.0f))}; }

template <typename T>
struct IsBf16 {
    static const bool yes = false;
};
template <>
struct IsBf16<bf16> {
    static const bool yes = true;
};

DEVICE float4 added(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

DEVICE float add_warp(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
    return x;
}
DEVICE float max_warp(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        float other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

// e^x as ops/math.rs computes it, the same bits.
DEVICE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504088896340736f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = fused(n, 2.1219444e-4f, fused(n, -0.6933594f, x));
    float p = 1.9875691e-4f;
    p = fused(p, r, 1.3981999e-3f);
    p = fused(p, r, 8.333452e-3f);
    p = fused(p, r, 4.1665796e-2f);
    p = fused(p, r, 1.6666665e-1f);
    p = fused(p, r, 5.0000003e-1f);
    p = fused(p, r * r, r + 1.0f);
    return p * float_of((bits_of(shifted) + 127u) << 23);
}
DEVICE float gelu(float x) {
    float inner = 0.7978846f * (x + 0.044715f * x * x * x);
    float tanh = 1.0f - 2.0f / (exponential(2.0f * inner) + 1.0f);
    return 0.5f * x * (1.0f + tanh);
}
// What is to be a T: to a few units of f32 where that is rounded to bfloat16 anyway, as x / (1 + e^-2u).
template <typename T>
DEVICE float gelu_as(float x);
template <>
DEVICE float gelu_as<float>(float x) { return gelu(x); }
template <>
DEVICE float gelu_as<bf16>(float x) {
    const float u = x * fused(x * x, -2.0f * LOG2_E * 0.7978846f * 0.044715f, -2.0f * LOG2_E * 0.7978846f);
    return x * reciprocal(1.0f + power_of_two(u));
}
