//! A network whose logits are a hash of all that the row may see, and a tokenizer of bytes.
//!
//! What it sees beyond its own segment it reads from the cache, and it panics if that is not what was written there: so
//! a mistake in the engine's pages fails the request. A value in the cache tells of the weights and of all that its position
//! saw, as a real one does: what was written for another text or another variant gives other logits.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use choir::engine::{
    Engine, EngineConfig, EngineHandle, EngineStatus, Generation, Sampling, VariantFacts,
};
use choir::model::kv_cache::{CacheRows, KvCache};
use choir::model::tokenizer::Tokenizer;
use choir::model::{
    Batch, CacheShape, Denoiser, Grid, Logits, Mix, NetworkFacts, Process, Regime, Segment,
    VariantId,
};
use choir::ops::gemm::MatrixView;

pub const BLOCK: usize = 4;
pub const WINDOW: usize = 32;
/// Bytes, then the end of text, then the mask.
pub const END_OF_TEXT: u32 = 256;
pub const VOCAB: usize = 258;

/// Bytes that it says it takes.
pub const SIZE: usize = 1000;

pub struct Fake {
    facts: NetworkFacts,
    /// Another network for every salt.
    salt: u64,
    /// What was added to its weights.
    added: Mix,
    /// Rounds of needless work for every segment of a variant.
    toil: u64,
    /// Bytes that are likely; all, if empty.
    alphabet: Vec<u8>,
    /// What is certain to stand from position 0 on.
    script: Vec<u32>,
    gate: Option<Mutex<Inside>>,
    /// Says what goes wrong in which call, if anything.
    fault: Option<Faults>,
}

type Faults = Box<dyn Fn(&Batch) -> Fault + Send + Sync>;

#[derive(PartialEq)]
pub enum Fault {
    None,
    Error,
    Lost,
    Panic,
    Shape,
}

/// Holds every evaluation until it is let through; for good once this is dropped.
pub struct Gate {
    pub entered: Receiver<usize>,
    permits: Sender<()>,
}

struct Inside {
    entered: Sender<usize>,
    permits: Receiver<()>,
}

impl Gate {
    /// Waits until an evaluation has begun; returns its segments.
    pub fn wait(&self) -> usize {
        self.entered.recv().expect("the engine has ended")
    }

    pub fn pass(&self) {
        self.permits.send(()).expect("the engine has ended");
    }
}

impl Fake {
    pub fn new(salt: u64) -> Self {
        let facts = NetworkFacts {
            family: "dit",
            slides: true,
            rows: VOCAB,
            tokens: VOCAB - 1,
            mask: Some(VOCAB as u32 - 1),
            context: WINDOW,
            regime: Regime {
                process: Process::Absorbing,
                grid: Grid::Start,
                block: Some(BLOCK),
                time_conditioned: false,
            },
            hidden: 2,
            parameters: 0,
            cache: CacheShape {
                layers: 1,
                heads: 1,
                head_dim: 2,
            },
        };
        Fake {
            facts,
            salt,
            added: Mix::base(),
            toil: 0,
            alphabet: Vec::new(),
            script: Vec::new(),
            gate: None,
            fault: None,
        }
    }

    /// Variants take much longer than the base does.
    pub fn toiling(mut self) -> Self {
        self.toil = 200_000;
        self
    }

    pub fn letters(mut self) -> Self {
        self.alphabet = (b'a'..=b'z').collect();
        self
    }

    pub fn script(mut self, prompt: &[u32], rest: &[u32]) -> Self {
        self.script = [prompt, rest].concat();
        self
    }

    pub fn without_blocks(mut self) -> Self {
        self.facts.regime.block = None;
        self
    }

    pub fn uniform(mut self) -> Self {
        self.facts.regime.process = Process::Uniform;
        (self.facts.tokens, self.facts.mask) = (VOCAB, None);
        self.without_blocks()
    }

