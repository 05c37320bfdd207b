//! What the engine takes beside the network: one that takes no time measures how long it is left alone between two steps.
//! Readers are tasks of a runtime, as the service's are.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use choir::engine::{Engine, EngineConfig, EngineHandle, Event, Generation, Priority, Request, Sampling, VariantFacts};
use choir::model::kv_cache::KvCache;
use choir::model::tokenizer::Tokenizer;
use choir::model::{Batch, Between, Denoiser, DitConfig, Logits, Outcome, VariantId};
use choir::ops::categorical::Drawn;

const VARIANTS: u32 = 16;
/// Tokens of a text.
const TOKENS: usize = 128;
/// Steps that are not counted, and those that are.
const WARM_UP: usize = 500;
const STEPS: usize = 3000;
/// (sequences, tokens of a step at most): all of them in every step, or some.
const CASES: [(usize, usize); 5] = [(1, 512), (16, 512), (64, 4096), (256, 512), (256, 4096)];
const ROUNDS: usize = 5;

struct Timeless {
    config: DitConfig,
    times: Mutex<Times>,
}

#[derive(Default)]
struct Times {
    left: Option<Instant>,
    /// From the end of one step to the beginning of the next, and the sequences of that.
    between: Vec<(Duration, usize)>,
}

impl Denoiser for Timeless {
    fn config(&self) -> &DitConfig {
        &self.config
    }

    fn forward(&self, _: &Batch, _: &mut KvCache) -> candle_core::Result<Logits> {
        candle_core::bail!("it knows no logits")
    }

    fn step(&self, batch: &Batch, _: &mut KvCache, _: &mut Between) -> candle_core::Result<Outcome> {
        let mut times = self.times.lock().expect("times");
        if let Some(left) = times.left {
            times.between.push((left.elapsed(), batch.segments.len()));
        }
        let drawn = |row: usize| Drawn {
            token: 300 + (row % 700) as u32,
            certainty: 0.0,
        };
        let outcome = Outcome {
            logits: Logits {
                vocab: self.config.vocab_size,
                data: Vec::new(),
            },
            drawn: (0..batch.drawn_rows()).map(drawn).collect(),
        };
        times.left = Some(Instant::now());
        Ok(outcome)
    }
}

fn generation() -> (Generation, Arc<Timeless>) {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/base");
    let read = |name: &str| std::fs::read(base.join(name)).expect(name);
    let config: DitConfig = serde_json::from_slice(&read("config.json")).expect("a configuration");
    let facts = |number: u32| VariantFacts {
        id: VariantId(number),
        regime: config.regime(),
        defaults: Sampling::default(),
    };
    let variants = (0..VARIANTS)
        .map(|number| (name(number as usize), facts(number)))
        .collect();
    let network = Arc::new(Timeless {
        config,
        times: Mutex::default(),
    });
    let generation = Generation {
        number: 1,
        denoiser: network.clone(),
        tokenizer: Arc::new(Tokenizer::from_bytes(&read("tokenizer.json")).expect("a tokenizer")),
        defaults: Sampling::default(),
        variants,
        memory: Vec::new(),
    };
    (generation, network)
}

fn name(number: usize) -> String {
    format!("variant-{}", number % VARIANTS as usize)
}

/// One request after the other.
async fn keep_busy(engine: EngineHandle, client: usize) {
    let request = Request {
        mix: vec![(name(client), 1.0)],
        prompt: (300..320).collect(),
        max_tokens: TOKENS,
        after: Vec::new(),
        sampling: Sampling::default(),
        stop: Vec::new(),
        stop_ids: Vec::new(),
        seed: Some(client as u64),
        steps_wanted: false,
        deadline: None,
        priority: Priority::default(),
        client: None,
    };
    loop {
        let mut events = engine.submit(request.clone()).expect("a place");
        while let Some(event) = events.recv().await {
            if let Event::Failed(error) = event {
                panic!("{error}");
            }
        }
    }
}

/// Seconds between two steps, and sequences of a step: medians.
fn between(sequences: usize, step_tokens: usize) -> (f64, f64) {
    let (generation, network) = generation();
    let config = EngineConfig {
        max_running: sequences,
        queue: sequences,
        step_tokens,
        kv_bytes: 512 << 20, // for all of them
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, generation).expect("an engine");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for client in 0..sequences {
        runtime.spawn(keep_busy(engine.clone(), client));
    }
    let measured = loop {
        std::thread::sleep(Duration::from_millis(20));
        let mut times = network.times.lock().expect("times");
        if times.between.len() >= WARM_UP + STEPS {
            break times.between.split_off(WARM_UP);
        }
    };
    drop(runtime); // and its tasks, the clients
    let median = |of: fn(&(Duration, usize)) -> f64| {
        let mut values: Vec<f64> = measured.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (median(|step| step.0.as_secs_f64()), median(|step| step.1 as f64))
}

fn main() {
    println!("sequences  step tokens  in a step  microseconds beside the network: a step, and a sequence of it");
    for (sequences, step_tokens) in CASES {
        let mut rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| between(sequences, step_tokens)).collect();
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, took_part) = rounds[ROUNDS / 2];
        let micros = 1e6 * seconds;
        println!(
            "{sequences:>9}  {step_tokens:>11}  {took_part:>9}  {micros:>9.1}  {:>6.2}",
            micros / took_part
        );
    }
}
