//! The unit tests of the example `quickstart`: its modules, without its `main`.
#![allow(dead_code)]

mod arms;
mod client;
mod contracts;
mod finding;
mod judge;
mod lexer;
mod report;
mod review;
mod secrets;
mod source;
mod system;
