//! Attention over pages and the batch's own rows.

use choir::ops::gpu::Dtype;
use choir::ops::gpu::attention::{Attend, Cut, QueryTile, SegmentFacts};
use choir::ops::gpu::pointwise::NONE;
use half::bf16;

use crate::rig::{Number, Rig, normals, stream};

const LAYERS: usize = 2;
const LAYER: usize = 1;
const PAGE: usize = 4;
const PAGES: usize = 8;

/// Segments of every kind: without a cache, after one, with a window that begins in it, from within a block on, padded; the last,
/// without a cache, of several tiles and of so many tokens.
fn segments(long: u32) -> [SegmentFacts; 5] {
    let segment = |[first_row, tokens, first_position]: [u32; 3],
                   [block, begun]: [u32; 2],
                   [pages, pages_start, oldest]: [u32; 3]| SegmentFacts {
        first_row,
        tokens,
        first_position,
        block,
        pages,
        pages_start,
        oldest,
        begun,
    };
    [
        segment([0, 7, 0], [7, 0], [0; 3]),
        segment([7, 8, 12], [4, 0], [0; 3]),
        segment([15, 6, 10], [5, 0], [3, 4, 4]),
        segment([21, 70, 6], [3, 2], [5, 0, 2]),
        segment([91, long, 0], [long, 0], [0; 3]),
    ]
}

