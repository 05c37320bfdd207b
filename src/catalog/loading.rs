//! What loading leaves in memory: banks pass through f32 on their way to few bits, a base through its file, and glibc by itself
//! would keep most of that for later.

/// While one of these lives, large blocks are returned to the system as they are freed; afterwards they come from the heap
/// again, as the buffers of a step should.
pub(super) struct Loading(());

impl Loading {
    pub fn begin() -> Self {
        from_the_system_above(128 << 10);
        Loading(())
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        from_the_system_above(32 << 20);
        give_back();
    }
}

/// What `make` makes, and the bytes by which it made the heap grow: the size of what others build, when nothing else runs. 0
/// where the allocator does not say.
pub(super) fn sized<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = heap();
    let made = make();
    (made, heap().saturating_sub(before))
}

#[allow(unsafe_code)]
fn heap() -> usize {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no precondition.
    unsafe {
        let info = libc::mallinfo2();
        info.uordblks + info.hblkhd
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    0
}

/// Blocks of at least this many bytes are asked of the system one by one, and free memory of twice as much at the end of
/// the heap goes back to it.
#[allow(unsafe_code)]
fn from_the_system_above(bytes: i32) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: any thread may set a parameter of the allocator at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * bytes);
    }
}

/// Hands free memory back to the system.
#[allow(unsafe_code)]
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no precondition and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
