//! The server over sockets, byte by byte where it matters.

mod arms;
mod bad_input;
mod lifecycle;
mod limits;
mod mounted;
mod openapi;
mod peer;
mod routes;
mod tasks;
