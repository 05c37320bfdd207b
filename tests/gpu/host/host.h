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

#include "host_calls.h"
