//! A text under way, block by block: what the samplers of both processes have in common.

use super::block::LastBlock;
use super::template::TextTemplate;
use super::{Evaluation, Reason};

#[derive(Clone, Debug)]
pub(super) struct Text {
    pub template: TextTemplate,
    /// Where the text that is made begins.
    prompt: usize,
    /// Position after the last token of the text, as far as is known.
    pub end: usize,
    /// All tokens up to the end of the current block.
    pub tokens: Vec<u32>,
    /// First position of the current block.
    pub block: usize,
    /// Positions below this one are final.
    pub settled: usize,
    /// Positions below this one are in the cache: whole blocks.
    pub written: usize,
    pub evaluation: Evaluation,
    /// True while `evaluation` waits for what is drawn.
    pub offered: bool,
    /// What the last step revealed or changed: positions, ascending, and tokens.
    pub revealed: Vec<(usize, u32)>,
    pub nfe: u32,
    pub prefills: u32,
    pub finished: Option<Reason>,
}

impl Text {
    pub fn new(template: TextTemplate) -> Self {
        Self {
            prompt: template.first_hole(),
            end: template.len(),
            template,
            tokens: Vec::new(),
            block: 0,
            settled: 0,
            written: 0,
            evaluation: Evaluation {
                first_position: 0,
                tokens: Vec::new(),
                clean: 0,
                rows: Vec::new(),
                sigma: 0.0,
            },
            offered: false,
            revealed: Vec::new(),
            nfe: 0,
            prefills: 0,
            finished: None,
        }
    }

    /// Where the text that is made begins.
    pub fn prompt(&self) -> usize {
        self.prompt
    }

    /// Goes on to the next block with a hole, whose free positions start as `fill` says; false where there is none. `sizes`: the
    /// first block's (0 where it is as the others) and the others'.
    pub fn begin_block(
        &mut self,
        sizes: (usize, usize),
        last: LastBlock,
        fill: impl Fn(usize) -> u32,
    ) -> bool {
        let block = self
            .template
            .next_block(&mut self.tokens, sizes, last, fill);
        self.block = block.unwrap_or(self.block);
        self.settled = self.block;
        block.is_some()
    }

    /// Makes `evaluation` of the clean tokens that are not in the cache, in blocks of `sizes` and at most `chunk` tokens but a
    /// block, and of the current block after the last of them; whether that is part of it. Clean tokens have sigma 0, so a
    /// network that is `told` the noise level evaluates them by themselves.
    pub fn offer(&mut self, (first, size): (usize, usize), chunk: usize, told: bool) -> bool {
        let head = match self.written {
            0 => first,
            _ => 0,
        };
        // At least a block, whichever it is.
        let whole = chunk.saturating_sub(head) / size;
        let most = head + whole.max(usize::from(head == 0)) * size;
        let clean = (self.block - self.written).min(most);
        let with_block = self.written + clean == self.block && (clean == 0 || !told);
        let end = match with_block {
            true => self.tokens.len(),
            false => self.written + clean,
        };
        let evaluation = &mut self.evaluation;
        (evaluation.first_position, evaluation.clean) = (self.written, clean);
        evaluation.sigma = 0.0;
        evaluation.rows.clear();
        evaluation.tokens.clear();
        evaluation.tokens.extend(&self.tokens[self.written..end]);
        with_block
    }

    /// The tokens of finished blocks, without the prompt, the stop token and what follows it, and without what a last
    /// block has beyond the text's length: nothing of a block is final before its last step.
    pub fn generated(&self) -> &[u32] {
        let end = match self.finished {
            Some(_) => self.end,
            None => self.settled.max(self.prompt),
        };
        &self.tokens[self.prompt..end]
    }
}
