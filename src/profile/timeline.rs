//! A run as a timeline in the format of Chrome's trace viewer, which <https://ui.perfetto.dev> opens: complete events (`"ph": "X"`), times in
//! microseconds. One track a thread of the host, one for the card.

use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::meter::{Event, Measured, Track};

/// Process numbers of the two clocks.
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// Writes what was measured to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn write_timeline(measured: &Measured, command: &str, path: &Path) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut out = BufWriter::new(&mut file);
    write(measured, command, &mut out).map_err(|e| Error::io("write", path, e))?;
    drop(out);
    file.commit()
}

fn write(measured: &Measured, command: &str, out: &mut impl Write) -> std::io::Result<()> {
    let about = json!({ "command": command, "version": env!("CARGO_PKG_VERSION"), "dropped_events": measured.dropped });
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let name = |pid: u32, tid: u32, what: &str, name: &str| json!({ "ph": "M", "pid": pid, "tid": tid, "name": what, "args": { "name": name } });
    let mut names = vec![name(HOST, 0, "process_name", "host")];
    let threads = measured.events.iter().filter(|e| e.track == Track::Host).map(|e| e.thread);
    let mut threads: Vec<u32> = threads.collect();
    threads.sort_unstable();
    threads.dedup();
    names.extend(threads.iter().map(|&t| name(HOST, t, "thread_name", &format!("thread {t}"))));
    if measured.events.iter().any(|e| e.track == Track::Device) {
        names.push(name(DEVICE, 0, "process_name", "card"));
        names.push(name(DEVICE, 0, "thread_name", "stream"));
    }
    let lines = names.into_iter().chain(measured.events.iter().map(line));
    for (i, line) in lines.enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(out, "{comma}\n{line}")?;
    }
    writeln!(out, "\n]}}")?;
    out.flush()
}

fn line(event: &Event) -> Value {
    let Event { op, kernel, range, track, thread, from, took } = *event;
    let micros = |d: std::time::Duration| d.as_nanos() as f64 / 1e3;
    let name = match (kernel, range) {
        (Some(kernel), _) => kernel.to_owned(),
        (None, Some(number)) if op.name != "generate" => format!("{} {number}", op.name),
        _ => op.name.to_owned(),
    };
    let category = match (track, range) {
        (Track::Device, _) => "kernel",
        (Track::Host, Some(_)) => "range",
        (Track::Host, None) => "op",
    };
    let args = if range.is_some() {
        json!({ "number": range })
    } else {
        let dims: Vec<usize> = op.dims.into_iter().filter(|&d| d > 0).collect();
        json!({ "op": op.name, "sizes": dims, "flops": op.flops, "bytes": op.bytes })
    };
    let pid = if track == Track::Device { DEVICE } else { HOST };
    json!({
        "ph": "X", "pid": pid, "tid": thread, "name": name, "cat": category, "ts": micros(from), "dur": micros(took),
        "args": args,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::Op;

    #[test]
    fn a_timeline_is_json_with_every_event() {
        let op = Op { name: "linear", dims: [4, 8, 16], flops: 1024, bytes: 9 };
        let (from, took) = (Duration::from_nanos(1500), Duration::from_micros(2));
        let event = |kernel, range, track| Event { op, kernel, range, track, thread: 0, from, took };
        let events = vec![
            event(None, None, Track::Host),
            event(Some("matmul_f32"), None, Track::Device),
            event(None, Some(3), Track::Host),
        ];
        let measured = Measured { events, dropped: 2, ..Measured::default() };
        let mut text = Vec::new();
        write(&measured, "generate \"a\"", &mut text).unwrap();
        let all: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&all["otherData"]["command"], &all["otherData"]["dropped_events"]),
            (&"generate \"a\"".into(), &2.into())
        );
        let lines = all["traceEvents"].as_array().unwrap();
        let spans: Vec<&Value> = lines.iter().filter(|e| e["ph"] == "X").collect();
        let names: Vec<&str> = spans.iter().filter_map(|e| e["name"].as_str()).collect();
        assert_eq!(names, ["linear", "matmul_f32", "linear 3"]);
        assert_eq!((spans[0]["ts"].as_f64(), spans[0]["dur"].as_f64()), (Some(1.5), Some(2.0)));
        assert_eq!((&spans[0]["args"]["sizes"], &spans[1]["pid"]), (&json!([4, 8, 16]), &2.into()));
        assert!(lines.iter().any(|e| e["ph"] == "M" && e["args"]["name"] == "card"));
    }
}
