//! (module catalog)
