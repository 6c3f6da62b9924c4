//! What the routes of a server do.

mod contract;
mod probes;

pub(crate) use self::{
    contract::{Contract, Execute},
    probes::{ArmCapabilities, Health, Ready, Written},
};
