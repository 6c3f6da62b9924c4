//! Calls as their users combine them: limits, retries, names, batches, plans and updates, through the mesh.
#![cfg(feature = "mesh")]

mod batches;
mod cancelled;
mod crashes;
mod dropped;
mod keyed;
mod layers;
mod once;
mod own_keys;
mod retries;
mod single;
mod streamed;
mod support;
