//! A base's matrices in few bits against the host's, which have the same numbers.

use std::sync::Arc;

use choir::model::architecture::{Architecture, TensorSpec};
use choir::model::gpu::{GpuBase, GpuNetwork, GpuTarget};
use choir::model::{Batch, Denoiser, Mix};
use choir::ops::gpu::quantised::{FewBits, FewRows, MOST_ROWS, Widen};
use choir::ops::gpu::{Dtype, GpuDevice};
use choir::ops::quantized::{Quantisation, QuantizedMatrix};

use crate::fixtures::family::{Family, PAGE, behind};
use crate::fixtures::relative;
use crate::rig::{Number, Rig, normals, stream};

/// Weights of a matrix [out, input] as they come back from `form`.
fn rounded(weights: &[f32], [out, input]: [usize; 2], form: Quantisation) -> Vec<f32> {
    let served = QuantizedMatrix::new(weights, out, input, form).unwrap();
    let mut rows = vec![0.0; out * input];
    let numbered = rows.chunks_mut(input).enumerate();
    numbered.for_each(|(row, target)| served.row(row, target));
    rows
}

const FORMS: [(FewBits, Quantisation); 2] = [
    (FewBits::Q8_0, Quantisation::Q8_0),
    (FewBits::Q4K, Quantisation::Q4K),
];

#[test]
fn rows_widen_to_the_hosts_numbers() {
    for rig in Rig::all() {
        for (form, host) in FORMS {
            let [out, input] = [37, 2304];
            let weights: Vec<f32> = normals(&mut stream("widen"), out * input);
            let expected = rounded(&weights, [out, input], host);
            let matrix = rig.buffer(&form.pack(&weights, input));
            let (first, rows) = (5, 29);
            let widened = rig.empty(4 * rows * input);
            Widen {
                quants: matrix.address(),
                levels: matrix.address() + form.quant_bytes(out, input),
                target: widened.address(),
                first: first as u32,
                input: input as u32,
            }
            .launch(rig.gpu(), (form, Dtype::F32), rows)
            .unwrap();
            let found = widened.read::<f32>(0, rows * input).unwrap();
            assert_eq!(found, expected[first * input..][..rows * input], "{form:?}");
        }
    }
}

fn few_rows<T: Number>(rig: &Rig, (form, host): (FewBits, Quantisation), [out, input]: [usize; 2]) {
    let mut random = stream("few rows");
    let weights: Vec<f32> = normals(&mut random, out * input);
    let x: Vec<T> = normals(&mut random, MOST_ROWS * input);
    let expected = rounded(&weights, [out, input], host);
    let (matrix, x_at, pitch) = (
        rig.buffer(&form.pack(&weights, input)),
        rig.buffer(&x),
        out + 3,
    );
    let mut all = Vec::new();
    for rows in (1..=MOST_ROWS).rev() {
        let y = rig.empty(4 * rows * pitch);
        FewRows {
            quants: matrix.address(),
            levels: matrix.address() + form.quant_bytes(out, input),
            x: x_at.address(),
            y: y.address(),
            rows: rows as u32,
            out: out as u32,
            input: input as u32,
            pitch: pitch as u32,
        }
        .launch(rig.gpu(), form, T::DTYPE)
        .unwrap();
        let y = y.read::<f32>(0, rows * pitch).unwrap();
        let products: Vec<&[f32]> = y.chunks(pitch).map(|row| &row[..out]).collect();
        for (row, products) in products.iter().enumerate() {
            for (output, &found) in products.iter().enumerate() {
                let of = expected[output * input..][..input].iter();
                let terms = of
                    .zip(&x[row * input..])
                    .map(|(w, x)| f64::from(*w) * f64::from(x.wide()));
                let unit = 1e-6 * terms.clone().map(f64::abs).sum::<f64>();
                let off = (f64::from(found) - terms.sum::<f64>()).abs();
                assert!(off <= unit, "{form:?}, {rows} rows, {out} x {input}: {off}");
            }
        }
        if all.is_empty() {
            all = products.concat();
        }
        assert_eq!(
            products.concat(),
            all[..rows * out],
            "alone or among others"
        );
    }
}

#[test]
fn few_rows_are_the_hosts_numbers_times_theirs() {
    for rig in Rig::all() {
        for form in FORMS {
            few_rows::<f32>(&rig, form, [21, 512]);
            few_rows::<half::bf16>(&rig, form, [8, 256]);
        }
        few_rows::<f32>(&rig, FORMS[0], [3, 96]);
    }
}

/// Tensors of an architecture, by name.
type Dense = std::collections::BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn in_few_bits(
    gpu: &Arc<dyn GpuDevice>,
    of: (&Architecture, &Dense),
    base: Quantisation,
) -> Arc<GpuBase> {
    let device = GpuTarget {
        base,
        ..GpuTarget::new(gpu.clone(), Dtype::F32)
    };
    Arc::new(GpuBase::new(device, of.0.clone(), of.1).unwrap())
}

