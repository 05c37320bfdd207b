//! Products timed by the processor: others' processes do not count, and what threads wait by spinning does.

use choir::rng::{Key, Stream};

/// Seconds of one measurement, at least.
const LEAST: f64 = 0.01;

/// y [rows, out] of x [rows, in].
pub type Product<'a> = Box<dyn Fn(&[f32], usize, &mut [f32]) + Sync + 'a>;

pub fn noise(count: usize) -> Vec<f32> {
    let mut stream = Stream::new(Key::derive(&[b"bench"]));
    (0..count).map(|_| stream.normal() as f32).collect()
}

/// Seconds that this process has taken, over all threads.
#[allow(unsafe_code, reason = "one call of the system")]
fn taken() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to `time` only.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Seconds that one piece of work takes.
fn seconds(mut work: impl FnMut()) -> f64 {
    let (start, mut count) = (taken(), 0u32);
    while count == 0 || taken() - start < LEAST {
        work();
        count += 1;
    }
    (taken() - start) / f64::from(count)
}

/// 10^9 multiply-adds, counted twice, to a second of each product of `rows` rows: medians of rounds in which all take turns.
pub fn rates(
    products: &[Product],
    (out, input, rows): (usize, usize, usize),
    rounds: usize,
) -> Vec<f64> {
    let (x, mut y) = (noise(rows * input), vec![0f32; rows * out]);
    let mut times = vec![Vec::new(); products.len()];
    for _ in 0..rounds {
        for (times, product) in times.iter_mut().zip(products) {
            times.push(seconds(|| product(&x, rows, &mut y)));
        }
    }
    let rate = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        2e-9 * (rows * out * input) as f64 / times[rounds / 2]
    };
    times.into_iter().map(rate).collect()
}
