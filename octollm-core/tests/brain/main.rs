//! The brain: tasks from submission to their end, through failures, restarts and other brains.

mod adverse;
mod attempts;
mod crashes;
mod delayed;
mod doomed;
mod elsewhere;
mod grants;
mod hanging;
mod interrupted;
mod journal;
mod layer;
mod lifecycle;
mod limited;
mod limits;
mod nested;
mod replay;
mod reruns;
mod scripted;
mod storm;
mod support;
mod trouble;
mod unique;
mod unknown;
mod watching;
