//! (module transform)
