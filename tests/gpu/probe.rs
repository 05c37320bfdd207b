//! The emulation itself: what threads share, when copies land, and that mistakes are seen.

use std::sync::Arc;

use choir::ops::gpu::{Buffer, Fault, GpuDevice};
use choir::ops::math;
use half::{bf16, f16};

use crate::emulated::Emulated;
use crate::rig::{Rig, args, normals, stream};

/// in, out, count.
fn pair(input: &Buffer, out: &Buffer, count: u64) -> Vec<u8> {
    args![input.address(), out.address(), count]
}

#[test]
fn memory_comes_back_and_is_bounded() {
    let Some(emulated) = Emulated::sized(0, 2, 1000) else {
        return;
    };
    let gpu: Arc<dyn GpuDevice> = emulated.clone();
    let buffer = Buffer::from(&gpu, &[1u32, 2, 3]).unwrap();
    assert_eq!(emulated.allocated(), 12);
    assert_eq!(gpu.memory(), Ok((988, 1000)));
    let refusal = Buffer::new(&gpu, 989).unwrap_err();
    assert_eq!(refusal, Fault::OutOfMemory { bytes: 989 });
    let fresh = Buffer::new(&gpu, 8).unwrap();
    assert!(fresh.read::<f32>(0, 2).unwrap().iter().all(|x| x.is_nan()));
    assert!(gpu.upload(buffer.address() + 8, &[0; 5]).is_err());
    drop((buffer, fresh));
    assert_eq!(emulated.allocated(), 0);
}

#[test]
fn a_barrier_is_one_for_every_order_and_a_missing_one_shows() {
    let mut wrong = 0;
    for rig in Rig::orders() {
        for count in [1u32, 31, 100, 1000, 1024] {
            let numbers: Vec<u32> = (0..count * 3).collect();
            let input = rig.buffer(&numbers);
            let expected: Vec<u32> = (0..3)
                .flat_map(|i| (i * count..(i + 1) * count).rev())
                .collect();
            for skip in [0u32, 1] {
                let out = rig.empty(count as usize * 12);
                let args = args![input.address(), out.address(), count, skip];
                rig.launch(
                    "probe_reverse",
                    3,
                    (count.next_multiple_of(32), count * 4),
                    &args,
                )
                .unwrap();
                let right = out.read::<u32>(0, expected.len()).unwrap() == expected;
                assert!(right || skip == 1, "{count} threads");
                wrong += usize::from(!right && count > 1);
            }
        }
    }
    assert!(wrong == 4 * Rig::orders().count(), "{wrong}");
}

#[test]
fn shared_memory_is_poisoned_for_every_block() {
    for rig in Rig::orders() {
        let out = Buffer::zeros(&rig.gpu, 3 * 128 * 4).unwrap();
        let args = args![0u64, out.address(), 0u64];
        rig.launch("probe_stale", 3, (32, 128), &args).unwrap();
        let out = out.read::<u32>(0, 3 * 128).unwrap();
        for block in out.chunks(128) {
            // The second kind finds what the first has left in dynamic memory, and none of its own.
            assert!(block[..96].iter().all(|&x| x == u32::MAX));
            assert!(block[96..].iter().all(|&x| x == 1f32.to_bits()));
        }
    }
}

#[test]
fn lanes_see_each_other() {
    let mut random = stream("lanes");
    for rig in Rig::orders() {
        for block in [32, 96, 1024] {
            let count = 2 * block as usize;
            let numbers: Vec<u32> = (0..count).map(|_| random.next_u64() as u32).collect();
            let input = rig.buffer(&numbers);
            let out = rig.empty(count * 24);
            let args = pair(&input, &out, 0);
            rig.launch("probe_lanes", 2, (block, 0), &args).unwrap();
            let out = out.read::<u32>(0, count * 6).unwrap();
            for (i, lanes) in out.chunks(6).enumerate() {
                let warp = &numbers[i / 32 * 32..][..32];
                let odd = warp
                    .iter()
                    .enumerate()
                    .fold(0, |bits, (lane, x)| bits | (x % 2) << lane);
                let sum = warp.iter().map(|x| x % 1024).sum::<u32>();
                let mirrored = warp[31 - i % 32];
                assert_eq!(
                    lanes,
                    [numbers[i ^ 1], warp[5], odd, sum, mirrored, mirrored],
                    "lane {i}"
                );
            }
        }
    }
}

