use super::Cuda;
use crate::gpu::{Buffer, Dtype, Fault, Gemm, GpuDevice, Launch, Result};
use half::bf16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn gpu() -> Arc<dyn GpuDevice> {
    Arc::new(Cuda::open(0).expect("a device"))
}

/// Numbers of few bits, so that sums of products are exact.
fn numbers(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
}

#[test]
fn a_device_that_is_not_there_is_a_fault() {
    match Cuda::open(usize::MAX).expect_err("no device") {
        Fault::NoDevice { ordinal, detail } => {
            assert_eq!(ordinal, usize::MAX);
            assert!(!detail.is_empty());
        }
        Fault::DriverTooOld { needed, .. } => assert_eq!(needed, "13.0"),
        fault => panic!("{fault}"),
    }
}

#[test]
#[ignore = "needs a device"]
fn uploads_are_copies() -> Result<()> {
    let gpu = gpu();
    println!("{gpu:?} {} {:?}", gpu.processors(), gpu.memory()?);
    let numbers: Vec<u32> = (0..7_000_001).collect();
    let large = Buffer::from(&gpu, &numbers)?;
    let small = Buffer::new(&gpu, 4 * 5_000)?;
    let mut one = [0u32; 1];
    for i in 0..5_000 {
        one[0] = i; // the one before may still be on its way
        small.write(4 * i as usize, &one)?;
    }
    assert_eq!(large.read::<u32>(0, numbers.len())?, numbers);
    assert_eq!(small.read::<u32>(0, 5_000)?, numbers[..5_000]);
    gpu.copy(small.address() + 8, large.address() + 400, 12)?;
    gpu.clear(small.address(), 4)?;
    assert_eq!(small.read::<u32>(0, 6)?, [0, 1, 100, 101, 102, 5]);
    let read = std::thread::scope(|scope| scope.spawn(|| large.read::<u32>(4, 2)).join());
    assert_eq!(read.expect("the other thread")?, [1, 2]);
    Ok(())
}

