//! (module superposition)
