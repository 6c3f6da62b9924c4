//! The brain: tasks from submission to their end, through failures, restarts and other brains.

mod adverse;
mod attempts;
mod delayed;
mod elsewhere;
mod grants;
mod hanging;
mod interrupted;
mod journal;
// The crash points of the public suite use it as well.
#[path = "../../src/conformance/store/layer.rs"]
mod layer;
mod lifecycle;
mod limited;
mod limits;
mod nested;
mod replay;
mod reruns;
mod scripted;
mod storm;
mod streamed;
mod support;
mod trouble;
mod unique;
mod unknown;
mod watching;