#[test]
#[ignore = "needs a device"]
fn products_are_those_of_the_host() -> Result<()> {
    let gpu = gpu();
    for (rows, out, input) in [
        (1, 1, 1),
        (3, 7, 5),
        (64, 96, 40),
        (5, 129, 1000),
        (2, 3, 0),
    ] {
        let (x, w) = (numbers(rows * input, 5), numbers(out * input, 7));
        let dot = |row: usize, at: usize| {
            (0..input)
                .map(|i| x[row * input + i] * w[at * input + i])
                .sum::<f32>()
        };
        let expected: Vec<f32> = (0..rows * out).map(|at| dot(at / out, at % out)).collect();
        for (dtype, gives) in [
            (Dtype::F32, Dtype::F32),
            (Dtype::Bf16, Dtype::F32),
            (Dtype::Bf16, Dtype::Bf16),
        ] {
            let buffer = |numbers: &[f32]| match dtype {
                Dtype::F32 => Buffer::from(&gpu, numbers),
                Dtype::Bf16 => Buffer::from(
                    &gpu,
                    &numbers
                        .iter()
                        .copied()
                        .map(bf16::from_f32)
                        .collect::<Vec<_>>(),
                ),
            };
            let (x, w, y) = (
                buffer(&x)?,
                buffer(&w)?,
                Buffer::from(&gpu, &vec![1f32; rows * out])?,
            );
            gpu.gemm(Gemm {
                x: x.address(),
                w: w.address(),
                y: y.address(),
                rows,
                out,
                input,
                pitch: out,
                dtype,
                gives,
            })?;
            let found: Vec<f32> = match gives {
                Dtype::F32 => y.read(0, rows * out)?,
                Dtype::Bf16 => y
                    .read(0, rows * out)?
                    .into_iter()
                    .map(bf16::to_f32)
                    .collect(),
            };
            let rounded = |&x: &f32| match gives {
                Dtype::F32 => x,
                Dtype::Bf16 => bf16::from_f32(x).to_f32(),
            };
            let expected: Vec<f32> = expected.iter().map(rounded).collect();
            assert_eq!(found, expected, "{rows} {out} {input} {dtype:?} {gives:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs a device"]
fn a_graph_does_again_what_was_recorded() -> Result<()> {
    let gpu = gpu();
    let (x, w, y) = (numbers(6, 5), numbers(6, 7), Buffer::zeros(&gpu, 16)?);
    let (xs, ws) = (Buffer::from(&gpu, &x)?, Buffer::from(&gpu, &w)?);
    let gemm = Gemm {
        x: xs.address(),
        w: ws.address(),
        y: y.address(),
        rows: 2,
        out: 2,
        input: 3,
        pitch: 2,
        dtype: Dtype::F32,
        gives: Dtype::F32,
    };
    let mut spare = Some(Buffer::zeros(&gpu, 1 << 20)?);
    let graph = gpu.record(&mut || {
        spare = None; // given back once it is recorded
        assert!(matches!(gpu.allocate(16), Err(Fault::Failed { .. })));
        gpu.gemm(gemm)?;
        gpu.clear(y.address() + 4, 4)
    })?;
    assert_eq!(y.read::<f32>(0, 4)?, [0.0; 4], "recording launches nothing");
    let graph = graph.expect("a graph");
    for scale in [1.0, 2.0, 3.0] {
        xs.write(0, &x.iter().map(|x| x * scale).collect::<Vec<_>>())?;
        graph.replay()?;
        let dot = |row: usize, at: usize| {
            (0..3)
                .map(|i| scale * x[3 * row + i] * w[3 * at + i])
                .sum::<f32>()
        };
        assert_eq!(y.read::<f32>(0, 4)?, [dot(0, 0), 0.0, dot(1, 0), dot(1, 1)]);
    }

    let refused = gpu.record(&mut || {
        gpu.clear(y.address(), 16)?;
        Err(Fault::NoKernel {
            name: "x".to_owned(),
        })
    });
    assert!(matches!(refused, Err(Fault::NoKernel { .. })));
    assert!(gpu.time(&mut || gpu.clear(y.address(), 16))? > 0.0);
    assert_eq!(y.read::<f32>(0, 4)?, [0.0; 4]);
    drop((xs, ws, y));
    drop(gpu);
    drop(graph); // last, and the gpu with it
    Ok(())
}

#[test]
#[ignore = "needs a device"]
fn faults_leave_the_machine_usable() -> Result<()> {
    let gpu = gpu();
    let (free, total) = gpu.memory()?;
    assert!(free <= total);
    let bytes = 2 * total;
    assert_eq!(gpu.allocate(bytes), Err(Fault::OutOfMemory { bytes }));
    let launch = Launch {
        kernel: "no such kernel",
        grid: [1; 3],
        block: 32,
        shared: 0,
        args: &[],
    };
    assert!(matches!(gpu.launch(launch), Err(Fault::NoKernel { .. })));
    let half = Buffer::zeros(&gpu, free / 2)?;
    assert!(gpu.memory()?.0 <= free - half.bytes());
    drop(half);
    gpu.synchronise()?;
    assert!(gpu.memory()?.0 > free / 4 * 3);
    Ok(())
}

#[test]
#[ignore = "needs a device"]
fn calls_of_other_threads_stay_out_of_a_recording() -> Result<()> {
    let gpu = gpu();
    let y = Buffer::zeros(&gpu, 16)?;
    let numbers: Vec<u32> = (0..3_000_000).collect();
    let over = AtomicBool::new(false);
    let copies = || -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            let copy = Buffer::from(&gpu, &numbers)?;
            assert_eq!(copy.read::<u32>(0, numbers.len())?, numbers);
        }
        Ok(())
    };
    let recordings = || -> Result<()> {
        for _ in 0..200 {
            let graph = gpu.record(&mut || gpu.clear(y.address(), 4))?;
            y.write(0, &[1u32; 4])?;
            graph.expect("a graph").replay()?;
            assert_eq!(y.read::<u32>(0, 4)?, [0, 1, 1, 1]);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(copies);
        let recorded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(recordings));
        over.store(true, Ordering::Relaxed);
        other.join().expect("the other thread")?;
        recorded.expect("this thread")
    })
}
