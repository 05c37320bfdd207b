//! Instruction sets chosen at run time. What is computed with one has the same bits as with any other.

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Any machine.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest one that this processor has.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let bytes = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni");
            if bytes && is_x86_feature_detected!("avx512f") {
                return Isa::Avx512;
            }
            let floats = is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if is_x86_feature_detected!("avx2") && floats {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }

    /// All that this processor has, for tests that compare them.
    #[cfg(test)]
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        match Isa::best() {
            Isa::Portable => {}
            Isa::Avx2 => all.push(Isa::Avx2),
            Isa::Avx512 => all.extend([Isa::Avx2, Isa::Avx512]),
        }
        all
    }
}
