//! Slow twins: each family once more as plain tensor operations, the oracle of the executors.

pub mod qwen;
