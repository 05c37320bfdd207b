//! Tokens drawn by the kernel are those the CPU draws.

use choir::ops::categorical::{
    Certainty, Crossing, Draw, DrawKind, Drawn, Filter, FilterWorkspace,
};
use choir::ops::gpu::draw::{Categorical, DrawFacts, DrawnFacts, LOOK};
use choir::ops::gpu::pointwise::NONE;
use choir::rng::{Noise, Stream};

use crate::rig::{Rig, normals, stream};

const SLOTS: usize = 2;

/// A row of logits of one of several kinds: plain, steep, full of equals, with holes of -infinity and NaN and one infinite, with
/// none finite.
fn logits(random: &mut Stream, vocab: usize) -> Vec<f32> {
    let kind = random.below(8);
    let steepness = [1.0, 8.0, 0.01, 3.0, 3.0, 3.0, 0.0, 1.0][kind];
    let mut row: Vec<f32> = normals::<f32>(random, vocab)
        .into_iter()
        .map(|x| x * steepness)
        .collect();
    match kind {
        3 => row.iter_mut().for_each(|x| *x = x.round()),
        4 | 5 => {
            for _ in 0..vocab / 2 {
                row[random.below(vocab)] =
                    [f32::NEG_INFINITY, f32::NAN, -0.0, 0.0][random.below(4)];
            }
            if kind == 5 {
                row[random.below(vocab)] = f32::INFINITY;
            }
        }
        7 => {
            let value = [f32::NEG_INFINITY, f32::NAN][random.below(2)];
            row.fill(value);
        }
        _ => {}
    }
    row
}

fn draw(random: &mut Stream, vocab: usize) -> Draw {
    let tokens = if random.below(3) == 0 {
        1 + random.below(vocab)
    } else {
        vocab
    };
    let alpha_t = random.uniform();
    let alpha_s = alpha_t + (1.0 - alpha_t) * random.uniform();
    let mixture = DrawKind::Mixture {
        present: random.below(tokens) as u32,
        alpha_t,
        alpha_s: [alpha_s, 1.0][random.below(2)],
        kappa: [1.0, random.uniform()][random.below(2)],
    };
    Draw {
        filter: Filter {
            temperature: [0.0, 0.3, 1.0, 1.0, 2.5][random.below(5)],
            top_k: [None, None, Some(1), Some(7), Some(1 + random.below(tokens))][random.below(5)],
            nucleus_p: [1.0, 0.9137, 0.3171, 1e-4][random.below(4)],
            crossing: [Crossing::Dropped, Crossing::Kept][random.below(2)],
            forbidden: [
                None,
                Some(0),
                Some(tokens as u32 - 1),
                Some(random.below(tokens) as u32),
            ][random.below(4)],
        },
        tokens,
        noise: Noise::new(random.next_u64()),
        step: random.below(100) as u32,
        position: random.below(100_000) as u32,
        kind: [
            DrawKind::Predicted,
            DrawKind::Best,
            DrawKind::Sure(Certainty::Best),
            DrawKind::Sure(Certainty::Drawn),
            DrawKind::Sure(Certainty::Filtered),
            mixture,
            mixture,
            mixture,
        ][random.below(8)],
    }
}

/// Whether a draw can be told from sums in f32, but for rows without any weight.
fn plain(draw: &Draw) -> bool {
    let filter = &draw.filter;
    let mixes = matches!(draw.kind, DrawKind::Mixture { .. });
    let sampled = filter.temperature > 0.0 && filter.top_k.is_none() && filter.nucleus_p == 1.0;
    draw.kind == DrawKind::Best || sampled && (mixes || draw.kind == DrawKind::Predicted)
}

/// Appends to `again` whether it took a second look, of draws that mostly need none.
fn check(rig: &Rig, random: &mut Stream, [vocab, rows]: [usize; 2], again: &mut Vec<u32>) {
    let table: Vec<f32> = (0..rows).flat_map(|_| logits(random, vocab)).collect();
    let draws: Vec<Draw> = (0..rows).map(|_| draw(random, vocab)).collect();
    let (offset, stride) = (3, vocab + 5);
    let mut biases: Vec<f32> = normals(random, SLOTS * stride);
    biases[..stride].fill(0.0);
    // Rows of logits belong to rows of the batch backwards; the last is padded.
    let mix: Vec<u32> = (0..rows).map(|_| random.below(SLOTS) as u32).collect();
    let mut of: Vec<u32> = (0..rows as u32).rev().collect();
    let mut facts: Vec<_> = draws
        .iter()
        .map(|draw| DrawFacts::of(draw, vocab))
        .collect();
    of.push(NONE);
    facts.push(DrawFacts::default());

    let (drawn, logits_at) = (
        rig.empty((rows + 1) * 16),
        rig.empty((rows + 1) * vocab * 4),
    );
    logits_at.write(0, &table).unwrap();
    let (biases_at, mix_at, of_at) = (rig.buffer(&biases), rig.buffer(&mix), rig.buffer(&of));
    let (facts_at, looks) = (rig.buffer(&facts), rig.empty((rows + 1) * LOOK));
    let args = Categorical {
        logits: logits_at.address(),
        biases: biases_at.address(),
        mix: mix_at.address(),
        rows: of_at.address(),
        draws: facts_at.address(),
        drawn: drawn.address(),
        looks: looks.address(),
        vocab: vocab as u32,
        pitch: vocab as u32,
        bias_stride: stride as u32,
        bias: offset as u32,
    };
    args.launch(rig.gpu(), rows + 1).unwrap();
    let drawn = drawn.read::<DrawnFacts>(0, rows).unwrap();
    again.extend(
        draws
            .iter()
            .zip(&drawn)
            .filter_map(|(draw, drawn)| plain(draw).then_some(drawn.again)),
    );
    let mut workspace = FilterWorkspace::default();
    for (i, (draw, drawn)) in draws.iter().zip(drawn).enumerate() {
        let bias = &biases[mix[of[i] as usize] as usize * stride + offset..][..vocab];
        let row: Vec<f32> = table[i * vocab..][..vocab]
            .iter()
            .zip(bias)
            .map(|(x, bias)| x + bias)
            .collect();
        let expected = draw.apply(&row, &mut workspace);
        assert_eq!(
            Drawn::from(drawn),
            expected,
            "row {i} of {vocab} tokens: {draw:?}"
        );
    }
}

#[test]
fn tokens_are_those_of_the_host() {
    let mut random = stream("draws");
    for rig in Rig::all() {
        let mut again = Vec::new();
        for shape in [
            [1, 20],
            [2, 20],
            [40, 60],
            [256, 60],
            [257, 60],
            [1000, 60],
            [5000, 30],
            [5000, 5],
        ] {
            check(&rig, &mut random, shape, &mut again);
        }
        let twice = again.iter().filter(|&&again| again == 1).count();
        assert!(
            4 * twice < again.len(),
            "{twice} of {} took a second look",
            again.len()
        );
    }
}
