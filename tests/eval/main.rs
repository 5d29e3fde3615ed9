//! The evaluation library against what can be counted by hand, enumerated, or checked in another way.

#[path = "../common/mod.rs"]
mod common;
mod countdown;
mod exact;
mod scoring;
#[path = "../support/unigram.rs"]
mod unigram;
