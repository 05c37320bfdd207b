// Products of four warps with rows in shared memory (wgmma), which only sm_90a has: d [64, ROWS] += a [64, 16] b^T, each warp
// having sixteen rows of a and d in the fragments of mma_bf16; see images.cuh for b.
#pragma once

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TENSOR_ROWS

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;"); }
// Where none is left, what they read may be overwritten.
template <int LEFT>
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

// A matrix in shared memory, 128 bytes to a row, pieces of sixteen bytes swizzled within groups of eight rows, which lie 1024 bytes
// apart: the low half of what describes it, by which one within it differs. The same for all of a warp, which tells the compiler.
DEVICE u32 matrix_at(const void *shared) {
    return shuffle(1u << 16 | (shared_address(shared) & 0x3ffff) >> 4, 0);
}
DEVICE u64 described(u32 matrix) { return u64(1u << 30 | 1024 >> 4) << 32 | matrix; }

#define SUM4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
template <int ROWS>
DEVICE void tensor_rows(float (&d)[ROWS / 8][4], const u32 (&a)[4], u32 b);
template <>
DEVICE void tensor_rows<8>(float (&d)[1][4], const u32 (&a)[4], u32 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
                 : SUM4(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(described(b)));
}
template <>
DEVICE void tensor_rows<16>(float (&d)[2][4], const u32 (&a)[4], u32 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
                 : SUM4(0), SUM4(1)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(described(b)));
}
template <>
DEVICE void tensor_rows<32>(float (&d)[4][4], const u32 (&a)[4], u32 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                 : SUM4(0), SUM4(1), SUM4(2), SUM4(3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(described(b)));
}
template <>
DEVICE void tensor_rows<64>(float (&d)[8][4], const u32 (&a)[4], u32 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                 : SUM4(0), SUM4(1), SUM4(2), SUM4(3), SUM4(4), SUM4(5), SUM4(6), SUM4(7)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(described(b)));
}
#undef SUM4
#endif
