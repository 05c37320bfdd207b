//! Where additions are prepared: one at a time, few of them waiting, on few threads that give way to the engine's.

use super::Error;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Changes that may be under way or wait at once, each with a thread and, at its turn, with a checkpoint in memory.
const AT_ONCE: usize = 8;
/// Of every so many processors one.
const SHARE: usize = 4;

pub(super) struct Workshop {
    inside: AtomicUsize,
    busy: Mutex<()>,
    threads: ThreadPool,
}

impl Workshop {
    pub fn new() -> Result<Self, Error> {
        let threads = ThreadPoolBuilder::new()
            .num_threads(Self::threads())
            .thread_name(|index| format!("choir-add-{index}"))
            .start_handler(|_| give_way())
            .build();
        let threads = threads.map_err(|error| Error::NotStarted {
            reason: error.to_string(),
        })?;
        Ok(Workshop {
            inside: AtomicUsize::new(0),
            busy: Mutex::new(()),
            threads,
        })
    }

    /// The threads that an addition may have.
    pub fn threads() -> usize {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
        (processors / SHARE).max(1)
    }

    /// Does the work on a thread of its own that gives way, as do those that it starts; beside what is being prepared.
    pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                give_way();
                work()
            });
            match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Does the work at its turn, on the workshop's threads.
    ///
    /// # Errors
    /// `Busy` at once where too many wait already; else the work's own.
    pub fn prepare<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let _place = WorkshopPermit::take(&self.inside)?;
        // Taken here and not on a thread of the pool, which may do another's work while it waits.
        let _turn = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.threads.install(work)
    }
}

/// One of the places inside.
struct WorkshopPermit<'a>(&'a AtomicUsize);

impl<'a> WorkshopPermit<'a> {
    fn take(inside: &'a AtomicUsize) -> Result<Self, Error> {
        let enter = |count: usize| (count < AT_ONCE).then_some(count + 1);
        match inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => Ok(WorkshopPermit(inside)),
            Err(waiting) => Err(Error::Busy { waiting }),
        }
    }
}

impl Drop for WorkshopPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// From now on the calling thread, and those that it starts, run where nobody else wants the processor. A low priority would not do: a
/// step's threads wait for each other many times, and each time whoever is running keeps the processor for milliseconds before it gives
/// way; an idle one gives way at once.
#[allow(unsafe_code)]
fn give_way() {
    #[cfg(target_os = "linux")]
    // SAFETY: the parameters are read during the call; 0 is the calling thread.
    unsafe {
        let parameters = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_workshop_that_is_full_refuses_at_once_and_has_room_again_afterwards() {
        let workshop = Workshop::new().unwrap();
        let (release, held) = channel::<()>();
        let held = Mutex::new(held);
        let (began, begun) = channel();
        std::thread::scope(|scope| {
            let work = |_| {
                let (workshop, held, began) = (&workshop, &held, began.clone());
                scope.spawn(move || {
                    workshop.prepare(|| {
                        began.send(()).unwrap();
                        held.lock().unwrap().recv().unwrap();
                        Ok(())
                    })
                })
            };
            let working: Vec<_> = (0..AT_ONCE).map(work).collect();
            begun.recv().unwrap();
            while workshop.inside.load(Ordering::Relaxed) < AT_ONCE {
                std::thread::yield_now();
            }
            let refused = workshop.prepare(|| Ok(()));
            assert!(matches!(refused, Err(Error::Busy { waiting: AT_ONCE })));
            assert!(begun.try_recv().is_err(), "one at a time");
            (0..AT_ONCE).for_each(|_| release.send(()).unwrap());
            assert!(working.into_iter().all(|one| one.join().unwrap().is_ok()));
        });
        workshop.prepare(|| Ok(())).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = workshop.prepare(|| -> Result<(), Error> { panic!("a fault") });
        }));
        assert!(panicked.is_err());
        workshop.prepare(|| Ok(())).unwrap();
        assert_eq!(workshop.inside.load(Ordering::Relaxed), 0);
    }
}