#[test]
fn atomics_add_over_blocks() {
    let numbers: Vec<u32> = (0..5000).map(|i| i * 800_000).collect();
    for rig in Rig::orders() {
        let input = rig.buffer(&numbers);
        let out = Buffer::zeros(&rig.gpu, 24).unwrap();
        let args = pair(&input, &out, numbers.len() as u64);
        rig.launch("probe_sum", 7, (128, 0), &args).unwrap();
        let sum: u64 = numbers.iter().map(|&x| u64::from(x)).sum();
        assert_eq!(out.read::<u64>(0, 3).unwrap(), [sum, 7, 7]);
    }
}

#[test]
fn fragments_multiply_as_matrices() {
    let mut random = stream("fragments");
    for rig in Rig::orders() {
        let warps = 4;
        let numbers: Vec<bf16> = normals(&mut random, warps * 384);
        let input = rig.buffer(&numbers);
        let out = rig.empty(warps * 128 * 4);
        let args = pair(&input, &out, 0);
        rig.launch("probe_product", 1, (128, 0), &args).unwrap();
        let out = out.read::<f32>(0, warps * 128).unwrap();
        for (i, &found) in out.iter().enumerate() {
            let (a, b) = numbers[i / 128 * 384..].split_at(256);
            let (row, column) = (i % 128 / 8, i % 8);
            let terms = (0..16).map(|k| a[row * 16 + k].to_f64() * b[k * 8 + column].to_f64());
            let expected = 2.0 * terms.sum::<f64>();
            assert!(
                (f64::from(found) - expected).abs() < 1e-5,
                "{found}, not {expected}, at {i}"
            );
        }
    }
}

#[test]
fn copies_land_at_the_wait_that_guarantees_them() {
    for rig in Rig::orders() {
        let numbers: Vec<u32> = (0..3 * 128).collect();
        let input = rig.buffer(&numbers);
        let out = rig.empty(2 * 3 * 512);
        let args = pair(&input, &out, 0);
        rig.launch("probe_copies", 1, (32, 3 * 512), &args).unwrap();
        let out = out.read::<u32>(0, 6 * 128).unwrap();
        assert_eq!(out[..256], numbers[..256]);
        assert_eq!(out[256..384], [u32::MAX; 128]);
        assert_eq!(out[384..], numbers);
    }
}

#[test]
fn what_one_warp_copies_is_handed_to_others() {
    for rig in Rig::orders() {
        for count in [1usize, 2, 5] {
            let numbers = words(64 * count);
            let (input, out) = (rig.buffer(&numbers), rig.empty(256));
            let args = pair(&input, &out, count as u64);
            rig.launch("probe_handed", 1, (96, 3 * 256 + 32), &args)
                .unwrap();
            let sum = |at: usize| {
                numbers
                    .chunks(64)
                    .fold(0u32, |sum, piece| sum.wrapping_add(piece[at]))
            };
            let expected: Vec<u32> = (0..64)
                .map(|at| sum(63 - at).wrapping_add(sum(at)))
                .collect();
            assert_eq!(out.read::<u32>(0, 64).unwrap(), expected);
        }
    }
}

