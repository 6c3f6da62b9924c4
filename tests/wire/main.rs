//! The wire, held to files: each JSON form and each head that crosses the network, as it is written and as it is read.
//!
//! The files are in `golden/`, and they are the examples of `docs/wire.md`. After a change that is meant,
//! `BLESS=1 cargo test --test wire` writes them anew. Read the difference before it is committed: programs that nobody
//! here knows of may read and write these forms.
//!
//! What a real server answers is held to the same files, with fixed values for what differs each time: ids, times,
//! durations. The forms of events have files of their own beside `octollm-events`.

mod cards;
mod contracts;
mod events;
mod golden;
mod heads;
mod journal;
mod ordered;
mod page;
mod plans;
mod problems;
mod recorded;
mod registered;
mod review;
mod screened;
mod served;
mod submitted;
mod tasks;
mod updates;
