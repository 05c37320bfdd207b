//! What a step takes beside the device: the engine's loop between two steps, and a device's network on the host within one. The
//! model compiled in, on a machine that does nothing at all.
//!
//! Readers are tasks of a runtime, as the service's are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use choir::catalog::{BaseSource, Catalog, CatalogConfig};
use choir::engine::{Engine, EngineConfig, EngineHandle, Event, Generation, Request, Sampling};
use choir::model::gpu::GpuTarget;
use choir::model::kv_cache::KvCache;
use choir::model::{
    Batch, Denoiser, Logits, NetworkFacts, PageLayout, Place, Process, StepOutcome,
};
use choir::ops::gpu::{Address, Dtype, Gemm, GpuDevice, Graph, Launch, Result};
use choir::ops::quantized::Quantisation;

/// Tokens of a text.
const TOKENS: usize = 128;
/// Steps that are not counted, and those that are.
const WARM_UP: usize = 500;
const STEPS: usize = 3000;
/// (sequences, tokens of a step at most): all of them in every step, or some.
const CASES: [(usize, usize); 5] = [(1, 512), (16, 512), (64, 4096), (256, 512), (256, 4096)];
/// The same of whole sequences of the uniform process, all of whose tokens are drawn in every step.
const WHOLE: [(usize, usize); 2] = [(1, 512), (16, 4096)];
const ROUNDS: usize = 5;

/// Takes what it is given, and gives back words that are tokens.
#[derive(Debug, Default)]
struct Idle {
    end: AtomicU64,
    uploaded: Mutex<Vec<u8>>,
}

struct Replay;

impl Graph for Replay {
    fn replay(&self) -> Result<()> {
        Ok(())
    }
}

impl GpuDevice for Idle {
    fn name(&self) -> String {
        "idle".into()
    }

    fn processors(&self) -> u32 {
        132
    }

    fn shared(&self) -> u32 {
        227 << 10
    }

    fn memory(&self) -> Result<(usize, usize)> {
        Ok((64 << 30, 64 << 30))
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let bytes = bytes.next_multiple_of(256) as u64;
        let number = 256 + self.end.fetch_add(bytes, Ordering::Relaxed);
        // SAFETY: nothing reads or writes there.
        #[allow(unsafe_code)]
        Ok(unsafe { Address::new(number) })
    }

    fn free(&self, _: Address, _: usize) {}

    fn upload(&self, _: Address, data: &[u8]) -> Result<()> {
        let mut uploaded = self.uploaded.lock().expect("memory");
        uploaded.clear();
        uploaded.extend_from_slice(data);
        Ok(())
    }

    fn download(&self, _: Address, data: &mut [u8]) -> Result<()> {
        let (words, _) = data.as_chunks_mut::<4>();
        let tokens = (300..1000u32).cycle().map(u32::to_le_bytes);
        words
            .iter_mut()
            .zip(tokens)
            .for_each(|(word, token)| *word = token);
        Ok(())
    }

    fn copy(&self, _: Address, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn clear(&self, _: Address, _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: Launch<'_>) -> Result<()> {
        Ok(())
    }

    fn gemm(&self, _: Gemm) -> Result<()> {
        Ok(())
    }

    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Graph>>> {
        Ok(Some(Box::new(Replay)))
    }

    fn synchronise(&self) -> Result<()> {
        Ok(())
    }

    fn time(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        Ok(0.0)
    }
}

/// Looks at the clock before and after every step.
struct Watched {
    network: Arc<dyn Denoiser>,
    steps: Mutex<Steps>,
}

#[derive(Default)]
struct Steps {
    left: Option<Instant>,
    done: Vec<TimedStep>,
}

#[derive(Clone, Copy)]
struct TimedStep {
    between: Duration,
    within: Duration,
    sequences: usize,
}

impl Denoiser for Watched {
    fn facts(&self) -> &NetworkFacts {
        self.network.facts()
    }

    fn page_bytes(&self, page: PageLayout) -> usize {
        self.network.page_bytes(page)
    }

    fn cache(&self, page: PageLayout, pages: usize) -> choir::model::Result<KvCache> {
        self.network.cache(page, pages)
    }

