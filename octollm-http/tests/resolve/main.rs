//! Resolvers against files that change, and against a DNS server on sockets.

mod dns;
mod dns_server;
mod file;
