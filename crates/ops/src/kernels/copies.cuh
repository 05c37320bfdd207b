// Copies to shared memory ahead of time, by one warp for others. What they wait for are arrivals, numbers of eight bytes in shared
// memory: of copies, which one warp begins, makes and ends, and of warps that need what was copied no longer. A first turn is
// awaited with parity 0, the next with 1, and so on.
#pragma once
#include "device.cuh"

#ifdef __CUDACC__

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

DEVICE void arrivals_start(u64 *arrival, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// By one thread, before a barrier.
DEVICE void copies_start(u64 *arrival) { arrivals_start(arrival, 1); }
// `bytes`: of all copies of this turn.
DEVICE void copies_begin(u64 *arrival, u32 bytes) {
    if (lane_id() != 0) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes) : "memory");
}
// COUNT pieces of `bytes` bytes each, to one place after the other, from where `from` says; all multiples of sixteen.
template <int COUNT, typename F>
DEVICE void copies_by_warp(void *shared, u32 bytes, u64 *arrival, F from) {
    warp_barrier();  // all has begun
    const u32 lane = lane_id();
    if (lane >= COUNT) return;
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared) + lane * bytes),
                 "l"(from(lane)), "r"(bytes), "r"(shared_address(arrival))
                 : "memory");
}
DEVICE void copies_end(u64 *) {}
#define WAIT "mbarrier.try_wait.parity"

#else

DEVICE void arrivals_start(u64 *arrival, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(count) : "memory");
}
DEVICE void copies_start(u64 *arrival) { arrivals_start(arrival, 32); }
DEVICE void copies_begin(u64 *, u32) {}
template <int COUNT, typename F>
DEVICE void copies_by_warp(void *shared, u32 bytes, u64 *, F from) {
    for (u32 piece = 0; piece < COUNT; piece++) {
        u8 *to = static_cast<u8 *>(shared) + piece * bytes;
        const u8 *at = reinterpret_cast<const u8 *>(from(piece));
        for (u32 byte = 16 * lane_id(); byte < bytes; byte += 512) copy16_async(to + byte, at + byte);
    }
}
DEVICE void copies_end(u64 *arrival) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(arrival)) : "memory");
}
#define WAIT "mbarrier.test_wait.parity"

#endif

// By one thread, before a barrier.
DEVICE void leaves_start(u64 *arrival, u32 warps) { arrivals_start(arrival, 32 * warps); }
// By every lane of a warp.
DEVICE void leave(u64 *arrival) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(arrival)) : "memory");
}
DEVICE void wait_for(const u64 *arrival, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred there;\n"
                 "AGAIN: " WAIT ".shared::cta.b64 there, [%0], %1;\n"
                 "@there bra THERE;\n"
                 "bra AGAIN;\n"
                 "THERE:\n"
                 "}" ::"r"(shared_address(arrival)),
                 "r"(parity)
                 : "memory");
}
#undef WAIT

#endif
