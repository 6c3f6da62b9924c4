//! The server over sockets, byte by byte where it matters.

mod arms;
mod bad_input;
mod peer;
mod routes;
