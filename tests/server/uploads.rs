//! Additions by upload and by path, and the uploads that are refused.

use super::*;
use choir::pb::add_variant_header::Source;
use choir::pb::add_variant_request::Part;
use choir::pb::add_variant_response::Event as Added;
use std::time::Duration;

fn header(name: &str, source: Source) -> pb::AddVariantRequest {
    let header = pb::AddVariantHeader {
        name: name.into(),
        source: Some(source),
        ..pb::AddVariantHeader::default()
    };
    pb::AddVariantRequest {
        part: Some(Part::Header(header)),
    }
}

/// An addition with a file beside the checkpoint.
fn beside(source: Source, name: &str, bytes: &[u8]) -> pb::AddVariantRequest {
    let mut request = header("new", source);
    if let Some(Part::Header(header)) = &mut request.part {
        header.beside = Some(pb::Beside {
            files: [(name.to_owned(), bytes.to_vec())].into(),
            pieces_digest: None,
        });
    }
    request
}

fn chunk(bytes: &[u8]) -> pb::AddVariantRequest {
    pb::AddVariantRequest {
        part: Some(Part::Chunk(bytes.to_vec())),
    }
}

pub fn by_path(name: &str, path: &Path) -> pb::AddVariantRequest {
    header(name, Source::Path(path.to_str().expect("path").into()))
}

/// A header and the file in chunks.
pub fn upload(name: &str, file: &[u8]) -> Vec<pb::AddVariantRequest> {
    let header = header(name, Source::UploadBytes(file.len() as u64));
    std::iter::once(header)
        .chain(file.chunks(100_000).map(chunk))
        .collect()
}

/// Makes an addition and returns the variant, checking the progress before it.
pub async fn add(
    admin: &AdminClient<Channel>,
    requests: Vec<pb::AddVariantRequest>,
) -> Result<Vec<pb::Variant>, Status> {
    let stream = admin
        .clone()
        .add_variant(tokio_stream::iter(requests))
        .await?;
    let (mut stream, mut last, mut variants) = (stream.into_inner(), (0, 0.0), Vec::new());
    while let Some(response) = stream.message().await? {
        assert!(variants.is_empty(), "a message after the variant");
        match response.event.expect("an event") {
            Added::Progress(progress) => {
                assert!((0.0..=1.0).contains(&progress.fraction), "{progress:?}");
                assert!(
                    (progress.stage, progress.fraction) >= last || progress.stage > last.0,
                    "{progress:?}"
                );
                last = (progress.stage, progress.fraction);
            }
            Added::Variant(variant) => variants.push(variant),
            Added::DryRun(dry_run) => panic!("{dry_run:?}"),
        }
    }
    assert!(last.0 > 0, "no progress was told");
    Ok(variants)
}

#[tokio::test]
async fn an_upload_is_received_added_and_served() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    let mut requests = upload("uploaded", packed("kjv"));
    if let Some(Part::Header(header)) = &mut requests[0].part {
        header.seed = Some(99);
        header.scale = Some(0.5);
        header.expected_generation = Some(1);
        header.defaults = Some(pb::Sampling {
            temperature: Some(0.25),
            ..pb::Sampling::default()
        });
    }
    let variants = add(&admin, requests).await.expect("add");
    let [variant] = &variants[..] else {
        panic!("{variants:?}");
    };
    assert_eq!(
        (variant.name.as_str(), variant.seed, variant.scale),
        ("uploaded", 99, 0.5)
    );
    assert_eq!(
        variant
            .defaults
            .as_ref()
            .and_then(|defaults| defaults.temperature),
        Some(0.25)
    );
    let outcome = generate(&client, request("uploaded", 16, 1))
        .await
        .expect("finished");
    assert_eq!(outcome.started.generation, 2);

    // The same file again: its name is taken, with and without an upload.
    let taken = add(&admin, upload("uploaded", packed("kjv")))
        .await
        .expect_err("refused");
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
    let mut moved = upload("late", packed("kjv"));
    if let Some(Part::Header(header)) = &mut moved[0].part {
        header.expected_generation = Some(1);
    }
    let moved = add(&admin, moved).await.expect_err("refused");
    assert_eq!(moved.code(), Code::Aborted, "{moved}");
    server.stop().await;
}

