//! Examples of a skill packed into contexts: prompts stay clean, answers are masked and scored.

use super::data::Contexts;
use super::skills::Skill;
use super::{Error, tokenizer};
use crate::rng::Stream;

/// How much the tokens after the answer that a block is about count (see [`SkillSource::sample`]).
const TAIL: f32 = 0.1;

/// An endless source of examples of one skill.
pub struct SkillSource {
    skill: Skill,
    tokenizer: tokenizers::Tokenizer,
    end_of_text: u32,
}

impl SkillSource {
    pub fn new(skill: Skill, tokenizer: tokenizers::Tokenizer) -> Result<Self, Error> {
        let end_of_text = tokenizer::end_of_text(&tokenizer)?;
        Ok(Self {
            skill,
            tokenizer,
            end_of_text,
        })
    }

    pub fn skill(&self) -> Skill {
        self.skill
    }

    pub fn tokenizer(&self) -> &tokenizers::Tokenizer {
        &self.tokenizer
    }

    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Prompt and answer (with its line end) as tokens.
    pub fn encode(&self, example: &(String, String)) -> Result<(Vec<u32>, Vec<u32>), Error> {
        let mut answer = tokenizer::encode(&self.tokenizer, &example.1)?;
        answer.extend(tokenizer::encode(&self.tokenizer, "\n")?);
        Ok((tokenizer::encode(&self.tokenizer, &example.0)?, answer))
    }

    /// `count` contexts of packed examples.
    ///
    /// When a block is sampled, nothing after the answer is known yet. So three blocks in four are about one
    /// answer that ends in them: what follows it in the block is masked like it (and counts a little, so
    /// that samples there look like examples).
    pub fn sample(
        &self,
        count: usize,
        length: usize,
        unit: usize,
        stream: &mut Stream,
    ) -> Result<Contexts, Error> {
        let mut contexts = Contexts::new(length);
        for _ in 0..count {
            let mut tokens = vec![self.end_of_text];
            let mut importance = vec![0.0];
            let mut ends = Vec::new();
            // Half of the contexts begin inside an example, so that examples meet blocks at every offset.
            let mut skip = if stream.below(2) == 0 {
                1 + stream.below(unit)
            } else {
                0
            };
            while tokens.len() < length {
                let (prompt, answer) = self.encode(&self.skill.example(stream))?;
                let whole = prompt
                    .iter()
                    .map(|&t| (t, 0.0))
                    .chain(answer.iter().map(|&t| (t, 1.0)));
                for (token, weight) in whole.skip(skip) {
                    tokens.push(token);
                    importance.push(weight);
                }
                skip = skip.saturating_sub(prompt.len() + answer.len());
                ends.push(tokens.len());
            }
            tokens.truncate(length);
            importance.truncate(length);
            for start in (0..length).step_by(unit) {
                let end = (start + unit).min(length);
                let inside: Vec<usize> = ends
                    .iter()
                    .copied()
                    .filter(|&e| e > start && e < end)
                    .collect();
                if !inside.is_empty() && stream.below(4) > 0 {
                    importance[inside[stream.below(inside.len())]..end].fill(TAIL);
                }
            }
            contexts.count += 1;
            contexts.tokens.extend(tokens);
            contexts.importance.extend(importance);
        }
        Ok(contexts)
    }

    /// Held-out examples, one per context, padded with end of text, only the answers scored.
    pub fn held_out(&self, count: usize, unit: usize) -> Result<Contexts, Error> {
        let encoded: Result<Vec<_>, _> = self
            .skill
            .held_out(count)
            .iter()
            .map(|e| self.encode(e))
            .collect();
        let encoded = encoded?;
        let longest = encoded
            .iter()
            .map(|(p, a)| 1 + p.len() + a.len())
            .max()
            .unwrap_or(1);
        let length = longest.next_multiple_of(unit.min(longest.next_multiple_of(16)));
        let mut contexts = Contexts::new(length);
        for (prompt, answer) in encoded {
            contexts.count += 1;
            let used = 1 + prompt.len() + answer.len();
            contexts.tokens.push(self.end_of_text);
            contexts.tokens.extend(&prompt);
            contexts.tokens.extend(&answer);
            contexts
                .tokens
                .extend(std::iter::repeat_n(self.end_of_text, length - used));
            contexts
                .importance
                .extend(std::iter::repeat_n(0.0, 1 + prompt.len()));
            contexts
                .importance
                .extend(std::iter::repeat_n(1.0, answer.len()));
            contexts
                .importance
                .extend(std::iter::repeat_n(0.0, length - used));
        }
        Ok(contexts)
    }
}