#[test]
fn mistakes_are_told() {
    for rig in Rig::orders() {
        let out = Buffer::zeros(&rig.gpu, 64).unwrap();
        let mut expected = vec![0; 64];
        let run = |mistake: u64, shared| {
            let args = args![0u64, out.address(), mistake];
            rig.launch("probe_mistake", 2, (64, shared), &args)
        };
        for (mistake, words) in [
            "lanes ffff0000 wait at a shuffle, 0000ffff at the block's barrier, 00000000 returned",
            "are at different places",
            "lanes fffffff7 wait at a shuffle, 00000000 at the block's barrier, 00000008 returned",
            "probe_mistake wrote after a buffer of 64 bytes, at byte 64 of it",
            "probe_mistake wrote before a buffer of 64 bytes, at byte -64 of it",
            "not a multiple of 16",
            "byte 64 of 64 of dynamic shared memory was written",
        ]
        .into_iter()
        .enumerate()
        {
            match run(mistake as u64, 64) {
                Err(Fault::Failed { detail, .. }) => {
                    assert!(
                        detail.contains("probe_mistake") && detail.contains(words),
                        "{detail}"
                    )
                }
                other => panic!("mistake {mistake} gives {other:?}"),
            }
            assert_eq!(
                out.read::<u8>(0, 64).unwrap(),
                expected,
                "mistake {mistake}"
            );
        }
        run(6, 128).unwrap();
        run(7, 0).unwrap();
        expected[32..].fill(7);
        assert_eq!(out.read::<u8>(0, 64).unwrap(), expected);
        for (mistake, words) in [
            (8, "waits in vain"),
            (9, "at a barrier to which not all come"),
        ] {
            let told = run(mistake, 64).unwrap_err().to_string();
            assert!(told.contains(words), "{told}");
        }
        let nowhere = run(10, 0).unwrap_err().to_string();
        assert!(
            nowhere.contains("probe_mistake") && nowhere.contains(" touches 0x"),
            "{nowhere}"
        );
        assert!(run(7, 228 * 1024).is_err());
        let unknown = Fault::NoKernel {
            name: "probe_nothing".into(),
        };
        assert_eq!(rig.launch("probe_nothing", 1, (32, 0), &[]), Err(unknown));
        assert!(rig.launch("probe_mistake", 1, (65, 0), &[0; 24]).is_err());
        assert!(rig.launch("probe_mistake", 1, (96, 0), &[0; 24]).is_err());
        assert!(rig.launch("probe_mistake", 1, (32, 0), &[0; 16]).is_err());
    }
}

/// A function of probe.cu, of up to three numbers.
fn map(function: u32, operands: [&[u32]; 3]) -> Option<Vec<u32>> {
    let rig = Rig::new(0)?;
    let count = operands[0].len();
    let buffers = operands.map(|numbers| rig.buffer(numbers));
    let out = rig.empty(count * 4);
    let [x, y, z] = buffers.each_ref().map(Buffer::address);
    let args = args![x, y, z, out.address(), count as u32, function];
    rig.launch("probe_map", count.div_ceil(256) as u32, (256, 0), &args)
        .unwrap();
    Some(out.read(0, count).unwrap())
}

/// Words of all kinds: every exponent, few and many bits.
fn words(count: usize) -> Vec<u32> {
    let mut random = stream("words");
    let mut word = || {
        let word = random.next_u64();
        (word as u32) & u32::MAX << ((word >> 32) % 24)
    };
    (0..count).map(|_| word()).collect()
}

#[test]
fn exp_gelu_and_roots_are_those_of_the_host_to_the_bit() {
    let finite = |mut words: Vec<u32>| {
        words.retain(|&x| !f32::from_bits(x).is_nan());
        words.extend((-100_000..100_000).map(|i| (i as f32 * 1e-3).to_bits()));
        words
    };
    let words = finite(words(300_000));
    for (function, of) in [math::exp, math::gelu, f32::sqrt]
        .into_iter()
        .zip([0, 1, 5])
        .map(|(f, i)| (i, f))
    {
        let Some(found) = map(function, [&words; 3]) else {
            return;
        };
        for (&x, &y) in words.iter().zip(&found) {
            let (x, y) = (f32::from_bits(x), f32::from_bits(y));
            let expected: f32 = of(x);
            let same = y.to_bits() == expected.to_bits() || y.is_nan() && expected.is_nan();
            assert!(
                same,
                "function {function} of {x} is {y:e}, not {expected:e}"
            );
        }
    }
}