/// `shape`: heads, heads of keys, and how wide these are.
fn check<T: Number>(rig: &Rig, shape: [usize; 3], window: usize, cut: Option<Cut>) {
    let [heads, kv_heads, head_dim] = shape;
    let long = if cut == Some(Cut::Many) { 201 } else { 0 };
    let segments = segments(long);
    let (rows, hidden, keys) = (93 + long as usize, heads * head_dim, kv_heads * head_dim);
    let mut random = stream("attention");
    let of_row: Vec<u32> = (0..rows as u32)
        .map(|row| {
            let of = segments
                .iter()
                .position(|s| (s.first_row..s.first_row + s.tokens).contains(&row));
            of.map_or(NONE, |segment| segment as u32)
        })
        .collect();
    // Three pages of the second segment, two of the third, two of the last.
    let pages = [7u32, 0, 3, 1, 6, 2, 5];
    let scale = T::of((head_dim as f32).powf(-0.5)).wide();
    // Queries and the batch's keys lie between other things.
    let (q_pitch, current_pitch) = (hidden + 8, 2 * keys + 16);
    let q: Vec<T> = normals::<f32>(&mut random, rows * q_pitch)
        .into_iter()
        .map(|x| T::of(2.0 * scale * x))
        .collect();
    let current: Vec<T> = normals(&mut random, rows * current_pitch);
    let cache: Vec<T> = normals(&mut random, PAGES * LAYERS * 2 * PAGE * keys);
    let (q_at, current_at, cache_at) = (rig.buffer(&q), rig.buffer(&current), rig.buffer(&cache));
    let (of_row_at, segments_at, pages_at) = (
        rig.buffer(&of_row),
        rig.buffer(&segments),
        rig.buffer(&pages),
    );
    let out = rig.empty(rows * hidden * T::DTYPE.size());
    let args = Attend {
        q: q_at.address(),
        current: current_at.address(),
        cache: cache_at.address(),
        out: out.address(),
        segment: of_row_at.address(),
        segments: segments_at.address(),
        pages: pages_at.address(),
        heads: heads as u32,
        head_dim: head_dim as u32,
        layer: LAYER as u32,
        layers: LAYERS as u32,
        page_tokens: PAGE as u32,
        window: window as u32,
        q_pitch: q_pitch as u32,
        current_pitch: current_pitch as u32,
        kv_heads: kv_heads as u32,
        unused: 0,
    };
    match cut {
        None => args.launch(rig.gpu(), T::DTYPE, rows).unwrap(),
        Some(cut) => {
            let starts = |s: &SegmentFacts| (0..s.tokens).step_by(cut.tokens(heads / kv_heads));
            let of = |(segment, s)| starts(s).map(move |first| QueryTile { segment, first });
            let mut tiles: Vec<QueryTile> = (0..).zip(&segments).flat_map(of).collect();
            tiles.push(QueryTile::default());
            let tiles_at = rig.buffer(&tiles);
            let tiles = (tiles_at.address(), tiles.len(), cut);
            args.launch_tiles(rig.gpu(), T::DTYPE, rows, tiles).unwrap();
        }
    }
    let out = out.read::<T>(0, rows * hidden).unwrap();

    // Rounded once; weights too on the tensor cores, where they are at most 1.
    let (unit, of_weights) = match (T::DTYPE, cut) {
        (Dtype::F32, _) => (2e-6, 0.0),
        (_, None) => (0.0041, 0.0),
        (_, Some(_)) => (0.0041, 0.0041),
    };
    for (row, &of) in of_row.iter().enumerate() {
        if of == NONE {
            let zeros = out[row * hidden..][..hidden]
                .iter()
                .all(|&x| x == T::of(0.0));
            assert!(zeros || cut.is_some());
            continue;
        }
        let s = segments[of as usize];
        let [first_row, tokens, first_position, block] =
            [s.first_row, s.tokens, s.first_position, s.block].map(|x| x as usize);
        let token = row - first_row;
        let begun = s.begun as usize;
        let end = first_position + (((token + begun) / block + 1) * block - begun).min(tokens);
        let seen = end.saturating_sub(window).max(s.oldest as usize)..end;
        // Where the key (0) or value (1) of a position begins.
        let at = |position: usize, which: usize| {
            if position >= first_position {
                let row = first_row + position - first_position;
                return &current[row * current_pitch + which * keys..][..keys];
            }
            let offset = position - s.pages_start as usize;
            let page = pages[s.pages as usize + offset / PAGE] as usize;
            &cache[(((page * LAYERS + LAYER) * 2 + which) * PAGE + offset % PAGE) * keys..][..keys]
        };
        for head in 0..heads {
            let of_head = head * head_dim..(head + 1) * head_dim;
            let of_key = head / (heads / kv_heads) * head_dim;
            let of_key = of_key..of_key + head_dim;
            let query = &q[row * q_pitch..][of_head.clone()];
            let product = |(a, b): (&T, &T)| f64::from(a.wide()) * f64::from(b.wide());
            let score = |position| {
                query
                    .iter()
                    .zip(&at(position, 0)[of_key.clone()])
                    .map(product)
                    .sum::<f64>()
            };
            let weights: Vec<f64> = seen.clone().map(|position| score(position).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, of_value) in of_head.clone().zip(of_key.clone()) {
                let terms = seen
                    .clone()
                    .zip(&weights)
                    .map(|(position, w)| w * f64::from(at(position, 1)[of_value].wide()));
                let sizes: f64 = terms.clone().map(f64::abs).sum();
                let expected = terms.sum::<f64>() / total;
                let found = out[row * hidden + i];
                let error = (f64::from(found.wide()) - expected).abs();
                assert!(
                    error <= unit * expected.abs() + of_weights * sizes / total + 4e-6,
                    "{found:?}, not {expected}: row {row}, head {head}"
                );
            }
        }
    }
}

#[test]
fn queries_see_what_their_segments_say() {
    for rig in Rig::all() {
        for (shape, window) in [
            ([1, 1, 2], 1000),
            ([6, 2, 10], 1000),
            ([9, 9, 64], 9),
            ([4, 2, 70], 1000),
            ([20, 1, 8], 40),
            ([1, 1, 256], 33),
        ] {
            check::<f32>(&rig, shape, window, None);
            check::<bf16>(&rig, shape, window, None);
        }
    }
}

#[test]
fn tiles_of_queries_see_the_same() {
    for rig in Rig::all() {
        for (shape, window) in [
            ([2, 2, 32], 1000),
            ([3, 3, 64], 9),
            ([4, 1, 128], 40),
            ([14, 2, 64], 1000),
            ([2, 1, 64], 1000),
        ] {
            for cut in [Cut::Few, Cut::Many] {
                check::<bf16>(&rig, shape, window, Some(cut));
            }
        }
    }
}
