//! Replacements, dry runs, and how a variant is kept, over the wire.

use super::uploads::{add, upload};
use super::*;
use choir::pb::add_variant_request::Part;
use choir::pb::add_variant_response::Event as Added;
use choir::superposition::CodedDelta;

fn with(
    mut requests: Vec<pb::AddVariantRequest>,
    change: impl FnOnce(&mut pb::AddVariantHeader),
) -> Vec<pb::AddVariantRequest> {
    if let Some(Part::Header(header)) = &mut requests[0].part {
        change(header);
    }
    requests
}

async fn variant(admin: &AdminClient<Channel>, name: &str) -> pb::Variant {
    let request = pb::GetVariantRequest { name: name.into() };
    let got = admin.clone().get_variant(request).await.expect("get");
    got.into_inner().variant.expect("variant")
}

#[tokio::test]
async fn a_variant_is_replaced_in_one_step_where_the_expected_delta_is_there() {
    let server = Server::start(engine_config()).await;
    let (client, admin) = server.clients().await;
    // A coded file is kept as it is, whatever the store's default.
    let other = add(&admin, upload("other", shipped("sort"))).await;
    let (kjv, sort) = (
        variant(&admin, "kjv").await,
        other.expect("added").remove(0),
    );
    let replacement = |digest: &str| {
        with(upload("kjv", shipped("sort")), |header| {
            header.replaces = Some(digest.to_owned());
        })
    };
    let before = status(&admin).await;
    for (digest, code) in [
        (sort.delta_digest.as_str(), Code::Aborted),
        ("abc", Code::InvalidArgument),
        (&kjv.delta_digest.to_uppercase(), Code::InvalidArgument),
    ] {
        let refused = add(&admin, replacement(digest)).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{digest}: {refused}");
    }
    let nobody = with(upload("nobody", shipped("sort")), |header| {
        header.replaces = Some(kjv.delta_digest.clone());
    });
    let refused = add(&admin, nobody).await.expect_err("refused");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert_eq!(status(&admin).await.generation, before.generation);

    let wanted = generate(&client, request("other", 16, 3))
        .await
        .expect("finished");
    let replaced = add(&admin, replacement(&kjv.delta_digest))
        .await
        .expect("replace");
    assert_eq!(replaced[0].delta_digest, sort.delta_digest);
    let now = status(&admin).await;
    assert_eq!(
        (now.generation, now.variants),
        (before.generation + 1, before.variants)
    );
    let outcome = generate(&client, request("kjv", 16, 3))
        .await
        .expect("finished");
    assert_eq!(outcome.started.generation, now.generation);
    assert_eq!(replaced[0].keep(), pb::Keep::Coded);
    assert_eq!(outcome.tokens(), wanted.tokens());
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_says_what_would_come_and_changes_nothing() {
    let server = Server::start(engine_config()).await;
    let (_, admin) = server.clients().await;
    let before = status(&admin).await;
    let requests = with(upload("new", shipped("kjv")), |header| {
        header.dry_run = true
    });
    let stream = admin
        .clone()
        .add_variant(tokio_stream::iter(requests))
        .await;
    let (mut stream, mut last) = (stream.expect("stream").into_inner(), None);
    while let Some(response) = stream.message().await.expect("not refused") {
        last = response.event;
    }
    let Some(Added::DryRun(dry_run)) = last else {
        panic!("{last:?}");
    };
    let would = dry_run.variant.clone().expect("variant");
    assert_eq!(would.name, "new");
    let file = CodedDelta::from_bytes(shipped("kjv")).expect("a coded delta");
    assert_eq!(would.delta_digest, file.about.source.to_string());
    assert!(
        dry_run.disk_bytes > 0 && dry_run.memory_bytes > 0,
        "{dry_run:?}"
    );
    assert!(would.bytes > 0 && would.relative_error >= 0.0, "{would:?}");
    let after = status(&admin).await;
    assert_eq!(
        (after.generation, after.variants, after.memory),
        (before.generation, before.variants, before.memory)
    );
    server.stop().await;
}

#[tokio::test]
async fn an_addition_asks_for_nothing_that_is_not() {
    let (_, admin) = shared().await;
    type Change = fn(&mut pb::AddVariantHeader);
    let text = |header: &mut pb::AddVariantHeader| {
        header.check_text = Some("x".repeat((1 << 16) + 1));
    };
    let changes: [(&str, Change); 6] = [
        ("keep", |header| header.keep = 9),
        ("min_share", |header| header.min_share = Some(1.5)),
        ("min_share", |header| header.min_share = Some(f32::NAN)),
        ("min_share", |header| header.min_share = Some(0.5)), // without anything to hold it against
        ("check_text", |header| header.check_text = Some(" ".into())),
        ("check_text", text),
    ];
    for (field, change) in changes {
        let requests = with(upload("new", packed("kjv")), change);
        let refused = add(&admin, requests).await.expect_err(field);
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused}");
        let named = format!("header.{field}: ");
        assert!(refused.message().starts_with(&named), "{refused}");
    }
}
