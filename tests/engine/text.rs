//! Text is sent block by block and never taken back.

use choir::engine::{EngineConfig, Event, Reason, Request};

use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::*;
use super::requests::*;

/// The text pieces and the end of a request whose tokens are these.
fn pieces(script: &[u32], stop: &[&str]) -> (Vec<String>, Reason) {
    let engine = start(
        EngineConfig {
            threads: 1,
            ..config()
        },
        Fake::new(1).letters().script(&tokens("1234"), script),
    );
    let wanted = Request {
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        ..request("1234", script.len().max(1), 1)
    };
    let events = events(engine.submit(wanted).expect("submit"));
    let reason = outcome(&events).2.reason;
    let text = |event: &Event| match event {
        Event::Block { text, .. } => Some(text.clone()),
        _ => None,
    };
    (events.iter().filter_map(text).collect(), reason)
}

#[test]
fn characters_are_whole() {
    // Blocks of four bytes; the third character begins in one block and ends in the next.
    assert_eq!(
        pieces(&tokens("abc\u{20AC}defg"), &[]),
        (
            vec!["abc".into(), "\u{20AC}de".into(), "fg".into()],
            Reason::Length
        )
    );
    let text = "na\u{EF}ve \u{1F600}\u{1F600}!";
    assert_eq!(pieces(&tokens(text), &[]).0.concat(), text);
}

#[test]
fn bytes_that_are_no_character_do_not_stall_the_text() {
    let script = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, b'x', b'y'].map(u32::from);
    assert_eq!(
        pieces(&script, &[]).0.concat(),
        format!("{}xy", "\u{FFFD}".repeat(8))
    );
    assert_eq!(pieces(&script[..8], &[]).0.concat(), "\u{FFFD}".repeat(8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_bytes_are_the_text_that_they_are_together(
        parts in vec(prop_oneof![
            any::<char>().prop_map(|char| char.to_string().into_bytes()),
            vec(any::<u8>(), 1..5),
            (any::<char>(), 1..4usize).prop_map(|(char, bytes)| char.to_string().into_bytes().into_iter().take(bytes).collect()),
        ], 1..24),
    ) {
        let bytes = parts.concat();
        let script: Vec<u32> = bytes.iter().copied().map(u32::from).collect();
        prop_assert_eq!(pieces(&script, &[]).0.concat(), String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn stop_strings_end_the_text_wherever_blocks_end() {
    let script = tokens("one two three four");
    for stop in ["two", "t", "o three", "four", " two three f", "our"] {
        let (text, reason) = pieces(&script, &[stop]);
        let whole = "one two three four";
        assert_eq!(
            text.concat(),
            whole[..whole.find(stop).expect("stop")],
            "{stop:?}"
        );
        assert_eq!(reason, Reason::Stop);
    }
    assert_eq!(
        pieces(&script, &["three", "two"]).0.concat(),
        "one ",
        "the earliest one"
    );
}

#[test]
fn what_may_begin_a_stop_string_is_held_back_until_it_does_not() {
    // Blocks: "one ", "two ", "thre", "e".
    let (text, reason) = pieces(&tokens("one two three"), &["two four"]);
    assert_eq!(text, ["one ", "", "two thre", "e"]);
    assert_eq!(reason, Reason::Length);
    assert_eq!(
        pieces(&tokens("one two "), &["two four"]).0,
        ["one ", "two "],
        "all of it at the end"
    );
}

#[test]
fn the_end_of_text_and_stop_ids_end_it() {
    let script = [&tokens("abcde")[..], &[END_OF_TEXT], &tokens("fgh")[..]].concat();
    assert_eq!(
        pieces(&script, &[]),
        (vec!["abcd".into(), "e".into()], Reason::Stop)
    );

    let engine = start(config(), Fake::new(1).script(&[], &tokens("1234ab;cd")));
    let (text, tokens, summary) = run(
        &engine,
        Request {
            stop_ids: vec![u32::from(b';')],
            ..request("1234", 9, 1)
        },
    );
    assert_eq!((text.as_str(), tokens.len()), ("ab", 2));
    assert_eq!(
        (summary.reason, summary.generated_tokens),
        (Reason::Stop, 2)
    );
}
