//! Instruction sets chosen at run time. What is computed with one has the same bits as with any other.

/// An instruction set that this processor has: nothing but asking the processor makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Set);

/// Which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Any machine.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest one that this processor has.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let bytes =
                is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni");
            let floats =
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq");
            if bytes && floats && is_x86_feature_detected!("avx512vl") {
                return Isa(Set::Avx512);
            }
            let floats = is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if is_x86_feature_detected!("avx2") && floats {
                return Isa(Set::Avx2);
            }
        }
        Isa(Set::Portable)
    }

    pub fn set(self) -> Set {
        self.0
    }

    /// Does `work`, with wide vectors where this is a set that has them.
    #[inline(always)]
    pub fn run(self, work: impl Vectorised) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Set::Avx512 {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn wide(work: impl Vectorised) {
                work.run();
            }
            // SAFETY: whoever has this value has asked the processor for its instructions.
            #[allow(unsafe_code)]
            return unsafe { wide(work) };
        }
        work.run();
    }

    /// All that this processor has, for tests that compare them.
    #[cfg(test)]
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Set::Portable];
        #[cfg(target_arch = "x86_64")]
        match Isa::best().0 {
            Set::Portable => {}
            Set::Avx2 => all.push(Set::Avx2),
            Set::Avx512 => all.extend([Set::Avx2, Set::Avx512]),
        }
        all.into_iter().map(Isa).collect()
    }
}

/// What is compiled once more for wide vectors. Only what is inlined is, and of a closure nobody can ask that.
pub trait Vectorised {
    /// To be marked `#[inline(always)]`.
    fn run(self);
}
