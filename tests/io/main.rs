//! Files in and out: well-formed ones are read exactly, hostile ones are refused by name.

mod checkpoint;
mod commands;
mod config;
mod files;
mod hostile;
mod hub;
mod output;
mod support;
mod texts;
mod tokenizer;
mod tokens;
