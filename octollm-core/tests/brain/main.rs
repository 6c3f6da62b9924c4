//! The brain: tasks from submission to their end, through failures, restarts and other brains.

mod journal;
mod lifecycle;
mod nested;
mod support;