    fn forward(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<Logits> {
        self.network.forward(batch, cache)
    }

    fn step(&self, batch: &Batch, cache: &mut KvCache) -> choir::model::Result<StepOutcome> {
        let begun = Instant::now();
        let outcome = self.network.step(batch, cache)?;
        let mut steps = self.steps.lock().expect("steps");
        if let Some(left) = steps.left {
            steps.done.push(TimedStep {
                between: begun - left,
                within: begun.elapsed(),
                sequences: batch.segments.len(),
            });
        }
        steps.left = Some(Instant::now());
        Ok(outcome)
    }
}

/// The model compiled in, on an idle machine.
fn open(data_dir: &std::path::Path) -> (Catalog, Generation) {
    let config = CatalogConfig {
        place: Place::Device(GpuTarget::new(Arc::new(Idle::default()), Dtype::Bf16)),
        bank_form: Quantisation::Q4K,
        archive: false,
        ..CatalogConfig::new(data_dir, BaseSource::Embedded)
    };
    Catalog::open(config, |_| ()).expect("a catalog")
}

/// One request after the other.
async fn keep_busy(engine: EngineHandle, variant: String, sampling: Sampling, seed: u64) {
    let request = Request {
        mix: vec![(variant, 1.0)].into(),
        seed: Some(seed),
        ..Request::new((300..320).collect(), TOKENS, sampling)
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

/// Medians of a step: microseconds before it and within it, and its sequences.
fn measure(
    like: &Generation,
    process: Process,
    (sequences, step_tokens): (usize, usize),
) -> [f64; 3] {
    let network = Arc::new(Watched {
        network: like.denoiser.clone(),
        steps: Mutex::default(),
    });
    let generation = Generation {
        number: like.number,
        denoiser: network.clone(),
        tokenizer: like.tokenizer.clone(),
        defaults: like.defaults.clone(),
        variants: like.variants.clone(),
        memory: Vec::new(),
    };
    let config = EngineConfig {
        max_running: sequences,
        queue: sequences,
        step_tokens,
        kv_bytes: 512 << 20, // for all of them
        ..EngineConfig::default()
    };
    let engine = Engine::start(config, generation).expect("an engine");
    let variants = like
        .variants
        .iter()
        .filter(|(_, facts)| facts.regime.process == process);
    let names: Vec<&String> = variants.map(|(name, _)| name).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for client in 0..sequences {
        let variant = names[client % names.len()].clone();
        runtime.spawn(keep_busy(
            engine.clone(),
            variant,
            Sampling::of(process),
            client as u64,
        ));
    }
    let steps = loop {
        std::thread::sleep(Duration::from_millis(20));
        let mut steps = network.steps.lock().expect("steps");
        if steps.done.len() >= WARM_UP + STEPS {
            break steps.done.split_off(WARM_UP);
        }
    };
    drop(runtime); // and its tasks, the clients
    let micros = |time: Duration| 1e6 * time.as_secs_f64();
    let median = |of: &dyn Fn(&TimedStep) -> f64| {
        let mut values: Vec<f64> = steps.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    [
        median(&|step| micros(step.between)),
        median(&|step| micros(step.within)),
        median(&|step| step.sequences as f64),
    ]
}

fn main() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_catalog, generation) = open(directory.path());
    println!("microseconds of a step, by sequences that run and tokens that a step may have");
    println!("running  tokens  in a step  engine  network  both, for each in a step");
    let blocks = CASES.map(|case| (Process::Absorbing, case));
    let whole = WHOLE.map(|case| (Process::Uniform, case));
    for (process, case) in blocks.into_iter().chain(whole) {
        let mut rounds: Vec<_> = (0..ROUNDS)
            .map(|_| measure(&generation, process, case))
            .collect();
        rounds.sort_by(|a, b| (a[0] + a[1]).total_cmp(&(b[0] + b[1])));
        let [between, within, took_part] = rounds[ROUNDS / 2];
        let ((sequences, step_tokens), each) = (case, (between + within) / took_part);
        println!(
            "{sequences:>7}  {step_tokens:>6}  {took_part:>9}  {between:>6.1}  {within:>7.1}  {each:>8.2}"
        );
    }
}