    pub fn fault(mut self, fault: impl Fn(&Batch) -> Fault + Send + Sync + 'static) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    pub fn gated(mut self) -> (Self, Gate) {
        let ((entered, outside_entered), (permits, inside_permits)) = (channel(), channel());
        self.gate = Some(Mutex::new(Inside {
            entered,
            permits: inside_permits,
        }));
        (
            self,
            Gate {
                entered: outside_entered,
                permits,
            },
        )
    }

    /// Hash of the tokens, with their positions, that the row sees, of the values of those that are clean, and of the noise it
    /// is told of.
    pub fn sees(&self, segment: &Segment, row: usize, cache: &KvCache) -> u64 {
        let position = segment.first_position + row;
        let mut hash = mix(
            self.tokens_seen(segment, position, cache),
            u64::from(segment.sigma.to_bits()),
        );
        let clean = segment.first_position + segment.clean;
        for seen in self.visible(segment, position) {
            if seen < segment.first_position {
                hash = mix(
                    hash,
                    u64::from(self.cached(segment, seen, cache)[1].to_bits()),
                );
            } else if seen < clean && position >= clean {
                hash = mix(hash, u64::from(self.value(segment, seen, cache).to_bits()));
            }
        }
        hash
    }

    fn visible(&self, segment: &Segment, position: usize) -> std::ops::Range<usize> {
        let segment_end = segment.first_position + segment.tokens.len();
        let end = segment
            .block
            .map_or(segment_end, |b| ((position / b + 1) * b).min(segment_end));
        let first = end.saturating_sub(WINDOW);
        assert!(
            segment.pages_start <= first,
            "a visible page was given away"
        );
        first..end
    }

    /// Token and value of a position in the cache.
    fn cached(&self, segment: &Segment, position: usize, cache: &KvCache) -> [f32; 2] {
        let offset = position - segment.pages_start;
        let page = segment.pages[offset / cache.page_tokens()];
        let (key, value) = cache.read(page, 0, offset % cache.page_tokens());
        assert_eq!(key[0] as usize, position, "another position's key");
        [key[1], value[0]]
    }

    fn tokens_seen(&self, segment: &Segment, position: usize, cache: &KvCache) -> u64 {
        let mut hash = mix(self.salt, position as u64);
        for (variant, weight) in self.added.0.iter().chain(&segment.mix.0) {
            hash = mix(mix(hash, u64::from(variant.0)), u64::from(weight.to_bits()));
        }
        for seen in self.visible(segment, position) {
            let token = match seen.checked_sub(segment.first_position) {
                Some(index) => segment.tokens[index],
                None => self.cached(segment, seen, cache)[0] as u32,
            };
            hash = mix(mix(hash, seen as u64), u64::from(token));
        }
        hash
    }

    /// The value of a clean position: a whole number that a float holds.
    fn value(&self, segment: &Segment, position: usize, cache: &KvCache) -> f32 {
        (self.tokens_seen(segment, position, cache) >> 41) as f32
    }

    pub fn logits(&self, hash: u64, position: usize) -> Vec<f32> {
        let logit = |token: usize| {
            let noise = (mix(hash, token as u64) >> 40) as f32 / (1 << 22) as f32;
            let letter = u8::try_from(token).is_ok_and(|byte| self.alphabet.contains(&byte));
            let likely = if letter { 40.0 } else { 0.0 };
            // A text ends where the script says so, not by chance.
            let certain = match self.script.get(position) {
                Some(&scripted) if scripted == token as u32 => 1000.0,
                _ if token == END_OF_TEXT as usize => -1000.0,
                _ => 0.0,
            };
            noise + likely + certain
        };
        (0..VOCAB).map(logit).collect()
    }
}

