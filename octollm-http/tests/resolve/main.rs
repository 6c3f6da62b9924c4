//! Tests of resolvers against files and DNS servers.
#![allow(missing_docs)]

mod file;
