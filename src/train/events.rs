//! TensorBoard event files: records of a length, its checksum, a protocol buffer and its checksum
//! (TensorFlow, `tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`).

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};

/// `tensorflow.Event`, as much of it as is written.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    // Optional, so that a zero is written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.START`: what readers have of this step and later ones is void.
const START: i32 = 1;

/// An event file.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a new file in `folder`, which is made where it is missing. With `from`, the run goes on: what older
    /// files say of step `from` and later ones no longer counts.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path, from: Option<u64>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        // Readers take files in the order of their names: seconds first. Two in one second are told apart at the end.
        let (seconds, process) = (now() as u64, std::process::id());
        for number in 0_u32.. {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.lacuna.{process}.{number}"));
            match File::create_new(&path) {
                Ok(file) => {
                    let mut events = Self { path, file };
                    events.write(Event { file_version: Some("brain.Event:2".into()), ..Event::default() })?;
                    if let Some(from) = from {
                        let session_log = Some(SessionLog { status: START });
                        events.write(Event { step: signed(from), session_log, ..Event::default() })?;
                    }
                    return Ok(events);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", path, e)),
            }
        }
        Err(Error::io("create", folder, std::io::ErrorKind::AlreadyExists.into()))
    }

    /// Records numbers of a step, each by its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value =
            |&(tag, x): &(&str, f64)| SummaryValue { tag: tag.to_owned(), simple_value: Some(x as f32) };
        let summary = Some(Summary { value: scalars.iter().map(value).collect() });
        self.write(Event { step: signed(step), summary, ..Event::default() })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let event = Event { wall_time: now(), ..event };
        self.file.write_all(&record(&event.encode_to_vec())).map_err(|e| Error::io("write", &self.path, e))
    }
}

fn signed(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The bytes of a record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_checksum(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_checksum(data).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted so that a checksum of data that hold checksums is no weaker.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file back, checking every checksum.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let (check, after) = after.split_at(4);
            assert_eq!(check, masked_checksum(length).to_le_bytes());
            let (data, after) = after.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (check, after) = after.split_at(4);
            assert_eq!(check, masked_checksum(data).to_le_bytes());
            events.push(Event::decode(data).unwrap());
            rest = after;
        }
        events
    }

    #[test]
    fn events_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Events::create(dir.path(), None).unwrap();
        first.scalars(3, &[("a", 1.5), ("b", 0.0)]).unwrap();
        let mut second = Events::create(dir.path(), Some(3)).unwrap();
        second.scalars(3, &[("a", f64::NAN)]).unwrap();
        assert_ne!(first.path, second.path);
        let events = read(&first.path);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events.len(), events[1].step), (2, 3));
        assert!(events[1].wall_time > 1.7e9);
        let values = &events[1].summary.as_ref().unwrap().value;
        let pair = |v: &SummaryValue| (v.tag.clone(), v.simple_value.unwrap());
        assert_eq!(values.iter().map(pair).collect::<Vec<_>>(), [("a".into(), 1.5), ("b".into(), 0.0)]);
        let events = read(&second.path);
        assert_eq!((events[1].step, events[1].session_log.as_ref().unwrap().status), (3, START));
        assert!(events[2].summary.as_ref().unwrap().value[0].simple_value.unwrap().is_nan());
    }

    /// The checksum of "123456789" is known (RFC 3720, appendix B.4, has the polynomial).
    #[test]
    fn checksum() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(masked_checksum(b"123456789"), 0xE306_9283_u32.rotate_right(15).wrapping_add(0xA282_EAD8));
    }
}