impl Denoiser for Fake {
    fn facts(&self) -> &NetworkFacts {
        &self.facts
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<Logits> {
        if let Some(gate) = &self.gate {
            let gate = gate.lock().expect("gate");
            let _ = gate.entered.send(batch.segments.len());
            let _ = gate.permits.recv();
        }
        match self
            .fault
            .as_ref()
            .map_or(Fault::None, |fault| fault(batch))
        {
            Fault::None => {}
            Fault::Error => return Err(choir::model::Error::Unread("out of order".into())),
            Fault::Lost => {
                let detail = "it fell off the bus".to_owned();
                return Err(choir::ops::gpu::Fault::Lost { detail }.into());
            }
            Fault::Panic => panic!("out of order"),
            Fault::Shape => {
                return Ok(Logits {
                    vocab: VOCAB,
                    data: vec![0.0],
                });
            }
        }
        for segment in &batch.segments {
            for index in 0..segment.clean {
                let position = segment.first_position + index;
                let offset = position - segment.pages_start;
                let (page, slot) = (offset / cache.page_tokens(), offset % cache.page_tokens());
                let key = [position as f32, segment.tokens[index] as f32];
                let value = [self.value(segment, position, cache), 0.0];
                let rows = [&key, &value].map(|row| MatrixView::rows(row, 2));
                cache.write(CacheRows {
                    page: segment.pages[page],
                    layer: 0,
                    slot,
                    count: 1,
                    keys: rows[0],
                    values: rows[1],
                });
            }
        }
        let varied = batch
            .segments
            .iter()
            .filter(|segment| !segment.mix.0.is_empty());
        for round in 0..self.toil * varied.count() as u64 {
            std::hint::black_box(mix(self.salt, round));
        }
        let mut data = Vec::new();
        for segment in &batch.segments {
            for &row in &segment.rows {
                data.extend(
                    self.logits(self.sees(segment, row, cache), segment.first_position + row),
                );
            }
        }
        Ok(Logits { vocab: VOCAB, data })
    }

    fn bytes(&self) -> usize {
        SIZE
    }

    fn materialise(&self, mix: &Mix) -> choir::model::Result<Option<Arc<dyn Denoiser>>> {
        let mut made = Fake::new(self.salt);
        (made.facts, made.alphabet, made.script) = (
            self.facts.clone(),
            self.alphabet.clone(),
            self.script.clone(),
        );
        made.added = mix.clone();
        Ok(Some(Arc::new(made)))
    }
}

fn mix(hash: u64, word: u64) -> u64 {
    let mut z =
        (hash ^ word.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// One token to a byte, and the end of text.
pub fn tokenizer() -> Arc<Tokenizer> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let vocab: BTreeMap<String, u32> = (0..256)
        .map(|byte| {
            let letter = if printable(byte) {
                byte
            } else {
                others.next().expect("letters")
            };
            (char::from_u32(letter).expect("letter").to_string(), byte)
        })
        .collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": END_OF_TEXT, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    Arc::new(Tokenizer::from_bytes(file.to_string().as_bytes()).expect("tokenizer"))
}

pub fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A generation of this network with variants `a`, `b` and `c`.
pub fn generation(number: u64, network: impl Denoiser + 'static) -> Generation {
    let facts = |id| VariantFacts {
        id: VariantId(id),
        regime: network.facts().regime,
        defaults: Sampling::default(),
        tokenizer: None,
    };
    Generation {
        number,
        tokenizer: tokenizer(),
        defaults: Sampling::of(network.facts().regime.process),
        variants: [("a", 0), ("b", 1), ("c", 2)]
            .map(|(name, id)| (name.to_owned(), facts(id)))
            .into(),
        memory: Vec::new(),
        denoiser: Arc::new(network),
    }
}

/// Small in every respect, so that limits are met.
pub fn config() -> EngineConfig {
    EngineConfig {
        max_running: 16,
        queue: 64,
        kv_bytes: 1 << 20,
        page_tokens: 4,
        step_tokens: 64,
        max_prompt: 256,
        max_tokens: 256,
        prefix_reuse: true,
        threads: 2,
        ..EngineConfig::default()
    }
}

pub fn start(config: EngineConfig, network: impl Denoiser + 'static) -> EngineHandle {
    Engine::start(config, generation(1, network)).expect("engine")
}

/// Asks for the status until it is as wished: the engine writes it down between two steps.
pub fn until(engine: &EngineHandle, wish: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
    loop {
        let now = engine.status();
        if wish(&now) {
            return now;
        }
        std::thread::yield_now();
    }
}

/// Finishes what the engine has and ends it.
pub fn drain(engine: &EngineHandle) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("runtime");
    runtime.block_on(engine.drain());
}
