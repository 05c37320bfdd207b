//! The threads that compute.

use super::error::Error;
use rayon::ThreadPool;

/// A pool of so many threads, 0 being one for each processor that this process may use; where `pinned`, every thread stays on a
/// processor of its own.
///
/// # Errors
/// `BadField` where there are fewer processors than threads to pin, `NotStarted` where the system gives no threads or does not
/// pin them.
pub fn pool(threads: usize, pinned: bool) -> Result<ThreadPool, Error> {
    let not_started = |detail: String| Error::NotStarted { detail };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("choir-compute-{index}"))
        .build()
        .map_err(|error| not_started(error.to_string()))?;
    if !pinned {
        return Ok(pool);
    }
    let processors = core_affinity::get_core_ids().unwrap_or_default();
    let (threads, most) = (pool.current_num_threads(), processors.len());
    if most == 0 {
        return Err(not_started(
            "the system does not say which processors there are".into(),
        ));
    }
    if threads > most {
        let reason =
            format!("{threads} are more than the {most} processors that they could be pinned to");
        return Err(Error::bad("threads", reason));
    }
    let done =
        pool.broadcast(|context| core_affinity::set_for_current(processors[context.index()]));
    match done.iter().all(|pinned| *pinned) {
        true => Ok(pool),
        false => Err(not_started(
            "the system does not let threads be pinned".into(),
        )),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn pinned_threads_have_a_processor_each_and_no_more_than_there_are() {
        let all = core_affinity::get_core_ids().expect("processors").len();
        let of_threads = |pinned| {
            let pool = pool(all, pinned).expect("threads");
            pool.broadcast(|_| core_affinity::get_core_ids().expect("processors"))
        };
        assert!(of_threads(false).iter().all(|ids| ids.len() == all));
        let pinned = of_threads(true);
        assert!(pinned.iter().all(|ids| ids.len() == 1));
        let different = BTreeSet::from_iter(pinned.iter().map(|ids| ids[0].id));
        assert_eq!(different.len(), all);
        let error = pool(all + 1, true).expect_err("one too many");
        assert!(error.to_string().starts_with("threads: "), "{error}");
    }
}
