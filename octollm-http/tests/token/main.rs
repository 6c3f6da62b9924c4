//! Capability tokens, through their public interface: tokens are forged by hand, and verified and issued by the crate.

mod attacker;
mod delegation;
mod keys;
mod reuse;
mod rules;
mod support;
mod wired;
