//! What the routes of a server do.

mod contract;
mod probes;
mod tasks;
mod reflex;

pub(crate) use self::{
    contract::{Contract, Execute},
    probes::{ArmCapabilities, Health, Ready, Written},
    reflex::{Preprocess, Screen, ScreenedSubmit},
    tasks::{Cancel, KnownArms, List, Status, Submit},
};
