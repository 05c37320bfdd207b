//! (module ops)
