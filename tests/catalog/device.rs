//! A catalog whose network lies on a device, emulated on the host.

#[path = "../gpu/emulated.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod emulated;

use super::*;
use choir::catalog::RemoveRequest;
use choir::model::Place as Lies;
use choir::model::gpu::GpuTarget;
use choir::ops::gpu::{Buffer, Dtype, GpuDevice};
use emulated::Emulated;
use std::sync::Arc;

fn on(gpu: &Arc<Emulated>) -> Lies {
    Lies::Device(GpuTarget::new(gpu.clone(), Dtype::F32))
}

/// Weights in f32 wherever they lie.
fn open(place: &TestDir, lies: Lies) -> Result<(Catalog, Generation), Error> {
    let config = CatalogConfig {
        place: lies,
        bank_form: Quantisation::F32,
        head_form: Some(Quantisation::F32),
        ..place.config()
    };
    Catalog::open(config, |_| {})
}

/// What is not where there is no compiler.
fn gpu(total: usize) -> Option<Arc<Emulated>> {
    Emulated::sized(0, 4, total)
}

#[test]
fn a_device_answers_as_the_host_does() {
    let Some(gpu) = gpu(1 << 30) else {
        return;
    };
    let (mut answers, mut parts) = (Vec::new(), Vec::new());
    for lies in [Lies::Host(Quantisation::F32), on(&gpu)] {
        let place = TestDir::new();
        let (catalog, engine) = serve(open(&place, lies).expect("open"));
        for (seed, name) in (1..).zip(["one", "two", "three"]) {
            add(&catalog, name, seed).expect("add");
        }
        answers.push(["one", "two", "three"].map(|name| answer(&engine, name)));
        parts.push(catalog.status().memory);
        assert_eq!(engine.status().kv_on_device, parts.len() == 2);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(parts[0].iter().all(|part| !part.on_device), "{parts:?}");
    let names: Vec<String> = parts[1].iter().map(ToString::to_string).collect();
    for expected in [
        "base",
        "base (device)",
        "bank body-0 (device)",
        "private tensors (device)",
        "tables (device)",
    ] {
        assert!(names.contains(&expected.to_owned()), "{names:?}");
    }
}

#[test]
fn a_change_that_finds_no_room_changes_nothing() {
    let Some(gpu) = gpu(1 << 30) else {
        return;
    };
    let place = TestDir::new();
    let (catalog, engine) = serve(open(&place, on(&gpu)).expect("open"));
    // The bank of one that goes is written again for the other.
    add(&catalog, "one", 1).expect("add");
    add(&catalog, "three", 3).expect("add");
    let answered = answer(&engine, "one");

    let (free, _) = gpu.memory().expect("memory");
    let taken =
        Buffer::new(&(gpu.clone() as Arc<dyn GpuDevice>), free - 1000).expect("there is room");
    let (list, stored, used) = (catalog.list(), files(&place.data()), gpu.allocated());
    let changes = [
        add(&catalog, "two", 2).map(|_| ()),
        catalog.remove("one", RemoveRequest::default()).map(|_| ()),
    ];
    for change in changes {
        match change {
            Err(Error::NoMemory {
                generation: 3,
                reason,
            }) => assert!(reason.contains("bytes left"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((catalog.list(), catalog.status().generation), (list, 2));
    assert_eq!(files(&place.data()), stored);
    assert_eq!(gpu.allocated(), used);
    assert_eq!(answer(&engine, "one"), answered);

    drop(taken);
    add(&catalog, "two", 2).expect("add");
    assert_eq!((names(&catalog).len(), catalog.status().generation), (3, 3));
    assert!(!answer(&engine, "two").is_empty());
}

#[test]
fn a_base_that_finds_no_room_is_told() {
    let Some(gpu) = gpu(1000) else { return };
    let refused = open(&TestDir::new(), on(&gpu))
        .map(|_| ())
        .expect_err("refused");
    assert!(matches!(refused, Error::Base { .. }), "{refused}");
    assert!(
        refused.to_string().contains("the device has no"),
        "{refused}"
    );
    assert_eq!(gpu.allocated(), 0);
}

#[test]
fn a_hundred_changes_leave_the_memory_as_it_was() {
    let Some(gpu) = gpu(1 << 30) else {
        return;
    };
    let place = TestDir::new();
    let (catalog, engine) = serve(open(&place, on(&gpu)).expect("open"));
    add(&catalog, "one", 1).expect("add");
    let (mut used, answered) = (Vec::new(), answer(&engine, "one"));
    for round in 0..50 {
        add(&catalog, "two", 2).expect("add");
        if round % 10 == 0 {
            assert!(!answer(&engine, "two").is_empty());
        }
        catalog
            .remove("two", RemoveRequest::default())
            .expect("remove");
        if round % 10 == 0 {
            assert_eq!(answer(&engine, "one"), answered);
        }
        // The last answer's sequence may still hold its generation for a moment.
        while engine.status().leases > 0 {
            std::thread::yield_now();
        }
        used.push(gpu.allocated());
    }
    assert_eq!(catalog.status().generation, 101);
    // Rounds that answered hold what the last evaluation worked in.
    assert!(
        used.iter().zip(used.iter().skip(10)).all(|(a, b)| a == b),
        "{used:?}"
    );
}
