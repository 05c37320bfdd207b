//! Inputs made of others.

use choir::rng::Stream;

/// What parsers look for.
const WORDS: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b",",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551615",
    b"9007199254740993",
    b"\\u0000",
    b"\xff",
    b"\n",
    b"{{",
    b"{%",
    b"%}",
    b"..",
    b"=",
    b"-",
    b"0.5",
];
const NUMBERS: [u64; 8] = [0, 1, 127, 255, 65_535, 1 << 31, u32::MAX as u64, u64::MAX];
/// Bytes of an input at most.
const LONGEST: usize = 1 << 16;

/// One of the corpus after a few changes.
pub fn of(corpus: &[Vec<u8>], chance: &mut Stream) -> Vec<u8> {
    let mut input = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(6) {
        change(&mut input, corpus, chance);
    }
    input.truncate(LONGEST);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Stream) {
    // Headers stand first, and matter most.
    let within = match (input.len(), chance.below(2)) {
        (0, _) => 1,
        (length, 0) => length.min(256),
        (length, _) => length,
    };
    let at = chance.below(within).min(input.len());
    let length = 1 + chance.below(16);
    let end = (at + length).min(input.len());
    match chance.below(9) {
        0 if at < input.len() => input[at] ^= 1 << chance.below(8),
        1 if at < input.len() => input[at] = chance.next_u64() as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        4 => {
            let word = WORDS[chance.below(WORDS.len())];
            input.splice(
                at..end.min(at + chance.below(word.len() + 1)),
                word.iter().copied(),
            );
        }
        5 => {
            let number = NUMBERS[chance.below(NUMBERS.len())].to_le_bytes();
            let bytes = [1, 2, 4, 8][chance.below(4)];
            let end = (at + bytes).min(input.len());
            input.splice(at..end, number[..bytes].iter().copied());
        }
        6 => {
            let other = &corpus[chance.below(corpus.len())];
            let from = chance.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        7 => {
            // A number of digits for another.
            let digits = input
                .iter()
                .skip(at)
                .position(u8::is_ascii_digit)
                .map(|digit| at + digit);
            if let Some(first) = digits {
                let rest = input[first..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit());
                let last = first + rest.count();
                let number = NUMBERS[chance.below(NUMBERS.len())].to_string();
                input.splice(first..last, number.bytes());
            }
        }
        _ => {
            let random = (0..length).map(|_| chance.next_u64() as u8);
            let random: Vec<u8> = random.collect();
            input.splice(at..at, random);
        }
    }
}