/// Whose matrices are those that come back from `form`.
fn of_rounded(
    gpu: &Arc<dyn GpuDevice>,
    (architecture, tensors): (&Architecture, &Dense),
    form: Quantisation,
) -> Arc<GpuBase> {
    let mut tensors = tensors.clone();
    for spec in architecture
        .tensors
        .iter()
        .filter(|spec| spec.role.is_matrix())
    {
        let (shape, data) = tensors.get_mut(&spec.name).unwrap();
        *data = rounded(data, [shape[0], shape[1]], form);
    }
    let device = GpuTarget::new(gpu.clone(), Dtype::F32);
    Arc::new(GpuBase::new(device, architecture.clone(), &tensors).unwrap())
}

/// A network of the family's, but for its vocabulary, with random weights.
fn with_vocabulary(family: &Family, rows: usize) -> (Architecture, Dense) {
    let mut config: serde_json::Value = serde_json::from_slice(&family.config).unwrap();
    config["vocab_size"] = rows.into();
    let architecture = Architecture::read(config.to_string().as_bytes()).unwrap();
    let mut random = stream("vocabulary");
    let mut tensor = |spec: &TensorSpec| {
        let scale = (*spec.shape.last().unwrap() as f32).powf(-0.5);
        let numbers: Vec<f32> = normals(&mut random, spec.shape.iter().product());
        let data = numbers.into_iter().map(|x| x * scale).collect();
        (spec.name.clone(), (spec.shape.clone(), data))
    };
    let tensors = architecture.tensors.iter().map(&mut tensor).collect();
    (architecture, tensors)
}

/// The head is widened in more than one piece.
#[test]
fn a_large_vocabulary_in_few_bits_is_that_of_the_rounded_weights() {
    let Some(rig) = Rig::one() else { return };
    let family = Family::load("sdar-tiny");
    let (architecture, tensors) = with_vocabulary(&family, 8192 + 200);
    let of = (&architecture, &tensors);
    let form = Quantisation::Q8_0;
    let [ours, theirs] = [
        in_few_bits(&rig.gpu, of, form),
        of_rounded(&rig.gpu, of, form),
    ]
    .map(|base| {
        let network = GpuNetwork::new(base, &[], Vec::new()).unwrap();
        let rows = MOST_ROWS + 1;
        let tokens: Vec<u32> = (0..rows as u32).map(|row| 400 * row + 7).collect();
        let segments = vec![behind(0, &tokens, rows, false, 0..rows)];
        let mut cache = network.cache(PAGE.into(), 1).unwrap();
        network
            .forward(&Batch { segments }, &mut cache)
            .unwrap()
            .data
    });
    assert_eq!(ours.len(), (MOST_ROWS + 1) * architecture.vocabulary.rows);
    let off = relative(&ours, &theirs);
    assert!(off < 1e-4, "{off}");
}

#[test]
fn decoders_in_few_bits_are_those_of_the_rounded_weights() {
    for rig in Rig::all() {
        for family in Family::all() {
            let form = Quantisation::Q8_0;
            let dense = family.dense();
            let of = (&family.architecture, &dense);
            let (ours, theirs) = (
                in_few_bits(&rig.gpu, of, form),
                of_rounded(&rig.gpu, of, form),
            );
            assert!(2 * ours.device_bytes() < theirs.device_bytes());
            let network = |base| GpuNetwork::new(base, &[], Vec::new()).unwrap();
            let (ours, theirs) = (network(ours), network(theirs));
            let whole = ours.materialise(&Mix::base()).unwrap();
            let segments = family.forwards();
            let segments: Vec<_> = segments
                .iter()
                .map(|forward| forward.segment(&family.architecture))
                .collect();
            // Many rows, and few.
            let mut few = segments[0].clone();
            few.tokens
                .truncate(family.architecture.regime.block.unwrap_or(4).min(MOST_ROWS));
            few.rows.retain(|&row| row < few.tokens.len());
            few.block = few.block.map(|block| block.min(few.tokens.len()));
            for segments in [segments, vec![few]] {
                let batch = Batch { segments };
                let [ours, whole, theirs] = [&ours, &whole, &theirs].map(|network| {
                    let mut cache = network.cache(PAGE.into(), 1).unwrap();
                    let all = [(); 3].map(|()| network.forward(&batch, &mut cache).unwrap().data);
                    assert_eq!(all[0], all[2], "launched, or replayed");
                    all[2].clone()
                });
                for ours in [ours, whole] {
                    let off = relative(&ours, &theirs);
                    assert!(off < 1e-4, "{}: {off}", family.architecture.family);
                }
            }
        }
    }
}