#[tokio::test]
async fn uploads_that_do_not_keep_their_word_are_refused() {
    let (_, admin) = shared().await;
    let file = packed("kjv");
    let announced = |bytes: u64| header("new", Source::UploadBytes(bytes));
    let bad: Vec<(&str, Vec<pb::AddVariantRequest>, &str)> = vec![
        ("nothing", vec![], "header"),
        (
            "an empty message",
            vec![pb::AddVariantRequest::default()],
            "header",
        ),
        ("no header", vec![chunk(&file[..1000])], "header"),
        (
            "no source",
            vec![pb::AddVariantRequest {
                part: Some(Part::Header(pb::AddVariantHeader {
                    name: "new".into(),
                    ..pb::AddVariantHeader::default()
                })),
            }],
            "header.source",
        ),
        (
            "an empty path",
            vec![header("new", Source::Path(String::new()))],
            "header.source",
        ),
        (
            "files beside a path",
            vec![beside(
                Source::Path("/no/such/file".into()),
                "config.json",
                b"{}",
            )],
            "header.beside",
        ),
        (
            "another file beside it",
            vec![beside(Source::UploadBytes(1000), "passwords", b"")],
            "header.beside",
        ),
        ("of no bytes", vec![announced(0)], "header.upload_bytes"),
        (
            "too large",
            vec![announced((4 << 20) + 1)],
            "header.upload_bytes",
        ),
        (
            "far too large",
            vec![announced(u64::MAX)],
            "header.upload_bytes",
        ),
        (
            "too short",
            vec![announced(1000), chunk(&file[..999])],
            "chunk",
        ),
        ("an empty chunk", vec![announced(1000), chunk(&[])], "chunk"),
        ("without chunks", vec![announced(1000)], "chunk"),
        (
            "too long",
            vec![announced(1000), chunk(&file[..1000]), chunk(&file[..1])],
            "chunk",
        ),
        (
            "a chunk too long",
            vec![announced(2 << 20), chunk(&vec![0; (1 << 20) + 1])],
            "chunk",
        ),
        (
            "two headers",
            vec![announced(1000), announced(1000)],
            "chunk",
        ),
        (
            "no checkpoint",
            vec![announced(1000), chunk(&[7; 1000])],
            "chunk",
        ),
        (
            "a truncated one",
            vec![announced(1000), chunk(&file[..1000])],
            "chunk",
        ),
        (
            "no such file",
            vec![by_path("new", Path::new("/no/such/file"))],
            "header.path",
        ),
        (
            "a directory",
            vec![by_path("new", Path::new("/"))],
            "header.path",
        ),
    ];
    for (what, requests, field) in bad {
        let status = add(&admin, requests).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        assert!(
            status.message().starts_with(&format!("{field}: ")),
            "{what}: {status}"
        );
    }
    // Their room is free again: the largest upload still fits.
    let largest = vec![announced(4 << 20), chunk(&[0; 10])];
    let status = add(&admin, largest).await.expect_err("too short");
    assert!(status.message().contains("chunk"), "{status}");
}

