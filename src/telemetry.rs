//! Logging set-up: a leaf.
