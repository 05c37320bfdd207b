//! The Gaussian latents that the curriculum and distillation draw only a part of, against all of them.

use choir::ops::Divergence;
use choir::rng::{Key, Stream};
use choir::sampler::schedule::LogLinear;
use choir::train::curriculum::Mixer;
use choir::train::data::Contexts;
use choir::train::objective::{Corruption, Objective};
use choir::train::operator::Operator;

const TOKENS: usize = 12;
const COUNT: usize = 40_000;

fn objective(t: f64) -> Objective {
    Objective {
        block: None,
        corruption: Corruption::Uniform(TOKENS),
        clip: (t, t + 1e-9),
    }
}

/// One long context, whose first position is given.
fn contexts() -> Contexts {
    Contexts {
        count: 1,
        length: COUNT + 1,
        tokens: (0..=COUNT as u32).map(|i| i % 12).collect(),
        importance: (0..=COUNT).map(|i| i.min(1) as f32).collect(),
    }
}

/// mu onehot(0) + noise, of every token.
fn latents(mu: f64, noise: &[f64]) -> Vec<f64> {
    let mut all = noise.to_vec();
    all[0] += mu;
    all
}

fn normals(stream: &mut Stream) -> Vec<f64> {
    (0..TOKENS).map(|_| stream.normal()).collect()
}

fn best(values: &[f64]) -> usize {
    (0..values.len()).fold(
        0,
        |best, at| if values[at] > values[best] { at } else { best },
    )
}

#[test]
fn mixtures_of_the_largest_are_mixtures_of_all() {
    let (operator, contexts) = (Operator::new(TOKENS), contexts());
    let mut stream = Stream::new(Key::derive(&[b"mixtures"]));
    for (t, tau) in [(0.2, 0.5), (0.6, 0.1), (0.9, 0.3)] {
        let mixer = Mixer {
            operator: &operator,
            tokens: TOKENS,
            choices: TOKENS,
            tau,
        };
        let noisy = objective(t).soften(&contexts, mixer, &mut stream);
        let soft = noisy.input.soft.expect("mixtures");
        assert_eq!(
            (soft.tokens[0], soft.weights[0]),
            (0, 1.0),
            "what is given stays"
        );
        let (mut ours, mut theirs) = ([0.0; 4], [0.0; 4]);
        let mu = operator.signal(LogLinear::UNIFORM.move_chance(t));
        for position in 1..=COUNT {
            let weights = &soft.weights[position * TOKENS..][..TOKENS];
            let mut tokens = soft.tokens[position * TOKENS..][..TOKENS].to_vec();
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let hardest = weights.iter().fold(0f32, |a, &b| a.max(b));
            let at = tokens
                .iter()
                .position(|&token| token == noisy.input.xt[position])
                .expect("x_t");
            assert_eq!(weights[at], hardest, "x_t is the likeliest");
            let kept = f64::from(noisy.input.xt[position] == contexts.tokens[position]);
            tokens.sort_unstable();
            tokens.dedup();
            assert_eq!(tokens.len(), TOKENS, "every token once");
            let entropy = |w: f64| if w > 0.0 { -w * w.ln() } else { 0.0 };
            let all: f64 = weights.iter().map(|&w| entropy(f64::from(w))).sum();
            let found = [kept, f64::from(weights[0]), f64::from(hardest), all];
            ours.iter_mut()
                .zip(found)
                .for_each(|(sum, x)| *sum += x / COUNT as f64);

            let scale = 1.0 / (1.0 + mu * mu).sqrt();
            let z = latents(mu, &normals(&mut stream));
            let total: f64 = z.iter().map(|z| (z * scale / tau).exp()).sum();
            let weights: Vec<f64> = z.iter().map(|z| (z * scale / tau).exp() / total).collect();
            let hardest = weights[best(&z)];
            let all = weights.iter().map(|&w| entropy(w)).sum();
            let found = [f64::from(best(&z) == 0), weights[0], hardest, all];
            theirs
                .iter_mut()
                .zip(found)
                .for_each(|(sum, x)| *sum += x / COUNT as f64);
        }
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!(
                (ours - theirs).abs() < 0.015,
                "t {t}, tau {tau}: {ours} and {theirs}"
            );
        }
        let alpha = LogLinear::UNIFORM.alpha(t);
        let kept = alpha + (1.0 - alpha) / TOKENS as f64;
        assert!(
            (ours[0] - kept).abs() < 0.012,
            "t {t}: {} of {kept}",
            ours[0]
        );
    }
}

#[test]
fn trajectories_are_those_of_the_gaussian_argmax() {
    let (operator, contexts) = (Operator::new(TOKENS), contexts());
    let mut stream = Stream::new(Key::derive(&[b"trajectories"]));
    for (s, dt) in [(0.1, 0.05), (0.3, 0.5), (0.5, 0.125)] {
        let noisy =
            objective(s).trajectory(&contexts, TOKENS, dt, Divergence::Backward, &mut stream);
        let (xt, xs) = (noisy.input.xt, noisy.teacher.expect("teacher").xt);
        let mu = |t: f64| operator.signal(LogLinear::UNIFORM.move_chance(t));
        let (mut ours, mut theirs) = ([0.0; 3], [0.0; 3]);
        let count = |sums: &mut [f64; 3], truth: usize, t: usize, s: usize| {
            assert!(t != truth || s == truth, "what is x_0 at t is x_0 before");
            assert!(s == truth || s == t, "one other token all the way");
            let at = usize::from(t != truth) + usize::from(s != truth);
            sums[at] += 1.0 / COUNT as f64;
        };
        for position in 1..=COUNT {
            let truth = contexts.tokens[position] as usize;
            count(
                &mut ours,
                truth,
                xt[position] as usize,
                xs[position] as usize,
            );
            let noise = normals(&mut stream);
            let (late, early) = (
                best(&latents(mu(s + dt), &noise)),
                best(&latents(mu(s), &noise)),
            );
            count(&mut theirs, 0, late, early);
        }
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!(
                (ours - theirs).abs() < 0.015,
                "s {s}, dt {dt}: {ours} and {theirs}"
            );
        }
    }
}