#[tokio::test]
async fn two_uploads_share_the_room_and_the_second_is_told_to_come_back() {
    let (_, admin) = shared().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let first = header("first", Source::UploadBytes(3 << 20));
    for request in [first, chunk(&[0; 10])] {
        sender.send(request).await.expect("open");
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut events = admin
        .clone()
        .add_variant(requests)
        .await
        .expect("stream")
        .into_inner();
    let progress = events.message().await.expect("progress").expect("progress");
    assert!(
        matches!(progress.event, Some(Added::Progress(_))),
        "{progress:?}"
    );

    let second = vec![header("second", Source::UploadBytes(2 << 20))];
    let status = add(&admin, second.clone()).await.expect_err("no room");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.metadata().contains_key("retry-after-ms"),
        "{status:?}"
    );
    drop(sender); // the first gives up
    assert!(events.message().await.is_err());
    // Its room is given back before its end is told.
    let status = add(&admin, second).await.expect_err("too short");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn a_coded_file_is_taken_as_it_is_unless_a_bit_was_turned() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    let file = include_bytes!("../../models/variants/reverse.safetensors");
    let before = status(&admin).await;
    for at in [file.len() / 2, file.len() - 1] {
        let mut turned = file.to_vec();
        turned[at] ^= 8;
        let refused = add(&admin, upload("coded", &turned)).await;
        assert_eq!(refused.expect_err("refused").code(), Code::DataLoss);
    }
    assert_eq!(status(&admin).await.generation, before.generation);
    let variants = add(&admin, upload("coded", file)).await.expect("added");
    assert_eq!(variants[0].keep(), pb::Keep::Coded);
    assert_eq!(variants[0].bytes, file.len() as u64);
    let request = pb::GenerateRequest {
        prompt: "reverse s t o n e =".into(),
        stop: vec!["\n".into()],
        ..request("coded", 16, 1)
    };
    let outcome = generate(&client, request).await.expect("finished");
    assert_eq!(outcome.text().trim(), "e n o t s");
    server.stop().await;
}

/// It is told while the client still has most of it to send.
#[tokio::test]
async fn an_upload_that_begins_no_checkpoint_is_refused_before_the_rest_has_come() {
    let server = Server::start(engine_config()).await;
    let (_, admin) = server.clients().await;
    let long = 1_u64 << 40; // a header of so many bytes, which is none
    for (begins, said) in [
        (&b"GGUF".repeat(200)[..], "GGUF"),
        (&[7; 600], "header"),
        (&[&long.to_le_bytes()[..], b"{", &[b' '; 600]].concat(), ""),
    ] {
        for pieces in [600, 100] {
            let (sender, receiver) = tokio::sync::mpsc::channel(16);
            let announced = header("new", Source::UploadBytes(3 << 20));
            sender.send(announced).await.expect("open");
            for piece in begins.chunks(pieces) {
                sender.send(chunk(piece)).await.expect("room");
            }
            let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
            let events = admin.clone().add_variant(requests).await.expect("stream");
            let mut events = events.into_inner();
            let status = loop {
                match events.message().await {
                    Ok(event) => assert!(event.is_some(), "an end without a word"),
                    Err(status) => break status,
                }
            };
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            let message = status.message();
            assert!(
                message.starts_with("chunk: ") && message.contains(said),
                "{status}"
            );
            drop(sender); // open until here
        }
    }
    server.stop().await;
}

/// Every chunk comes at once, and nothing comes of them.
#[tokio::test]
async fn an_upload_that_is_too_slow_over_all_is_ended() {
    let mut settings = settings();
    settings.limits.patience = Duration::from_millis(300);
    let server = Server::start_within(engine_config(), settings, |generation| generation).await;
    let (_, admin) = server.clients().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let announced = header("new", Source::UploadBytes(3 << 20));
    sender.send(announced).await.expect("open");
    // What begins like a checkpoint: a header of 4 KiB, as far as one can tell.
    let beginning = [&4096_u64.to_le_bytes()[..], b"{"].concat();
    let drips = async {
        let mut bytes = beginning.into_iter().chain(std::iter::repeat(b' '));
        while let Some(byte) = bytes.next()
            && sender.send(chunk(&[byte])).await.is_ok()
        {
            tokio::task::yield_now().await;
        }
    };
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let told = async {
        let events = admin.clone().add_variant(requests).await.expect("stream");
        let mut events = events.into_inner();
        loop {
            match events.message().await {
                Ok(event) => assert!(event.is_some(), "an end without a word"),
                Err(status) => return status,
            }
        }
    };
    let ((), status) = tokio::join!(drips, told);
    // What goes on sending may find its stream closed before it has read why.
    let told = status.code() == Code::DeadlineExceeded && status.message().contains("too slow");
    let closed = status.code() == Code::Unknown && status.message().contains("protocol error");
    assert!(told || closed, "{status}");
    server.stop().await;
}
