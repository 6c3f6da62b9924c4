//! The server over sockets, byte by byte where it matters.

mod arms;
mod bad_input;
mod floods;
mod lifecycle;
mod limits;
mod mounted;
mod openapi;
mod peer;
mod process;
mod routes;
mod tasks;
