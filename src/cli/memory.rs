//! What loading leaves in memory: banks pass through f32 on their way to few bits, a base through its file, and glibc by itself
//! would keep most of that for later.

use crate::engine::EngineHandle;
use std::time::Duration;

/// How often an engine with nothing to do is looked for.
const LOOK: Duration = Duration::from_secs(10);

/// Hands back what requests have left in memory, where the engine has nothing to do.
pub async fn give_back_when_idle(engine: EngineHandle) {
    let mut looks = tokio::time::interval(LOOK);
    loop {
        looks.tick().await;
        let status = engine.status();
        if status.running + status.waiting == 0 {
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// To be said before there are threads: free memory between what is in use is handed back by glibc's first arena only, and each of the
/// others may keep some tens of megabytes. Small blocks come from a cache of each thread's either way.
#[allow(unsafe_code)]
pub fn one_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: any thread may set a parameter of the allocator at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Loading begins, or is over. While it lasts, large blocks go back to the system as they are freed; afterwards they come from the
/// heap again, as the buffers of a step should.
pub fn loading(begins: bool) {
    match begins {
        true => from_the_system_above(128 << 10),
        false => {
            from_the_system_above(32 << 20);
            give_back();
        }
    }
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
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = bytes;
}

/// Free memory stays with the process, which ends soon: large buffers follow each other, and each page that comes new from the system
/// costs more than filling it.
#[allow(unsafe_code)]
pub fn keep() {
    one_arena();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: any thread may set a parameter of the allocator at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
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
