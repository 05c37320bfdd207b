// The vocabulary of device.cuh for a host compiler (Linux), so that the kernels' own source runs, and is tested, without a card.
//
// A thread is a fibre; blocks run one after the other. Fibres change only where threads meet, in an order drawn from the call's
// seed: seed 0 runs each warp as far as it comes, lanes in order; others mix the warps. Whatever a kernel may not rely on is made bad:
// shared memory is poisoned when a block starts, and an asynchronous copy spoils its destination until the wait that
// guarantees it. Threads that can never meet, misaligned vectors and faults end the call with a message.
#pragma once

#include <cmath>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#define DEVICE inline
#define DEVICE_CALL inline
#define SHARED static
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(host::block.dynamic)
#define KERNEL(name, Args, threads)                                                         \
    static void name##_thread(const Args &a);                                               \
    extern "C" __attribute__((visibility("default"))) bool name(host::Call *call) {         \
        auto thread = [](const void *a) { name##_thread(*static_cast<const Args *>(a)); }; \
        return host::run(*call, #name, sizeof(Args), threads, thread);                      \
    }                                                                                       \
    static void name##_thread(const Args &a)
#define KERNEL_OF(name, Args, threads, blocks) KERNEL(name, Args, threads)
#define KERNEL_EARLY(name, Args, threads, blocks) KERNEL(name, Args, threads)

struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// The emulation's own state has a section of its own: what is left in .bss is the kernels' static shared memory.
#define STATE __attribute__((section("emulation"))) static
struct Index3 { u32 x, y, z; };
STATE Index3 threadIdx = {1, 0, 0}, blockIdx = {1, 0, 0}, blockDim = {1, 1, 1}, gridDim = {1, 1, 1};
extern "C" __attribute__((visibility("hidden"))) u8 __bss_start[], _end[];

#if defined(__x86_64__) && !defined(PORTABLE_FIBRES)
// Saves this stack's place to `save` and goes on at `load`. Defined out of the compiler's sight, which so expects any memory to
// change in it.
extern "C" __attribute__((visibility("hidden"))) void fibre_switch(void **save, void *load);
asm(".text\n"
    ".type fibre_switch, @function\n"
    ".hidden fibre_switch\n"
    ".globl fibre_switch\n"
    "fibre_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size fibre_switch, . - fibre_switch\n");
#else
#include <ucontext.h>
#endif

namespace host {

// One launch, as the caller lays it out; `message` says why the answer is false.
struct Call {
    const void *args;
    u64 bytes;
    u64 seed;
    u32 grid[3];
    u32 threads;
    u32 shared;
    char message[300];
};

constexpr u32 WARP = 32, MOST_THREADS = 1024, MOST_SHARED = 227 * 1024;
constexpr size_t STACK = 64 * 1024, GUARD = 1024;
constexpr u8 POISON = 0xff; // a NaN in every format
constexpr u64 CANARY = 0x5afe57acc0ffee00u;

// A stack to run on.
struct Context {
#if defined(__x86_64__) && !defined(PORTABLE_FIBRES)
    void *place;
    void start(u8 *stack, size_t size, void (*entry)()) {
        void **top = reinterpret_cast<void **>(stack + size);
        *--top = nullptr; // where `entry` would return to, which it does not
        *--top = reinterpret_cast<void *>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        place = top;
    }
    void leave_for(Context &other) { fibre_switch(&place, other.place); }
#else
    ucontext_t place;
    void start(u8 *stack, size_t size, void (*entry)()) {
        getcontext(&place);
        place.uc_stack.ss_sp = stack;
        place.uc_stack.ss_size = size;
        place.uc_link = nullptr;
        makecontext(&place, entry, 0);
    }
    void leave_for(Context &other) { swapcontext(&place, &other.place); }
#endif
};

struct Copy {
    void *to;
    const void *from;
    u32 group;
};

// By a warp, for an arrival.
struct WarpCopy {
    void *to;
    const void *from;
    u32 bytes;
    const u64 *arrival;
};

struct Fibre {
    Context context;
    u8 *stack;
    u32 meetings; // of its warp, so far
    u32 groups;   // of copies, so far
    std::vector<Copy> copies;
};

enum Meeting : u32 { BARRIER, SHUFFLE, VOTES, PRODUCT, MATRICES };
constexpr const char *MEETINGS[] = {"warp_barrier", "shuffle", "votes", "mma", "matrices"};

// What a lane shows the others of its warp.
struct Words {
    u32 word[6];
};

struct Warp {
    u32 ready, waiting, at_barrier, returned; // lanes, as bits
    u32 among; // warps that meet at the barrier it stands at
    Meeting meeting;
    u32 turn;           // where the next choice of a lane starts
    Words shown[2][WARP]; // of this meeting and, while lanes still read it, of the one before
};

struct Block {
    Fibre *fibre; // the one that runs
    Warp *warp;
    u8 *dynamic;
    Context scheduler;
    void (*thread)(const void *);
    Call *call;
    const char *kernel;
    u64 random;
    bool failed, pause;
    std::vector<WarpCopy> copies;
};

STATE Block block = {};
STATE Fibre *fibres = nullptr;
STATE Warp *warps = nullptr;
STATE std::mutex one_at_a_time;
STATE struct sigaction handler_before = {};
static thread_local bool running = false;

inline u32 draw() {
    block.random = block.random * 6364136223846793005u + 1442695040888963407u;
    return u32(block.random >> 33);
}

inline void yield() { block.fibre->context.leave_for(block.scheduler); }

__attribute__((format(printf, 1, 2))) inline void say(const char *format, ...) {
    char *to = block.call->message;
    size_t room = sizeof block.call->message;
    int used = snprintf(to, room, "%s, block (%u, %u, %u): ", block.kernel, blockIdx.x, blockIdx.y, blockIdx.z);
    va_list rest;
    va_start(rest, format);
    vsnprintf(to + used, room - used, format, rest);
    va_end(rest);
    block.failed = true;
}

// Where a kernel reads or writes what is no memory, the launch ends; other faults are whose they were.
inline void on_fault(int signal, siginfo_t *info, void *context) {
    if (running) {
        say("thread %u touches %p", threadIdx.x, info->si_addr);
        yield();
    }
    if (handler_before.sa_flags & SA_SIGINFO) return handler_before.sa_sigaction(signal, info, context);
    sigaction(signal, &handler_before, nullptr); // and it happens again
}

// Goes on when all lanes of the warp are here; gives what each has shown.
inline const Words *meet(Meeting meeting, Words mine = {}) {
    Warp &warp = *block.warp;
    u32 bit = 1u << (threadIdx.x % WARP);
    Words *shown = warp.shown[block.fibre->meetings++ % 2];
    shown[threadIdx.x % WARP] = mine;
    if (warp.waiting == 0) warp.meeting = meeting;
    if (warp.meeting != meeting) {
        say("lanes of warp %u are at different places: thread %u at a %s, others at a %s", threadIdx.x / WARP, threadIdx.x,
            MEETINGS[meeting], MEETINGS[warp.meeting]);
        yield();
    }
    warp.waiting |= bit;
    warp.ready &= ~bit;
    if (warp.waiting == 0xffffffffu) {
        warp.waiting = 0;
        warp.ready = 0xffffffffu;
        if (block.call->seed == 0) return shown;
        u32 word = draw();
        warp.turn = word;
        block.pause = block.call->seed % 2 == 0 && (word >> 8) % 4 == 0;
    }
    yield();
    return shown;
}

inline void entry() {
    block.thread(block.call->args);
    u32 bit = 1u << (threadIdx.x % WARP);
    block.warp->ready &= ~bit;
    block.warp->returned |= bit;
    yield();
}

// Runs a warp until none of its lanes can go on, or a pause.
inline void run_warp(u32 index) {
    Warp &warp = warps[index];
    block.warp = &warp;
    block.pause = false;
    while (warp.ready != 0 && !block.pause && !block.failed) {
        u32 turn = warp.turn % WARP, ready = warp.ready >> turn | warp.ready << (WARP - turn) % WARP;
        bool down = warp.turn / WARP % 2 == 1;
        u32 lane = ((down ? 31 - __builtin_clz(ready) : __builtin_ctz(ready)) + turn) % WARP;
        threadIdx.x = index * WARP + lane;
        block.fibre = &fibres[threadIdx.x];
        block.scheduler.leave_for(block.fibre->context);
    }
    if (!block.failed && warp.ready == 0 && warp.waiting != 0)
        say("warp %u cannot go on: lanes %08x wait at a %s, %08x at the block's barrier, %08x returned", index, warp.waiting,
            MEETINGS[warp.meeting], warp.at_barrier, warp.returned);
}

inline void run_block(u32 threads, u32 shared) {
    memset(__bss_start, POISON, _end - __bss_start);
    memset(block.dynamic, POISON, shared + GUARD);
    block.copies.clear();
    u32 order[MOST_THREADS / WARP], count = threads / WARP;
    for (u32 i = 0; i < threads; ++i) {
        Fibre &fibre = fibres[i];
        memcpy(fibre.stack, &CANARY, sizeof CANARY);
        // Stacks start at different places of their pages: all at the same would share a few lines of the cache.
        fibre.context.start(fibre.stack, STACK - i % 64 * 192, entry);
        fibre.meetings = fibre.groups = 0;
        fibre.copies.clear();
    }
    for (u32 w = 0; w < count; ++w) {
        warps[w].ready = 0xffffffffu;
        warps[w].waiting = warps[w].at_barrier = warps[w].returned = 0;
        warps[w].turn = block.call->seed ? draw() : 0;
        order[w] = w;
    }
    for (bool moved = true; moved;) {
        for (u32 w = count; block.call->seed && w > 1; --w) std::swap(order[w - 1], order[draw() % w]);
        moved = false;
        for (u32 w = 0; w < count; ++w) {
            if (warps[order[w]].ready == 0) continue;
            run_warp(order[w]);
            if (block.failed) return;
            moved = true;
        }
        // Barriers at which all stand who have not returned.
        for (u32 w = 0; w < count; ++w) {
            if (warps[w].at_barrier == 0) continue;
            bool all = true;
            const u32 among = warps[w].among;
            for (u32 i = 0; i < among; ++i) {
                const Warp &other = warps[i];
                all &= (other.at_barrier | other.returned) == 0xffffffffu && (other.at_barrier == 0 || other.among == among);
            }
            if (!all) continue;
            moved = true;
            for (u32 i = 0; i < among; ++i) {
                warps[i].ready = warps[i].at_barrier;
                warps[i].at_barrier = 0;
            }
        }
    }
    for (u32 w = 0; w < count; ++w)
        if (warps[w].at_barrier != 0) return say("warp %u waits at a barrier to which not all come", w);
    for (u32 i = 0; i < threads; ++i)
        if (memcmp(fibres[i].stack, &CANARY, sizeof CANARY) != 0) return say("thread %u needs too large a stack", i);
    for (size_t i = 0; i < GUARD; ++i)
        if (block.dynamic[shared + i] != POISON) return say("byte %zu of %u of dynamic shared memory was written", shared + i, shared);
}

inline bool run(Call &call, const char *kernel, size_t bytes, u32 most, void (*thread)(const void *)) {
    std::lock_guard<std::mutex> alone(one_at_a_time);
    if (fibres == nullptr) {
        fibres = new Fibre[MOST_THREADS]();
        warps = new Warp[MOST_THREADS / WARP]();
        block.dynamic = static_cast<u8 *>(aligned_alloc(1024, MOST_SHARED + GUARD));
        u8 *stacks = static_cast<u8 *>(aligned_alloc(4096, MOST_THREADS * STACK));
        for (u32 i = 0; i < MOST_THREADS; ++i) fibres[i].stack = stacks + i * STACK;
        struct sigaction handler = {};
        handler.sa_sigaction = on_fault;
        handler.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &handler, &handler_before);
    }
    block.call = &call;
    block.kernel = kernel;
    block.thread = thread;
    block.random = call.seed * 0x9e3779b97f4a7c15u;
    block.failed = false;
    blockIdx = {0, 0, 0};
    blockDim = {call.threads, 1, 1};
    gridDim = {call.grid[0], call.grid[1], call.grid[2]};
    u64 blocks = u64(call.grid[0]) * call.grid[1] * call.grid[2];
    if (call.bytes != bytes) say("%llu bytes of arguments, not %zu", call.bytes, bytes);
    else if (call.threads == 0 || call.threads > most || call.threads % WARP != 0) say("%u threads, of at most %u", call.threads, most);
    else if (call.shared > MOST_SHARED) say("%u bytes of shared memory, of at most %u", call.shared, MOST_SHARED);
    else if (blocks == 0 || call.grid[1] > 65535 || call.grid[2] > 65535) say("a grid of %u, %u, %u", gridDim.x, gridDim.y, gridDim.z);
    for (u64 i = 0; i < blocks && !block.failed; ++i) {
        u64 at = call.seed % 2 ? blocks - 1 - i : i;
        blockIdx = {u32(at % gridDim.x), u32(at / gridDim.x % gridDim.y), u32(at / gridDim.x / gridDim.y)};
        running = true;
        run_block(call.threads, call.shared);
        running = false;
    }
    return !block.failed;
}

template <typename T>
Words words_of(T value) {
    static_assert(sizeof(T) <= sizeof(Words), "a lane shows at most six words");
    Words words = {};
    memcpy(&words, &value, sizeof value);
    return words;
}

template <typename T>
T value_of(const Words &words) {
    T value;
    memcpy(&value, &words, sizeof value);
    return value;
}

inline void aligned(const void *at, const char *what) {
    if (reinterpret_cast<size_t>(at) % 16 == 0) return;
    say("%s of thread %u at %p, not a multiple of 16", what, threadIdx.x, at);
    yield();
}

} // namespace host

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
