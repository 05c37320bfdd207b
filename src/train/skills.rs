//! Small skills with a right answer, made by code: what a variant can be fine-tuned for and scored on exactly.
//!
//! Every example is `prompt + answer + "\n"`. Letters are spaced, so that each is a token of its own, and
//! digits are single tokens anyway. One prompt in sixteen (by a hash of the prompt) is held out: training
//! never draws it.

use crate::rng::{Key, Stream};
use std::collections::BTreeSet;

/// A family of prompts with exact answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skill {
    /// `27+58=` → `85`, both terms of two digits.
    Addition,
    /// `reverse s t o n e =` → ` e n o t s`, 3 to 7 letters.
    Reverse,
    /// `roman M C M X C I V =` → ` 1994`, 1 to 3999.
    Roman,
    /// `sort d a f c b e =` → ` a b c d e f`, six different letters.
    Sort,
}

impl std::str::FromStr for Skill {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Skill::ALL.map(Skill::name).join(", ");
        Skill::ALL
            .into_iter()
            .find(|s| s.name() == name)
            .ok_or_else(|| format!("no such skill; there are {}", names()))
    }
}

impl Skill {
    pub const ALL: [Skill; 4] = [Skill::Addition, Skill::Reverse, Skill::Roman, Skill::Sort];

    pub fn name(self) -> &'static str {
        match self {
            Skill::Addition => "addition",
            Skill::Reverse => "reverse",
            Skill::Roman => "roman",
            Skill::Sort => "sort",
        }
    }

    /// A training example: (prompt, answer). Never a held-out prompt.
    pub fn example(self, stream: &mut Stream) -> (String, String) {
        loop {
            let (prompt, answer) = self.draw(stream);
            if !is_held_out(&prompt) {
                return (prompt, answer);
            }
        }
    }

    /// `count` different held-out prompts with their answers, always the same ones.
    pub fn held_out(self, count: usize) -> Vec<(String, String)> {
        let mut stream = Stream::new(Key::derive(&[
            b"choir/train/held-out/1",
            self.name().as_bytes(),
        ]));
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        // Every skill has thousands of prompts, one in sixteen of them held out; the bound only guards a huge `count`.
        for _ in 0..count.saturating_mul(1000) {
            if out.len() == count {
                break;
            }
            let (prompt, answer) = self.draw(&mut stream);
            if is_held_out(&prompt) && seen.insert(prompt.clone()) {
                out.push((prompt, answer));
            }
        }
        out
    }

    fn draw(self, stream: &mut Stream) -> (String, String) {
        match self {
            Skill::Addition => {
                let (a, b) = (10 + stream.below(90), 10 + stream.below(90));
                (format!("{a}+{b}="), (a + b).to_string())
            }
            Skill::Reverse => {
                let letters = word(3 + stream.below(5), stream);
                let reversed: Vec<char> = letters.iter().rev().copied().collect();
                (format!("reverse{} =", spaced(&letters)), spaced(&reversed))
            }
            Skill::Roman => {
                // Short numerals are few; drawing the length first lets training see them often enough.
                let most = [9, 99, 999, 3999, 3999, 3999][stream.below(6)];
                let number = 1 + stream.below(most);
                let letters: Vec<char> = roman(number).chars().collect();
                (format!("roman{} =", spaced(&letters)), format!(" {number}"))
            }
            Skill::Sort => {
                let mut alphabet: Vec<char> = ('a'..='z').collect();
                let letters: Vec<char> = (0..6)
                    .map(|_| alphabet.swap_remove(stream.below(alphabet.len())))
                    .collect();
                let mut sorted = letters.clone();
                sorted.sort_unstable();
                (format!("sort{} =", spaced(&letters)), spaced(&sorted))
            }
        }
    }
}

/// One prompt in sixteen.
fn is_held_out(prompt: &str) -> bool {
    let mut word = [0];
    Key::derive(&[b"choir/train/skill/1", prompt.as_bytes()]).words(0, &mut word);
    word[0] % 16 == 0
}

fn spaced(letters: &[char]) -> String {
    letters.iter().flat_map(|&letter| [' ', letter]).collect()
}

/// A string that looks a little like a word: vowels are likelier than in a uniform draw.
fn word(length: usize, stream: &mut Stream) -> Vec<char> {
    let letters: Vec<char> = "abcdefghijklmnopqrstuvwxyzaeiouaeiou".chars().collect();
    (0..length)
        .map(|_| letters[stream.below(letters.len())])
        .collect()
}

/// The standard Roman numeral of 1 ..= 3999.
pub fn roman(mut number: usize) -> String {
    const STEPS: [(usize, &str); 13] = [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ];
    let mut out = String::new();
    for (value, letters) in STEPS {
        while number >= value {
            out.push_str(letters);
            number -= value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerals() {
        for (number, letters) in [
            (1, "I"),
            (4, "IV"),
            (1994, "MCMXCIV"),
            (3999, "MMMCMXCIX"),
            (2024, "MMXXIV"),
        ] {
            assert_eq!(roman(number), letters);
        }
    }

    #[test]
    fn held_out_prompts_are_fixed_distinct_and_never_trained() {
        for skill in Skill::ALL {
            let held_out = skill.held_out(200);
            assert_eq!(held_out.len(), 200, "{}", skill.name());
            assert_eq!(held_out, skill.held_out(200));
            let mut stream = Stream::new(Key::derive(&[b"test"]));
            for _ in 0..2000 {
                let example = skill.example(&mut stream);
                assert!(!held_out.contains(&example), "{example:?}");
            }
        }
    }

    #[test]
    fn answers_are_right() {
        let mut stream = Stream::new(Key::derive(&[b"answers"]));
        for _ in 0..200 {
            let (prompt, answer) = Skill::Addition.example(&mut stream);
            let sum: usize = prompt
                .trim_end_matches('=')
                .split('+')
                .map(|n| n.parse::<usize>().unwrap())
                .sum();
            assert_eq!(answer, sum.to_string());
            let (prompt, answer) = Skill::Sort.example(&mut stream);
            let mut letters: Vec<&str> =
                prompt["sort ".len()..prompt.len() - 2].split(' ').collect();
            letters.sort_unstable();
            assert_eq!(answer.trim(), letters.join(" "));
            let (prompt, answer) = Skill::Reverse.example(&mut stream);
            let letters: Vec<&str> = prompt["reverse ".len()..prompt.len() - 2]
                .split(' ')
                .rev()
                .collect();
            assert_eq!(answer.trim(), letters.join(" "));
        }
    }
}
