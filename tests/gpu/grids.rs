//! How large launches may be.

use choir::ops::gpu::attention::{Attend, Cut};
use choir::ops::gpu::heads::Heads;
use choir::ops::gpu::own::{EmbedOwn, OwnProduct, RetrieveOwn};
use choir::ops::gpu::pointwise::{BiasGelu, GateResidual, NormModulate, RotaryLaunch, SwiGlu};
use choir::ops::gpu::products::{BankGemm, GatherEmbedding, SignIn, SignOut, Split};
use choir::ops::gpu::{Address, Dtype, Fault, Result};

use crate::rig::Rig;

/// As many rows as a large step has: more than a grid is high.
#[test]
fn launches_of_many_rows_fit_a_grid() {
    let Some(rig) = Rig::new(0) else { return };
    let (gpu, rows) = (rig.gpu(), 70_000);
    let (f32, half) = (Dtype::F32, Dtype::Bf16);
    let heads = Heads {
        rotary: RotaryLaunch {
            heads: 4,
            head_dim: 64,
            ..RotaryLaunch::default()
        },
        kv_heads: 2,
        ..Heads::default()
    };
    let attend = Attend {
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ..Attend::default()
    };
    let own = OwnProduct {
        part_count: rows,
        group_count: rows.div_ceil(8),
        tier: 8,
        out: 64,
        input: 64,
        ranks: 4,
        ..OwnProduct::default()
    };
    let wide = 3000;
    let (groups, shape) = (rows.div_ceil(64), (wide, wide));
    let split = Split::banks(132, (64, groups), shape);
    let mut all = || -> Result<()> {
        let width = wide as u32;
        NormModulate {
            width,
            ..NormModulate::default()
        }
        .launch(gpu, half, rows)?;
        GateResidual {
            width,
            ..GateResidual::default()
        }
        .launch(gpu, half, f32, rows)?;
        BiasGelu {
            width,
            ..BiasGelu::default()
        }
        .launch(gpu, half, f32, rows)?;
        SwiGlu {
            width,
            ..SwiGlu::default()
        }
        .launch(gpu, half, f32, rows)?;
        GatherEmbedding {
            width,
            ..GatherEmbedding::default()
        }
        .launch(gpu, half, rows)?;
        EmbedOwn {
            width,
            ..EmbedOwn::default()
        }
        .launch(gpu, rows)?;
        SignIn {
            input: width,
            ..SignIn::default()
        }
        .launch(gpu, half, rows)?;
        SignOut {
            out: width,
            ..SignOut::default()
        }
        .launch(gpu, rows)?;
        BankGemm {
            out: width,
            input: width,
            ..BankGemm::default()
        }
        .launch(gpu, half, split, Address::default())?;
        own.launch(gpu, half)?;
        heads.rotary.launch(gpu, half, f32, rows)?;
        heads.launch(gpu, half, f32, rows)?;
        attend.launch(gpu, f32, rows)?;
        let tiles = (Address::default(), rows, Cut::Few);
        attend.launch_tiles(gpu, half, rows, tiles)
    };
    gpu.record(&mut all).unwrap();
    // And what does not fit is refused before a card sees it.
    let high = RetrieveOwn {
        out: 1,
        input: 1 << 31,
        ..RetrieveOwn::default()
    };
    let refused = gpu.record(&mut || high.launch(gpu, half)).err();
    assert!(
        matches!(refused, Some(Fault::Failed { call: "launch", .. })),
        "{refused:?}"
    );
}