#[test]
fn halves_widen() {
    let words: Vec<u32> = (0..1 << 16).collect();
    let Some(found) = map(2, [&words; 3]) else {
        return;
    };
    for (&x, &y) in words.iter().zip(&found) {
        let expected = f16::from_bits(x as u16).to_f32();
        assert!(
            y == expected.to_bits() || f32::from_bits(y).is_nan() && expected.is_nan(),
            "{x:#x}"
        );
    }
}

#[test]
fn bf16_rounds_to_even() {
    let mut low = words(200_000);
    low.extend(
        (0..1u32 << 16).flat_map(|top| [0x7fff, 0x8000, 0x8001].map(|rest| top << 16 | rest)),
    );
    let high: Vec<u32> = low.iter().rev().copied().collect();
    let Some(found) = map(3, [&low, &high, &high]) else {
        return;
    };
    let same = |found: u32, x: u32| {
        let (found, expected) = (
            bf16::from_bits(found as u16),
            bf16::from_f32(f32::from_bits(x)),
        );
        found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
    };
    for ((&low, &high), &both) in low.iter().zip(&high).zip(&found) {
        assert!(
            same(both & 0xffff, low) && same(both >> 16, high),
            "{low:#x} {high:#x}"
        );
    }
}

/// Against the sum as an integer in units of 2^-60, rounded to eight bits.
#[test]
fn bf16_products_and_sums_round_once() {
    let mut random = stream("fused");
    let mut number = |lowest: i32, exponents: usize| {
        let size = (128 + random.below(128)) as f64
            * f64::from(lowest + random.below(exponents) as i32).exp2();
        bf16::from_f64(if random.below(2) == 0 { size } else { -size })
    };
    let numbers: Vec<[bf16; 3]> = (0..200_000)
        .map(|i| {
            [
                number(-14, 14),
                number(-14, 14),
                number(if i % 2 == 0 { -14 } else { -24 }, 40),
            ]
        })
        .collect();
    let operand = |i: usize| -> Vec<u32> {
        numbers
            .chunks(2)
            .map(|x| u32::from(x[0][i].to_bits()) | u32::from(x[1][i].to_bits()) << 16)
            .collect()
    };
    let Some(found) = map(4, [&operand(0), &operand(1), &operand(2)]) else {
        return;
    };
    let units = |x: bf16| (x.to_f64() * 60f64.exp2()) as i128;
    for (i, &[a, b, c]) in numbers.iter().enumerate() {
        let sum = (a.to_f64() * b.to_f64() * 60f64.exp2()) as i128 + units(c);
        let size = sum.unsigned_abs();
        let shift = (128 - size.leading_zeros()).saturating_sub(8);
        let (whole, rest, half) = (
            size >> shift,
            size & ((1 << shift) - 1),
            (1u128 << shift) >> 1,
        );
        let rounded = whole + u128::from(rest > half || rest == half && half > 0 && whole % 2 == 1);
        let expected = (rounded << shift) as f64 * (-60f64).exp2() * sum.signum() as f64;
        let found = bf16::from_bits((found[i / 2] >> (i % 2 * 16)) as u16).to_f64();
        assert_eq!(found, expected, "{a} * {b} + {c}");
    }
}

#[test]
fn a_panic_while_recording_leaves_nothing_recording() {
    for rig in Rig::all() {
        let buffer = rig.empty(16);
        let mut panics = || panic!("within a recording");
        let record = || rig.gpu.record(&mut panics);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(record));
        assert!(caught.is_err());
        // Neither waits for a replay, nor is refused.
        buffer.write(0, &[7u8; 16]).unwrap();
        rig.gpu.clear(buffer.address(), 8).unwrap();
        let expected = [[0u8; 8], [7; 8]].concat();
        assert_eq!(buffer.read::<u8>(0, 16).unwrap(), expected);
        let mut clear = || rig.gpu.clear(buffer.address() + 8, 8);
        if let Some(graph) = rig.gpu.record(&mut clear).unwrap() {
            graph.replay().unwrap();
        }
        assert_eq!(buffer.read::<u8>(0, 16).unwrap(), [0; 16]);
    }
}
