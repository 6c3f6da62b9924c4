//! Capability tokens, through their public interface: tokens are forged by hand, and verified and issued by the crate.

mod attacker;
mod bad_input;
mod delegation;
mod env;
mod fetched;
mod indexed;
mod issuers;
mod keys;
mod limited;
mod links;
mod others;
mod pairs;
mod queued;
mod registered;
mod reuse;
mod rules;
mod scopes;
mod settings;
mod support;
mod tasks;
mod wired;
mod world;
